import dataclasses
import functools

import pytest
import torch

from jpmhc import autodiff
from tests.autodiff.equations import arguments, error, layer, unrolled

SOLVERS = [
    autodiff.Picard(tol=1e-13, max_steps=300),
    autodiff.Picard(damping=0.7, tol=1e-13, max_steps=300),
    autodiff.Anderson(tol=1e-13),
    autodiff.Anderson(memory=2, damping=0.5, regularisation=1e-6, tol=1e-13, max_steps=300),
    autodiff.Broyden(tol=1e-13),
    autodiff.Broyden(memory=3, tol=1e-13, max_steps=300),
    autodiff.Newton(tol=1e-13),
    autodiff.Newton(autodiff.GMRES(), tol=1e-13),
]
every_solver = pytest.mark.parametrize("solver", SOLVERS, ids=str)


def solve(solver, weight, x, bias, **options):
    return autodiff.fixed_point(layer, torch.zeros_like(x), weight, x, bias, solver=solver, **options)


@every_solver
def test_every_solver_reaches_the_solution(solver):
    weight, x, bias = arguments(size=6, batch=5, scale=0.9)
    solution = solve(solver, weight, x, bias)
    assert error(solution.value, unrolled(weight, x, bias, steps=600)) < 1e-11
    assert solution.converged.all()
    assert (solution.residual <= 1e-13).all()


@every_solver
def test_a_batch_gives_what_its_samples_give_one_by_one(solver):
    weight, x, bias = arguments(size=6, batch=5, scale=0.9)
    x[0], x[4] = 0, 20  # slow and fast neighbours
    together = solve(solver, weight, x, bias)
    assert together.steps.unique().numel() > 1
    for sample in range(5):
        alone = solve(solver, weight, x[sample : sample + 1], bias)
        assert error(together.value[sample], alone.value[0]) < 1e-12
        assert abs(int(together.steps[sample]) - int(alone.steps)) <= 1


@every_solver
def test_a_converged_sample_stops_moving(solver):
    weight, x, bias = arguments(size=6, batch=5, scale=0.9)
    x[0] = 20  # saturates: converges in a few steps
    solver = dataclasses.replace(solver, tol=1e-3)
    early = solve(solver, weight, x[:1], bias)
    late = solve(dataclasses.replace(solver, max_steps=60), weight, x, bias, check="none")
    assert late.steps[0] == early.steps[0]
    assert late.steps.max() > early.steps[0]
    torch.testing.assert_close(late.value[0], early.value[0], rtol=1e-13, atol=1e-13)


@every_solver
def test_a_fixed_number_of_steps_gives_what_early_stopping_gives(solver):
    inputs = arguments(size=6, batch=5)
    stopped, fixed = solve(solver, *inputs), solve(solver, *inputs, check="none")
    assert torch.equal(stopped.value, fixed.value)
    assert torch.equal(stopped.steps, fixed.steps)
    assert torch.equal(stopped.residual, fixed.residual)


@pytest.mark.parametrize(
    "solver",
    [
        autodiff.Anderson(tol=1e-12, max_steps=200),
        autodiff.Broyden(tol=1e-12, max_steps=200),
        autodiff.Newton(tol=1e-12),
    ],
    ids=str,
)
def test_accelerated_solvers_need_no_contraction(solver):
    # z = A z + b with eigenvalues of A at -3 and 2: the plain iteration diverges.
    basis = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).Q
    A = basis @ torch.diag(torch.tensor([-3, 2, 0.5, -0.5, 0.9, 0], dtype=torch.float64)) @ basis.T
    b = torch.ones(1, 6, dtype=torch.float64)
    solution = autodiff.fixed_point(lambda z: z @ A.T + b, torch.zeros_like(b), solver=solver)
    assert error(solution.value, torch.linalg.solve(torch.eye(6) - A, b.T).T) < 1e-10
    with pytest.raises(autodiff.NotConvergedError):
        autodiff.fixed_point(lambda z: z @ A.T + b, torch.zeros_like(b), solver=autodiff.Picard(tol=1e-12))


def test_anderson_ends_an_affine_problem_in_as_many_steps_as_it_has_dimensions():
    weight = arguments(size=4)[0]
    b = torch.ones(1, 4, dtype=torch.float64)
    solver = autodiff.Anderson(memory=4, regularisation=0.0, tol=1e-9)
    solution = autodiff.fixed_point(lambda z: z @ weight.T + b, torch.zeros_like(b), solver=solver)
    assert solution.steps.item() <= 4 + 3


@pytest.mark.parametrize(
    "solver",
    [
        autodiff.Anderson(tol=1e-11, max_steps=150),
        *(autodiff.Broyden(memory=memory, tol=1e-11, max_steps=150) for memory in (4, 16)),
    ],
    ids=str,
)
def test_a_rotation_is_no_worse_than_plain_iteration(solver):
    # All eigenvalues on a circle: nothing to accelerate, and a low-rank memory is full long before the end.
    generator = torch.Generator().manual_seed(0)
    weight = 0.9 * torch.linalg.qr(torch.randn(32, 32, generator=generator, dtype=torch.float64)).Q
    x = 0.5 * torch.randn(64, 32, generator=generator, dtype=torch.float64)
    fn = functools.partial(lambda z, x: torch.tanh(z @ weight.T + x), x=x)
    plain = autodiff.fixed_point(fn, torch.zeros_like(x), solver=autodiff.Picard(tol=1e-11, max_steps=150))
    solution = autodiff.fixed_point(fn, torch.zeros_like(x), solver=solver)
    assert solution.steps.max() <= plain.steps.max()


def test_newton_converges_quadratically():
    solution = solve(autodiff.Newton(tol=1e-13), *arguments(size=6, batch=5))
    assert solution.steps.max() <= 7


def test_damping_tames_an_oscillation():
    # The plain iteration of z = 1 - z^3 ... has slope below -1 at the solution 0.6823.
    def fn(z):
        return 1 - z**3

    z0 = torch.full((1, 1), 0.5, dtype=torch.float64)
    with pytest.raises(autodiff.NotConvergedError):
        autodiff.fixed_point(fn, z0, solver=autodiff.Picard())
    solution = autodiff.fixed_point(fn, z0, solver=autodiff.Picard(damping=0.5, tol=1e-12))
    assert solution.value.item() == pytest.approx(0.6823278038280193, abs=1e-11)


@every_solver
def test_float32_reaches_its_own_precision(solver):
    weight, x, bias = (t.float() for t in arguments(size=6, batch=5))
    solution = solve(dataclasses.replace(solver, tol=1e-6), weight, x, bias)
    exact = unrolled(weight.double(), x.double(), bias.double())
    assert solution.value.dtype == torch.float32
    assert error(solution.value.double(), exact) < 1e-5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: autodiff.Picard(damping=0), r"damping: expected .* in \(0, 1\], got 0"),
        (lambda: autodiff.Anderson(damping=1.5), "damping"),
        (lambda: autodiff.Anderson(memory=0), "memory: expected a positive integer, got 0"),
        (lambda: autodiff.Anderson(regularisation=-1.0), "regularisation"),
        (lambda: autodiff.Broyden(max_steps=2.5), "max_steps: expected a positive integer, got 2.5"),
        (lambda: autodiff.Newton(tol=0.0), "tol: expected a positive number"),
        (lambda: autodiff.Picard(tol=float("nan")), "tol: expected a positive number"),
    ],
)
def test_options_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
