import math

import pytest
import torch

from jpmhc.manifolds import Grassmann, SpecialOrthogonal
from tests.manifolds.cases import material

GRASSMANN = Grassmann()
D = {"dtype": torch.float64}


def turned(x, seed=0):
    r = SpecialOrthogonal().random(x.shape[-1], x.shape[-1], generator=torch.Generator().manual_seed(seed), **D)
    return x @ r, r


@pytest.mark.parametrize("retraction", Grassmann.retractions)
def test_maps_do_not_depend_on_the_representative(retraction):
    manifold = Grassmann(retraction)
    x, u, v, _ = material(manifold, (6, 3), length=0.7)
    xr, r = turned(x)
    y, moved = manifold.retr_transp(x, u, v)
    yr, moved_r = manifold.retr_transp(xr, u @ r, v @ r)
    torch.testing.assert_close(manifold.projector(yr), manifold.projector(y), rtol=0, atol=1e-13)
    torch.testing.assert_close(moved_r @ yr.mT, moved @ y.mT, rtol=0, atol=1e-13)
    torch.testing.assert_close(manifold.logmap(xr, yr), manifold.logmap(x, y) @ r, rtol=0, atol=1e-12)


def test_geodesic_has_the_principal_angles_of_its_velocity():
    x, u, _, _ = material(GRASSMANN, (7, 3), length=1.2)
    angles = torch.linalg.svdvals(u).flip(-1)
    y = GRASSMANN.expmap(x, u)
    torch.testing.assert_close(GRASSMANN.principal_angles(x, y), angles, rtol=0, atol=1e-13)
    torch.testing.assert_close(GRASSMANN.dist(x, y), angles.norm(dim=-1), rtol=0, atol=1e-13)


def test_geodesic_is_the_textbook_one():
    x, u, _, _ = material(GRASSMANN, (6, 2), length=2.0)
    q, s, vt = torch.linalg.svd(u, full_matrices=False)
    expected = x @ vt.mT @ torch.diag_embed(s.cos()) @ vt + q @ torch.diag_embed(s.sin()) @ vt
    torch.testing.assert_close(GRASSMANN.expmap(x, u), expected, rtol=0, atol=1e-13)


def test_parallel_transport_agrees_along_and_between():
    x, u, v, _ = material(GRASSMANN, (6, 2), length=0.9)
    y, moved = GRASSMANN.expmap_transp(x, u, v)
    torch.testing.assert_close(GRASSMANN.transp(x, y, v), moved, rtol=0, atol=1e-12)
    assert (GRASSMANN.norm(y, moved) - 0.9).abs().max() < 1e-13


def test_distance_of_orthogonal_subspaces_is_finite():
    eye = torch.eye(4, **D)
    assert GRASSMANN.dist(eye[:, :2], eye[:, 2:]).item() == pytest.approx(math.pi / math.sqrt(2))


def test_second_derivatives_are_right_at_equal_angles():
    x = GRASSMANN.origin(4, 2, **D)
    u = torch.zeros(4, 2, **D)
    u[2, 0] = u[3, 1] = 0.3  # both angles equal
    y = GRASSMANN.expmap(x, u)
    torch.autograd.gradcheck(lambda y: GRASSMANN.dist2(x, GRASSMANN.projx(y)), y.clone().requires_grad_())
    torch.autograd.gradgradcheck(lambda y: GRASSMANN.dist2(x, GRASSMANN.projx(y)), y.clone().requires_grad_())
    torch.autograd.gradgradcheck(lambda y: GRASSMANN.dist2(x, GRASSMANN.projx(y)), x.clone().requires_grad_())


def test_dominant_subspace_is_critical_and_its_hessian_has_the_gaps_as_eigenvalues():
    diagonal = torch.tensor([5.0, 4.0, 2.0, 1.0, 0.0], **D)
    a = torch.diag(diagonal)
    x = GRASSMANN.origin(5, 2, **D)
    egrad = -a @ x  # of -tr(x^T a x) / 2
    assert GRASSMANN.egrad2rgrad(x, egrad).abs().max() == 0
    for row in (2, 3, 4):
        for column in (0, 1):
            u = torch.zeros(5, 2, **D)
            u[row, column] = 1
            hessian = GRASSMANN.ehess2rhess(x, egrad, -a @ u, u)
            torch.testing.assert_close(hessian, (diagonal[column] - diagonal[row]) * u)


def test_squared_distance_is_the_square_of_the_distance_and_smooth():
    x, y = GRASSMANN.random(2, 20, 6, 3, generator=torch.Generator().manual_seed(0), **D)
    torch.testing.assert_close(GRASSMANN.dist2(x, y), GRASSMANN.dist(x, y) ** 2, rtol=1e-12, atol=0)
    first, second = torch.eye(3, **D)[:, :1], torch.eye(3, **D)[:, 1:2]
    assert GRASSMANN.dist2(first, second).item() == pytest.approx((math.pi / 2) ** 2)
    assert torch.func.grad(lambda y: GRASSMANN.dist2(first, y))(second).isfinite().all()
    x, u, _, _ = material(GRASSMANN, (5, 2), batch=(), length=1.0)
    along = torch.func.grad(torch.func.grad(lambda t: GRASSMANN.dist2(x, GRASSMANN.retr(x, t * u))))
    torch.testing.assert_close(along(torch.zeros((), **D)), torch.tensor(2.0, **D))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(5, 2), (6, 3), (4, 1)])
def test_distance_of_equal_points_is_zero_and_has_no_gradient(dtype, shape):
    x = GRASSMANN.random(300, *shape, dtype=dtype, generator=torch.Generator().manual_seed(0))
    for function in (GRASSMANN.dist, GRASSMANN.dist2):
        ends = x.clone().requires_grad_(), x.clone().requires_grad_()
        distance = function(*ends)
        assert not distance.any()
        assert not any(gradient.any() for gradient in torch.autograd.grad(distance.sum(), ends))
        assert not torch.func.jvp(lambda y: function(x, y), (x,), (torch.ones_like(x),))[1].any()  # noqa: B023


@pytest.mark.parametrize("length", [1e-14, 1e-10, 1e-6, 0.1])
def test_distance_of_near_points_has_the_direction_for_its_gradient(length):
    x, u, _, _ = material(GRASSMANN, (6, 3), batch=(50,), length=1.0)
    y, away = GRASSMANN.expmap_transp(x, length * u, u)
    y = y.requires_grad_()
    distance = GRASSMANN.dist(x, y)
    (gradient,) = torch.autograd.grad(distance.sum(), y)
    noise = 1e-15 / length  # of points that hold sixteen digits
    torch.testing.assert_close(distance, torch.full_like(distance, length), rtol=20 * noise, atol=0)
    torch.testing.assert_close(GRASSMANN.proju(y, gradient), away, rtol=0, atol=1e-12 + 20 * noise)
    yr, r = turned(y.detach())  # of another representative it is the same vector
    (gradient,) = torch.autograd.grad(GRASSMANN.dist(x, yr.requires_grad_()).sum(), yr)
    assert GRASSMANN.norm(yr, GRASSMANN.proju(yr, gradient)).max() <= 1 + 1e-9
    if length > 1e-12:
        torch.testing.assert_close(GRASSMANN.proju(yr, gradient), away @ r, rtol=0, atol=1e-12 + 20 * noise)
