import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jpmhc import autodiff, manifolds
from tests.manifolds.cases import material

BIRKHOFF = manifolds.Birkhoff()


def near_identity(n, e, dtype):
    return ((1 - e) * torch.eye(n, dtype=torch.float64) + e / n).to(dtype)


def unit_tangents(x, count, seed=0):
    noise = torch.randn(count, *x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(seed))
    u = BIRKHOFF.egrad2rgrad(x, noise / x.sqrt())
    return u / BIRKHOFF.norm(x, u, keepdim=True)


def tangent_basis(n):
    """All matrices with zero sums, by definition: the null space of the sums."""
    sums = torch.cat([torch.kron(torch.eye(n), torch.ones(1, n)), torch.kron(torch.ones(1, n), torch.eye(n))]).double()
    return torch.linalg.svd(sums).Vh[2 * n - 1 :].view(-1, n, n)


@pytest.mark.parametrize("n", [2, 3, 5])
def test_gradient_is_the_least_squares_solution_on_a_basis_of_the_tangent_space(n):
    x = BIRKHOFF.random(n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(n))
    egrad = torch.randn(n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(n + 1))
    basis = tangent_basis(n)
    gram = torch.einsum("aij,bij,ij->ab", basis, basis, 1 / x)
    expected = torch.einsum("a,aij->ij", torch.linalg.solve(gram, torch.einsum("aij,ij->a", basis, egrad)), basis)
    torch.testing.assert_close(BIRKHOFF.egrad2rgrad(x, egrad), expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize(("dtype", "tol"), [(torch.float32, 1e-6), (torch.float64, 1e-13)])
@pytest.mark.parametrize("n", [2, 4, 8, 32, 64])
def test_sums_are_right(n, dtype, tol):
    generator = torch.Generator().manual_seed(0)
    x = BIRKHOFF.random(2048 // n, n, n, dtype=dtype, generator=generator)
    u = BIRKHOFF.egrad2rgrad(x, torch.randn(x.shape, dtype=dtype, generator=generator))
    for y in (x, BIRKHOFF.retr(x, u), BIRKHOFF.projx(x * (1 + u.abs()))):
        assert BIRKHOFF.point_error(y).max() <= tol


@pytest.mark.parametrize("n", [3, 4, 8])
def test_every_unit_step_from_next_to_a_vertex_is_finite_and_feasible_in_float32(n):
    x = near_identity(n, 1e-6, torch.float32)
    u = unit_tangents(x, 500)
    for length in (1e-3, 0.1, 1.0):
        y = BIRKHOFF.retr(x.expand_as(u), length * u)
        assert y.isfinite().all()
        assert (y > 0).all()
        assert BIRKHOFF.point_error(y).max() <= 1e-6


def test_the_step_next_to_a_vertex_is_of_first_order():
    x = near_identity(4, 1e-6, torch.float64)
    u = unit_tangents(x, 50)
    for t in (1e-5, 1e-6):
        rate = (BIRKHOFF.retr(x.expand_as(u), t * u) - x) / t
        assert BIRKHOFF.norm(x, rate - u).max() < 1e3 * t
    # In float32 the diagonal near 1 resolves 6e-8, and no sum can fix the other entries better than that.
    step = BIRKHOFF.retr(x.float().expand(50, 4, 4), 1e-3 * u.float())
    torch.testing.assert_close(step.double(), BIRKHOFF.retr(x.expand_as(u), 1e-3 * u), rtol=0, atol=3e-7)


def test_a_matrix_does_not_depend_on_its_neighbours():
    easy = BIRKHOFF.origin(4, 4)
    hard = near_identity(4, 1e-6, torch.float32)
    u = torch.stack([unit_tangents(easy, 1)[0] / 10, unit_tangents(hard, 1)[0]])
    pair = BIRKHOFF.retr(torch.stack([easy, hard]), u)
    alone = torch.stack([BIRKHOFF.retr(easy[None], u[:1])[0], BIRKHOFF.retr(hard[None], u[1:])[0]])
    torch.testing.assert_close(pair, alone, rtol=0, atol=2e-7)


def test_transport_to_the_same_point_keeps_momentum_and_none_is_lengthened():
    x = BIRKHOFF.random(64, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    u, v = unit_tangents(x, 2) / 4
    torch.testing.assert_close(BIRKHOFF.transp(x, x, v), v, rtol=0, atol=1e-12)
    y, moved = BIRKHOFF.retr_transp(x, u, v)
    assert (BIRKHOFF.norm(y, moved) <= BIRKHOFF.norm(x, v) * (1 + 1e-12)).all()


def test_exponential_scaling_from_the_centre_is_the_sinkhorn_mixer():
    birkhoff = manifolds.Birkhoff("sinkhorn")
    raw = torch.randn(5, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    centre = birkhoff.origin(5, 4, 4, dtype=torch.float64)
    mixed = birkhoff.retr(centre, birkhoff.proju(centre, raw))
    torch.testing.assert_close(mixed, autodiff.sinkhorn(4 * raw), rtol=0, atol=1e-14)


def test_projection_is_the_known_nearest_matrix_in_divergence():
    generator = torch.Generator().manual_seed(0)
    optimum = BIRKHOFF.random(4, 4, dtype=torch.float64, generator=generator)
    scales = torch.rand(2, 4, dtype=torch.float64, generator=generator) + 0.5
    given_matrix = optimum * scales[0, :, None] * scales[1]
    torch.testing.assert_close(BIRKHOFF.projx(given_matrix), optimum, rtol=0, atol=1e-13)


@given(st.integers(2, 6), st.floats(-12, 0), st.floats(-3, 0), st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_steps_stay_feasible_from_anywhere(n, log_e, log_length, seed):
    x = near_identity(n, 10**log_e, torch.float64)
    u = 10**log_length * unit_tangents(x, 3, seed)
    y = BIRKHOFF.retr(x.expand_as(u), u)
    assert (y > 0).all()
    assert BIRKHOFF.point_error(y).max() <= 1e-13


@pytest.mark.parametrize("retraction", ["root", "sinkhorn"])
@pytest.mark.parametrize("n", [17, 33, 64])
@pytest.mark.parametrize("length", [1e-3, 0.03, 0.1, 0.3])
def test_sums_of_larger_matrices_are_right_after_short_steps_too(retraction, n, length):
    birkhoff = manifolds.Birkhoff(retraction)
    x, u, _, _ = material(birkhoff, (n, n), batch=(16,), dtype=torch.float32, length=length)
    assert birkhoff.point_error(birkhoff.retr(x, u)).max() <= 1.5e-6
