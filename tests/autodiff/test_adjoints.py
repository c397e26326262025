import itertools

import pytest
import torch

from jpmhc import autodiff
from tests.autodiff.equations import arguments, error, gradients, layer, loss, unrolled

EXACT = autodiff.Anderson(tol=1e-13, max_steps=200)


def solve(adjoint, solver=EXACT, check="raise"):
    return lambda weight, x, bias: (
        autodiff.fixed_point(
            layer, torch.zeros_like(x), weight, x, bias, solver=solver, adjoint=adjoint, check=check
        ).value
    )


def truth():
    return gradients(lambda *a: loss(unrolled(*a)), arguments())


@pytest.mark.parametrize(
    "adjoint",
    [
        autodiff.Implicit(),
        autodiff.Implicit(autodiff.GMRES(tol=1e-13)),
        autodiff.Implicit(autodiff.Neumann(steps=150)),
        autodiff.Implicit(autodiff.Dense()),
        autodiff.Unrolled(),
        autodiff.PhantomGradient(steps=60),
        autodiff.PhantomGradient(steps=120, damping=0.6),
    ],
    ids=str,
)
def test_every_adjoint_gives_the_gradient_of_the_solution(adjoint):
    # Unrolled differentiates the iteration: to the accuracy of the last iterates rather than to round-off.
    f = solve(adjoint, autodiff.Picard(tol=1e-14, max_steps=300))
    assert error(gradients(lambda *a: loss(f(*a)), arguments()), truth()) < 1e-9
    weight, x, bias = arguments()
    hessian = torch.func.hessian(lambda b: loss(unrolled(weight, x, b)))(bias)
    found = torch.func.hessian(lambda b: loss(f(weight, x, b)))(bias)
    assert error(found, hessian) < 1e-8


@pytest.mark.parametrize("solver", [autodiff.Anderson(tol=1e-13), autodiff.Broyden(tol=1e-13)], ids=str)
def test_unrolled_goes_through_every_solver(solver):
    f = solve(autodiff.Unrolled(), solver)
    # The derivative of a superlinear iteration lags behind its value.
    assert error(gradients(lambda *a: loss(f(*a)), arguments()), truth()) < 1e-5


@pytest.mark.parametrize("linear_solver", [autodiff.Dense(), autodiff.GMRES()], ids=str)
def test_unrolled_goes_through_newton(linear_solver):
    f = solve(autodiff.Unrolled(), autodiff.Newton(linear_solver, tol=1e-13))
    assert error(gradients(lambda *a: loss(f(*a)), arguments()), truth()) < 1e-8


@pytest.mark.parametrize("solver", [autodiff.Anderson(tol=1e-13), autodiff.Newton(tol=1e-14)], ids=str)
def test_unrolled_second_derivatives_in_every_order_of_modes(solver):
    # A small linear solve a step: torch's own is wrong when its forward mode is differentiated again.
    weight, x, bias = arguments(size=2)
    f = solve(autodiff.Unrolled(), solver)
    jacfwd, jacrev = torch.func.jacfwd, torch.func.jacrev
    expected = jacrev(jacrev(lambda b: loss(unrolled(weight, x, b))))(bias)
    for outer, inner in itertools.product((jacfwd, jacrev), repeat=2):
        assert error(outer(inner(lambda b: loss(f(weight, x, b))))(bias), expected) < 1e-4


def test_unrolled_is_the_derivative_of_the_steps_that_were_taken():
    f = solve(autodiff.Unrolled(), autodiff.Picard(max_steps=4), "none")

    # max_steps evaluations end in a residual, so one fewer steps are taken.
    def three(*a):
        return unrolled(*a, steps=3)

    assert torch.equal(f(*arguments()), three(*arguments()))
    found = gradients(lambda *a: loss(f(*a)), arguments())
    assert error(found, gradients(lambda *a: loss(three(*a)), arguments())) < 1e-14


def test_only_unrolled_passes_a_derivative_to_the_start():
    weight, x, bias = arguments()
    for adjoint, passes in ((autodiff.Unrolled(), True), (autodiff.Implicit(), False)):
        z0 = torch.zeros_like(x).requires_grad_()
        options = {"solver": autodiff.Picard(max_steps=3), "adjoint": adjoint, "check": "none"}
        value = autodiff.fixed_point(layer, z0, weight, x, bias, **options).value
        assert value.requires_grad == passes


def test_unrolled_reads_residuals_through_vmap():
    weight, x, bias = arguments()
    xs = torch.stack([x, 0.5 * x])
    f = solve(autodiff.Unrolled(), autodiff.Picard(tol=1e-13, max_steps=300))
    found = torch.func.vmap(lambda x: f(weight, x, bias))(xs)
    assert error(found, torch.stack([unrolled(weight, x, bias) for x in xs])) < 1e-11
    short = solve(autodiff.Unrolled(), autodiff.Picard(max_steps=3))
    with pytest.raises(autodiff.NotConvergedError):
        torch.func.vmap(lambda x: short(weight, x, bias))(xs)


def test_phantom_gradient_is_the_truncated_series_at_the_solution():
    weight, x, bias = arguments()
    z = unrolled(weight, x, bias)
    J = torch.func.vmap(lambda z, x: torch.func.jacrev(layer)(z, weight, x, bias))(z, x)
    partial = torch.func.vmap(lambda z, x: torch.func.jacrev(layer, argnums=3)(z, weight, x, bias))(z, x)
    expected = partial + J @ partial + J @ J @ partial
    found = torch.func.jacrev(solve(autodiff.PhantomGradient(steps=3)), argnums=2)(weight, x, bias)
    assert error(found, expected) < 1e-10


def test_phantom_gradients_improve_with_their_steps():
    errors = []
    for steps in (1, 3, 9, 27):
        f = solve(autodiff.PhantomGradient(steps))
        errors.append(error(gradients(lambda *a, f=f: loss(f(*a)), arguments()), truth()))
    assert all(later < 0.7 * earlier for earlier, later in itertools.pairwise(errors))


@pytest.mark.parametrize("adjoint", [autodiff.Unrolled(), autodiff.PhantomGradient(40)], ids=str)
def test_captures_reach_every_adjoint(adjoint):
    def captured(weight, x, bias):
        z0 = torch.zeros(x.shape, dtype=x.dtype)
        solver = autodiff.Picard(tol=1e-13, max_steps=300)
        return autodiff.fixed_point(lambda z: layer(z, weight, x, bias), z0, solver=solver, adjoint=adjoint).value

    assert error(gradients(lambda *a: loss(captured(*a)), arguments()), truth()) < 1e-9
    found = torch.func.grad(lambda *a: loss(captured(*a)), argnums=(0, 1, 2))(*arguments())
    assert error(found, truth()) < 1e-9


@pytest.mark.parametrize(
    "make", [lambda: autodiff.PhantomGradient(0), lambda: autodiff.PhantomGradient(3, damping=2.0)]
)
def test_options_out_of_range_are_refused(make):
    with pytest.raises(ValueError, match="expected"):
        make()
