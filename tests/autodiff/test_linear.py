import pytest
import torch

from jpmhc import autodiff
from jpmhc.autodiff.convergence import Watch

SILENT = Watch("none", "", "")
STRICT = Watch("raise", "solve", "give up")


def systems(size=6, batch=5, radius=0.8, dtype=torch.float64):
    """Matrices with a given spectral norm and right sides."""
    generator = torch.Generator().manual_seed(0)
    J = torch.randn(batch, size, size, generator=generator, dtype=torch.float64)
    J = J * (radius / torch.linalg.matrix_norm(J, 2)[:, None, None])
    rhs = torch.randn(batch, size, generator=generator, dtype=torch.float64)
    return J.to(dtype), rhs.to(dtype)


def product(J):
    return lambda x: (J @ x.unsqueeze(-1)).squeeze(-1)


def exact(J, rhs):
    return torch.linalg.solve(torch.eye(J.shape[-1], dtype=torch.float64) - J.double(), rhs.double())


every_solver = pytest.mark.parametrize(
    "solver", [autodiff.GMRES(), autodiff.Neumann(150), autodiff.Dense()], ids=lambda s: type(s).__name__
)


@every_solver
@pytest.mark.parametrize(("dtype", "accuracy"), [(torch.float64, 1e-9), (torch.float32, 2e-5)])
def test_every_solver_solves_every_sample(solver, dtype, accuracy):
    J, rhs = systems(dtype=dtype)
    x, residual = solver.solve(product(J), rhs, STRICT)
    assert x.dtype == dtype
    assert residual.shape == (5,)
    assert ((x - exact(J, rhs)).norm(dim=-1) <= accuracy * exact(J, rhs).norm(dim=-1)).all()


@every_solver
def test_a_sample_does_not_notice_its_neighbours(solver):
    J, rhs = systems()
    J[1] *= 0.01
    J[2] = 0
    rhs[3] = 0
    rhs[4] *= 1e-30
    together, _ = solver.solve(product(J), rhs, STRICT)
    for sample in range(5):
        alone, _ = solver.solve(product(J[sample : sample + 1]), rhs[sample : sample + 1], STRICT)
        torch.testing.assert_close(together[sample], alone[0], rtol=1e-12, atol=0)
    assert (together[3] == 0).all()


@every_solver
@pytest.mark.parametrize(
    ("dtype", "scale"),
    [(torch.float32, 1e-24), (torch.float32, 1e22), (torch.float64, 1e-170), (torch.float64, 1e170)],
)
def test_the_scale_of_the_right_side_passes_through(solver, dtype, scale):
    J, rhs = systems(dtype=dtype)
    rhs[2] = 0
    scales = torch.tensor([scale, 1, scale, scale, scale], dtype=dtype).unsqueeze(-1)
    x, residual = solver.solve(product(J), rhs * scales, STRICT)
    truth = exact(J, rhs)
    assert (residual <= (1e-6 if dtype == torch.float32 else 1e-10)).all()
    assert ((x.double() / scales.double() - truth).norm(dim=-1) <= 2e-5 * truth.norm(dim=-1)).all()


@pytest.mark.parametrize("solver", [autodiff.GMRES(max_steps=40), autodiff.Dense()], ids=lambda s: type(s).__name__)
def test_maps_that_do_not_contract(solver):
    J, rhs = systems(size=20, radius=5.0)
    x, _ = solver.solve(product(J), rhs, STRICT)
    assert ((x - exact(J, rhs)).norm(dim=-1) <= 1e-8 * exact(J, rhs).norm(dim=-1)).all()


def test_gmres_survives_a_stagnation_to_the_last_step():
    # I - J is a cyclic shift: the residual does not move before step D, and the direction r is orthogonal to (I - J) r.
    shift = torch.eye(6, dtype=torch.float64).roll(1, 0)
    J = torch.eye(6, dtype=torch.float64) - shift
    rhs = torch.eye(6, dtype=torch.float64)[:1]
    x, residual = autodiff.GMRES().solve(product(J), rhs, STRICT)
    torch.testing.assert_close(x, exact(J, rhs.T).T)
    _, stalled = autodiff.GMRES(max_steps=5).solve(product(J), rhs, SILENT)
    assert residual.item() < 1e-12
    assert stalled.item() > 0.4


def test_gmres_minimises_the_residual_over_the_krylov_space():
    J, rhs = systems(size=8, batch=1, radius=3.0)
    A = torch.eye(8, dtype=torch.float64) - J[0]
    for steps in range(1, 8):
        x, _ = autodiff.GMRES(max_steps=steps).solve(product(J), rhs, SILENT)
        krylov = torch.stack([torch.linalg.matrix_power(A, k) @ rhs[0] for k in range(steps)], dim=-1)
        best = torch.linalg.lstsq(A @ krylov, rhs[0].unsqueeze(-1), driver="gelsd").solution
        smallest = (rhs[0] - A @ (krylov @ best)[:, 0]).norm()
        assert (rhs[0] - A @ x[0]).norm() <= smallest * (1 + 1e-8)


def test_gmres_on_badly_conditioned_systems():
    # Condition numbers to 1e8: the backward error stays at round-off.
    generator = torch.Generator().manual_seed(1)
    Q = torch.linalg.qr(torch.randn(4, 30, 30, generator=generator, dtype=torch.float64)).Q
    A = Q * torch.logspace(0, -8, 30, dtype=torch.float64) @ Q.mT
    rhs = torch.randn(4, 30, generator=generator, dtype=torch.float64)
    _, residual = autodiff.GMRES(max_steps=30).solve(product(torch.eye(30) - A), rhs, STRICT)
    assert residual.max() < 1e-10


def test_neumann_takes_the_terms_it_is_asked_for():
    J, rhs = systems()
    x, _ = autodiff.Neumann(3).solve(product(J), rhs, SILENT)
    apply = product(J)
    torch.testing.assert_close(x, rhs + apply(rhs) + apply(apply(rhs)))


@every_solver
def test_the_residual_is_the_backward_error(solver):
    J, rhs = systems()
    x, residual = solver.solve(product(J), rhs, SILENT)
    error = (rhs - x + product(J)(x)).norm(dim=-1) / (rhs.norm(dim=-1) + x.norm(dim=-1))
    torch.testing.assert_close(residual, error, rtol=1e-3, atol=1e-15)


@every_solver
def test_a_singular_sample_is_reported_and_the_others_are_solved(solver):
    J, rhs = systems()
    J[2] = torch.eye(6)
    with pytest.raises(autodiff.NotConvergedError, match="sample 2"):
        solver.solve(product(J), rhs, STRICT)
    x, residual = solver.solve(product(J), rhs, SILENT)
    others = [0, 1, 3, 4]
    torch.testing.assert_close(x[others], exact(J[others], rhs[others]), rtol=1e-8, atol=1e-8)
    assert not residual[2] <= 1e-3


@pytest.mark.parametrize(
    "make", [lambda: autodiff.GMRES(tol=-1.0), lambda: autodiff.GMRES(max_steps=0), lambda: autodiff.Neumann(0)]
)
def test_options_out_of_range_are_refused(make):
    with pytest.raises(ValueError, match="expected a positive"):
        make()
