import math

import pytest
import torch
from scipy.spatial.transform import Rotation

from jpmhc.manifolds import SpecialOrthogonal
from tests.manifolds.cases import material

SO = SpecialOrthogonal()
D = {"dtype": torch.float64}


def test_logarithm_and_distance_are_those_of_rotation_vectors():
    first, second = Rotation.random(50, rng=0), Rotation.random(50, rng=1)
    x, y = (torch.tensor(r.as_matrix(), **D) for r in (first, second))
    vector = torch.tensor((first.inv() * second).as_rotvec(), **D)
    w = x.mT @ SO.logmap(x, y)
    torch.testing.assert_close(torch.stack([w[:, 2, 1], w[:, 0, 2], w[:, 1, 0]], -1), vector, rtol=0, atol=1e-12)
    torch.testing.assert_close(SO.dist(x, y), math.sqrt(2) * vector.norm(dim=-1), rtol=0, atol=1e-12)


def test_half_turns_have_a_distance_and_no_logarithm():
    x = SO.origin(3, 3, **D)
    y = torch.diag(torch.tensor([-1.0, -1.0, 1.0], **D))
    assert SO.dist(x, y).item() == pytest.approx(math.sqrt(2) * math.pi)
    assert SO.logmap(x, y).isnan().any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [2, 3, 4, 7])
@pytest.mark.parametrize("gap", [1e-1, 1e-2, 1e-3])
def test_logarithm_keeps_its_digits_near_a_half_turn(n, gap, dtype):
    # One plane only: two that are both turned by nearly pi mix, and the logarithm is ill-conditioned itself.
    generator = torch.Generator().manual_seed(0)
    q, x = SO.random(2, 50, n, n, generator=generator, **D)
    turn = torch.zeros(n, n, **D)
    turn[0, 1], turn[1, 0] = gap - math.pi, math.pi - gap
    exact = q @ turn @ q.mT
    y = x @ torch.linalg.matrix_exp(exact)
    x, y = x.to(dtype), y.to(dtype)
    log = SO.logmap(x, y)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(x.double().mT @ log.double(), exact, rtol=0, atol=100 * eps)
    torch.testing.assert_close(SO.norm(x, log), SO.dist(x, y), rtol=100 * eps, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [2, 3, 5])
def test_logarithms_next_to_a_half_turn_are_right_or_nan(n, dtype):
    generator = torch.Generator().manual_seed(1)
    q, x = SO.random(2, 200, n, n, generator=generator, **D)
    eps = torch.finfo(dtype).eps
    gaps = eps * torch.logspace(-1, 4, 200, **D)
    turn = torch.eye(n, **D).repeat(200, 1, 1)
    turn[:, 0, 0] = turn[:, 1, 1] = -gaps.cos()
    turn[:, 1, 0], turn[:, 0, 1] = gaps.sin(), -gaps.sin()
    y = (x @ q @ turn @ q.mT).to(dtype)
    log = SO.logmap(x.to(dtype), y)
    known = log.isfinite().all((-2, -1))
    assert known[gaps > 1e3 * eps].all()
    assert not known[gaps < eps].any()
    missed = (SO.expmap(x.to(dtype), log) - y).abs().amax((-2, -1))
    assert missed[known].max() < 1e-3


def test_squared_distance_is_the_square_of_the_distance_and_smooth():
    x, y = SO.random(2, 20, 4, 4, generator=torch.Generator().manual_seed(0), **D)
    torch.testing.assert_close(SO.dist2(x, y), SO.dist(x, y) ** 2, rtol=1e-13, atol=0)
    assert (SO.dist2(x, x) == 0).all()
    eye, half = SO.origin(3, 3, **D), torch.diag(torch.tensor([-1.0, -1.0, 1.0], **D))
    assert SO.dist2(eye, half).item() == pytest.approx(2 * math.pi**2)
    assert torch.func.grad(lambda y: SO.dist2(eye, y))(half).isfinite().all()
    u = SO.proju(eye, torch.randn(3, 3, generator=torch.Generator().manual_seed(2), **D))
    along = torch.func.grad(torch.func.grad(lambda t: SO.dist2(eye, SO.retr(eye, t * u))))(torch.zeros((), **D))
    torch.testing.assert_close(along, 2 * SO.inner(eye, u))


@pytest.mark.parametrize("n", [2, 3, 4, 7])
def test_exponential_is_the_matrix_exponential(n):
    x, u, _, _ = material(SO, (n, n), length=5.0)
    torch.testing.assert_close(SO.expmap(x, u), x @ torch.linalg.matrix_exp(x.mT @ u), rtol=0, atol=1e-12)


@pytest.mark.parametrize("n", [2, 3, 5])
def test_projection_is_the_nearest_rotation_whatever_the_determinant(n):
    a = torch.randn(20, n, n, generator=torch.Generator().manual_seed(n), **D)
    u, _, vt = torch.linalg.svd(a)
    sign = torch.ones(20, n, **D)
    sign[:, -1] = torch.linalg.det(u @ vt)
    torch.testing.assert_close(SO.projx(a), (u * sign.unsqueeze(-2)) @ vt, rtol=0, atol=1e-11)
    assert SO.point_error(SO.projx(-torch.eye(3, **D))) < 1e-14


def test_random_is_haar_distributed():
    x = SO.random(20_000, 3, 3, generator=torch.Generator().manual_seed(0), **D)
    angle = torch.arccos(((x.diagonal(dim1=-2, dim2=-1).sum(-1) - 1) / 2).clamp(-1, 1)).sort().values
    law = (angle - angle.sin()) / math.pi  # distribution function of the angle of a uniform rotation
    assert (law - torch.linspace(0, 1, 20_000, **D)).abs().max() < 1.63 / math.sqrt(20_000)
    torch.testing.assert_close(torch.linalg.det(x), torch.ones(20_000, **D))


def test_average_of_two_rotations_is_half_way():
    x, u, _, _ = material(SO, (3, 3), length=0.8)
    y = SO.expmap(x, u)
    middle = SO.expmap(x, u / 2)
    torch.testing.assert_close(SO.logmap(middle, x), -SO.logmap(middle, y), rtol=0, atol=1e-13)


def test_large_rotations_in_float32_are_rotations_though_their_pivots_multiply_to_zero():
    point = SO.random(512, 512, generator=torch.Generator().manual_seed(0))
    assert torch.linalg.slogdet(point).sign == 1
    assert SO.point_error(point) < 2e-6
    reflected = point.clone()
    reflected[:, 0] *= -1
    assert SO.point_error(reflected) == 2
    assert torch.linalg.slogdet(SO.projx(1.5 * reflected)).sign == 1
