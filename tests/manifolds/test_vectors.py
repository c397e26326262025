import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jpmhc.manifolds import Simplex, Sphere
from tests.manifolds.cases import material

SPHERE, SIMPLEX = Sphere(), Simplex()
D = {"dtype": torch.float64}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(st.floats(-8, math.log10(3)))
def test_distance_and_logarithm_are_accurate_at_every_angle(dtype, log_angle):
    angle = 10**log_angle
    x = torch.tensor([1.0, 0.0], dtype=dtype)
    y = torch.tensor([math.cos(angle), math.sin(angle)], dtype=dtype)
    tol = 8 * torch.finfo(dtype).eps
    assert abs(SPHERE.dist(x, y).item() - angle) <= tol
    assert abs(SPHERE.logmap(x, y).norm().item() - angle) <= 16 * tol / (math.pi - angle)


def test_distance_of_equal_points_is_zero_and_of_antipodes_pi():
    x = SPHERE.random(100, 5, generator=torch.Generator().manual_seed(0))
    assert (SPHERE.dist(x, x) == 0).all()
    torch.testing.assert_close(SPHERE.dist(x, -x), torch.full((100,), math.pi))


def test_squared_distance_on_the_sphere_has_the_hessian_of_a_flat_space_at_equal_points():
    x = torch.tensor([1.0, 0.0, 0.0], **D)
    hessian = torch.func.hessian(lambda y: SPHERE.dist2(x, SPHERE.projx(y)))(x)
    torch.testing.assert_close(hessian, torch.diag(torch.tensor([0.0, 2.0, 2.0], **D)))


def test_transport_turns_the_plane_of_the_geodesic():
    x, y, v = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 2, 3]], **D)
    torch.testing.assert_close(SPHERE.transp(x, y, v), torch.tensor([-2.0, 0, 3], **D))


def test_fisher_rao_distance_is_the_bhattacharyya_angle():
    x, y = SIMPLEX.random(2, 6, generator=torch.Generator().manual_seed(0), **D)
    torch.testing.assert_close(SIMPLEX.dist(x, y), 2 * torch.acos((x * y).sqrt().sum()))


def test_steps_on_the_simplex_stay_positive_at_any_length():
    x, u, _, _ = material(SIMPLEX, (5,), length=30.0)
    for retraction in ("root", "softmax"):
        y = Simplex(retraction).retr(x, u)
        assert (y > 0).all()
        assert SIMPLEX.point_error(y).max() < 1e-14


def test_gradient_on_the_simplex_is_the_replicator_field():
    x, _, _, e = material(SIMPLEX, (5,))
    torch.testing.assert_close(SIMPLEX.egrad2rgrad(x, e), x * (e - (x * e).sum(-1, keepdim=True)))
