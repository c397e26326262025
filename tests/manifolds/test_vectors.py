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
    assert abs(SPHERE.logmap(x, y).norm().item() - angle) <= 2 * tol


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("gap", [1.0, 0.1, 1e-2, 1e-3, 1e-4])
def test_logarithm_keeps_its_digits_near_the_antipode(dtype, gap):
    x, _, _, e = material(SPHERE, (3,), batch=(1000,), dtype=dtype)
    along = SPHERE.proju(x, e)
    y = SPHERE.projx(-x + gap * along / along.norm(dim=-1, keepdim=True))
    log = SPHERE.logmap(x, y)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(log.norm(dim=-1), SPHERE.dist(x, y), rtol=0, atol=32 * eps)
    torch.testing.assert_close(SPHERE.expmap(x, log), y, rtol=0, atol=16 * eps / gap)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_antipodes_have_a_distance_and_no_logarithm(dtype):
    x = SPHERE.random(1000, 5, generator=torch.Generator().manual_seed(0), dtype=dtype)
    y = SPHERE.projx(-x * (1 + torch.finfo(dtype).eps))
    for end in (-x, y):
        assert SPHERE.logmap(x, end).isnan().all()
        torch.testing.assert_close(SPHERE.dist2(x, end), torch.full((1000,), math.pi**2, dtype=dtype))
    assert torch.func.grad(lambda y: SPHERE.dist2(x, y).sum())(-x).isfinite().all()


@pytest.mark.parametrize("manifold", [SPHERE, SIMPLEX], ids=str)
def test_squared_distance_is_the_square_of_the_distance(manifold):
    x, y = manifold.random(2, 100, 4, generator=torch.Generator().manual_seed(0), **D)
    torch.testing.assert_close(manifold.dist2(x, y), manifold.dist(x, y) ** 2, rtol=2e-14, atol=0)
    assert manifold.dist2(x, x, keepdim=True).shape == (100, 1)
    assert (manifold.dist2(x, x) == 0).all()
    near = manifold.retr(x, 1e-9 * manifold.proju(x, y))
    torch.testing.assert_close(manifold.dist2(x, near), manifold.dist(x, near) ** 2, rtol=1e-6, atol=0)


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


@pytest.mark.parametrize("exponent", [-149, -130, -80, -60, 0, 60, 100, 126])
def test_vectors_of_every_length_have_a_nearest_point_and_its_derivatives(exponent):
    wide = 2.0**exponent * torch.tensor([[1.0, 2.0, 1.0], [0.0, -1.0, 0.0], [2.0, 0.0, -2.0]], dtype=torch.float64)
    x = wide.float()
    assert torch.equal(x.double(), wide)
    torch.testing.assert_close(SPHERE.projx(x), (wide / wide.norm(dim=-1, keepdim=True)).float(), rtol=0, atol=2e-7)
    if abs(exponent) <= 100:  # beyond, the derivative itself leaves the range of float32
        u = wide.roll(1, -1)
        _, moved = torch.func.jvp(SPHERE.projx, (x,), (u.float(),))
        _, want = torch.func.jvp(lambda x: x / x.norm(dim=-1, keepdim=True), (wide,), (u,))
        torch.testing.assert_close(moved, want.float(), rtol=0, atol=1e-6)
        (gradient,) = torch.func.vjp(SPHERE.projx, x)[1](torch.ones_like(x))
        (want,) = torch.func.vjp(lambda x: x / x.norm(dim=-1, keepdim=True), wide)[1](torch.ones_like(wide))
        torch.testing.assert_close(gradient * 2.0**exponent, (want * 2.0**exponent).float(), rtol=0, atol=1e-6)
    assert SPHERE.projx(torch.zeros(3)).isnan().all()
