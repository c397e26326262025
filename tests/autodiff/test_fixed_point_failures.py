"""What goes wrong in a fixed point and how it is told: no convergence, NaN, wrong arguments and outputs."""

import contextlib
import doctest
import sys
import warnings

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from jpmhc import autodiff
from tests.autodiff.equations import EXACT, arguments, error, given, gradients, layer, loss, unrolled


def test_not_converged_raises_with_the_worst_sample():
    rate = torch.tensor([[0.1], [0.99], [0.5]])
    with pytest.raises(
        autodiff.NotConvergedError, match=r"10 steps: 2 of 3 samples.*worst sample 1 .*Newton"
    ) as caught:
        autodiff.fixed_point(
            lambda z, rate: rate * z + 1, torch.zeros(3, 1), rate, solver=autodiff.Picard(tol=1e-5, max_steps=10)
        )
    assert caught.value.steps == 10
    assert caught.value.sample == (1,)
    # z after nine steps is (1 - 0.99^9) / 0.01, and a step adds 0.99^9.
    assert caught.value.residual == pytest.approx(0.99**9 / (1 + (1 - 0.99**9) / 0.01), rel=1e-4)


def test_the_worst_sample_is_named_in_every_batch_dimension_and_mapped_axis():
    x = torch.zeros(2, 3, 1)
    x[1, 2] = 1

    def solve(x):
        return autodiff.fixed_point(
            lambda z, x: z + x, torch.zeros_like(x), x, solver=autodiff.Picard(max_steps=3), batch_dims=x.dim() - 1
        ).value

    with pytest.raises(autodiff.NotConvergedError, match=r"1 of 6 samples.*worst sample \(1, 2\)"):
        solve(x)
    with pytest.raises(autodiff.NotConvergedError) as caught:
        torch.func.vmap(solve)(x)
    assert caught.value.sample == (1, 2)


def test_warn_warns_once_and_none_says_nothing():
    weight, x, bias = arguments()
    short = autodiff.Picard(max_steps=2)
    with pytest.warns(autodiff.ConvergenceWarning, match="did not converge in 2 steps") as record:
        given(weight, x, bias, solver=short, check="warn")
    assert len(record) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        solution = autodiff.fixed_point(layer, torch.zeros_like(x), weight, x, bias, solver=short, check="none")
    assert not solution.converged.any()
    assert (solution.steps == 2).all()


@pytest.mark.parametrize(
    ("solver", "evaluations"),
    [(autodiff.Picard(max_steps=17), 17), (autodiff.Newton(max_steps=17), 33)],
    ids=lambda s: type(s).__name__,
)
def test_none_evaluates_a_fixed_number_of_times_and_looks_at_both_ends(solver, evaluations):
    weight, x, bias = arguments()
    calls = []

    def counted(z):
        calls.append(1)
        return layer(z, weight, x, bias)

    autodiff.fixed_point(counted, unrolled(weight, x, bias), solver=solver, check="none")
    assert len(calls) == evaluations + 2


class NoReading(TorchDispatchMode):
    """Refuses what would wait for a device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func not in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default), func
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "solver",
    [autodiff.Picard(), autodiff.Anderson(), autodiff.Broyden(), autodiff.Newton()],
    ids=lambda s: type(s).__name__,
)
@pytest.mark.parametrize(
    "linear_solver", [autodiff.GMRES(), autodiff.Neumann(), autodiff.Dense()], ids=lambda s: type(s).__name__
)
def test_none_never_reads_the_device(solver, linear_solver):
    weight, x, bias = (t.requires_grad_() for t in arguments())
    with NoReading():
        options = {"solver": solver, "adjoint": autodiff.Implicit(linear_solver), "check": "none"}
        found = torch.autograd.grad(given(weight, x, bias, **options).sum(), (weight, x, bias))
    assert all(gradient.isfinite().all() and gradient.abs().max() > 0 for gradient in found)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_infinity_stop_at_once_and_name_the_step(bad):
    calls = []

    def breaks(z):
        calls.append(1)
        return torch.where(torch.arange(3)[:, None] == 2, bad, 0.5 * z + 1) if len(calls) > 4 else 0.5 * z + 1

    with pytest.raises(autodiff.NotConvergedError, match="NaN or infinity at step 4 in sample 2"):
        autodiff.fixed_point(breaks, torch.zeros(3, 2), solver=autodiff.Picard())
    assert len(calls) == 5
    calls.clear()
    with pytest.warns(autodiff.ConvergenceWarning, match="met NaN or infinity at step 4"):
        solution = autodiff.fixed_point(breaks, torch.zeros(3, 2), solver=autodiff.Picard(), check="warn")
    assert solution.steps.tolist() == [4, 4, 4]
    assert not solution.converged.any()


def test_nan_in_one_sample_leaves_the_others_alone():
    weight, x, bias = arguments()
    x[1] = torch.nan
    for solver in (autodiff.Picard(), autodiff.Anderson(), autodiff.Broyden(), autodiff.Newton()):
        solution = autodiff.fixed_point(layer, torch.zeros_like(x), weight, x, bias, solver=solver, check="none")
        assert solution.converged.tolist() == [True, False, True]
        assert error(solution.value[::2], unrolled(weight, x[::2], bias)) < 1e-5


def test_adjoint_residual_is_reported_and_a_failed_adjoint_raises():
    weight, x, bias = (t.requires_grad_() for t in arguments())
    for adjoint, check in ((autodiff.Implicit(), "raise"), (autodiff.Implicit(autodiff.Neumann(2)), "none")):
        solution = autodiff.fixed_point(
            layer, torch.zeros_like(x), weight, x, bias, solver=EXACT, adjoint=adjoint, check=check
        )
        assert solution.adjoint_residual is None
        solution.value.sum().backward()
        assert solution.adjoint_residual.shape == (3,)
        assert (solution.adjoint_residual < 1e-10).all() == (check == "raise")
    short = autodiff.Implicit(autodiff.GMRES(max_steps=1))
    value = given(weight, x, bias, adjoint=short)
    with pytest.raises(autodiff.NotConvergedError, match="adjoint solve did not converge in 1 steps"):
        value.sum().backward()
    value = given(weight, x, bias, adjoint=short, check="warn")
    with pytest.warns(autodiff.ConvergenceWarning, match="adjoint"):
        value.sum().backward()


def test_writing_in_place_is_refused():
    for context in (contextlib.nullcontext(), torch.inference_mode()):
        with context, pytest.raises(ValueError, match="writes to its arguments in place"):
            autodiff.fixed_point(lambda z: z.mul_(0.5).add_(1), torch.zeros(3, 2))


def test_inference_mode():
    inputs = arguments()
    with torch.inference_mode():
        assert error(given(*inputs), unrolled(*inputs)) < 1e-11


def test_the_report_passes_through_vmap():
    weight, x, bias = arguments()

    def report(x):
        solution = autodiff.fixed_point(layer, torch.zeros_like(x), weight, x, bias)
        return solution.steps, solution.residual, solution.converged

    mapped = torch.func.vmap(report)(torch.stack([x, 0 * x]))
    for found, first, second in zip(mapped, report(x), report(0 * x), strict=True):
        torch.testing.assert_close(found, torch.stack([first, second]))


def test_the_older_functional_interface():
    weight, x, bias = arguments()
    f = lambda bias: loss(given(weight, x, bias, check="none"))  # noqa: E731
    truth = torch.func.hessian(lambda bias: loss(unrolled(weight, x, bias)))(bias)
    assert error(torch.autograd.functional.hessian(f, bias), truth) < 1e-11
    assert error(torch.autograd.functional.hessian(f, bias, vectorize=True), truth) < 1e-11
    options = {"vectorize": True, "outer_jacobian_strategy": "forward-mode"}
    assert error(torch.autograd.functional.hessian(f, bias, **options), truth) < 1e-11


def test_samples_that_depend_on_each_other_are_one_sample():
    weight, x, bias = arguments()

    def mixing(z, weight, x):
        return torch.tanh((z - 0.5 * z.mean(0)) @ weight.T + x + bias)

    def truth(weight, x):
        z = torch.zeros_like(x)
        for _ in range(100):
            z = mixing(z, weight, x)
        return z

    def solve(weight, x, linear_solver=autodiff.GMRES(), batch_dims=0):  # noqa: B008
        options = {"solver": EXACT, "adjoint": autodiff.Implicit(linear_solver), "batch_dims": batch_dims}
        return autodiff.fixed_point(mixing, torch.zeros_like(x), weight, x, **options).value

    expected = gradients(lambda *a: loss(truth(*a)), (weight, x))
    assert error(gradients(lambda *a: loss(solve(*a)), (weight, x)), expected) < 1e-11
    # Declared independent, a solve that counts on it misses its tolerance; one that meets it is right all the same.
    with pytest.raises(autodiff.NotConvergedError, match="adjoint"):
        gradients(lambda *a: loss(solve(*a, autodiff.Dense(), batch_dims=1)), (weight, x))
    found = gradients(lambda *a: loss(solve(*a, batch_dims=1)), (weight, x))
    assert error(found, expected) < 1e-9


def test_wrong_outputs_are_refused_with_both_structures():
    z0 = torch.zeros(3, 2)
    wrong = {
        r"float32\[3, 2\] on cpu,\ngot\n.*float32\[3, 3\]": lambda z: torch.zeros(3, 3),
        r"float32\[3, 2\].*\n.*\n.*float64\[3, 2\]": lambda z: z.double(),
        r"got\n  \(float32": lambda z: (z,),
        r"got\n  NoneType": lambda z: None,
        r"on meta": lambda z: z.to("meta"),
    }
    for message, fn in wrong.items():
        with pytest.raises(ValueError, match=message):
            autodiff.fixed_point(fn, z0)
    with pytest.raises(ValueError, match=r"\{'a': float32\[3, 2\] on cpu\},\ngot\n  \{'b'"):
        autodiff.fixed_point(lambda z: {"b": z["a"]}, {"a": z0})


@pytest.mark.parametrize(
    "late",
    [lambda z: (0.5 * z + 1).double(), lambda z: (0.5 * z + 1).mT, lambda z: (0.5 * z + 1,), lambda z: 0.5 * z[:1] + 1],
    ids=["dtype", "shape", "structure", "batch"],
)
def test_wrong_outputs_of_later_steps_are_refused(late):
    with pytest.raises(ValueError, match="expected an output like z0"):
        autodiff.fixed_point(lambda z: 0.5 * z + 1 if z.abs().max() < 0.5 else late(z), torch.zeros(3, 2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"z0": torch.zeros(3, 2, dtype=torch.int64)},
            "z0: expected real floating-point tensors as leaves, got torch.int64",
        ),
        ({"z0": {}}, "z0: expected at least one tensor"),
        ({"z0": torch.zeros(3, 0)}, "z0: expected at least one entry"),
        ({"z0": (torch.zeros(3, 1), torch.zeros(2, 1))}, "same first 1 dimensions"),
        ({"batch_dims": -1}, "batch_dims: expected an integer >= 0, got -1"),
        ({"check": "maybe"}, "check: expected 'raise', 'warn' or 'none', got 'maybe'"),
        ({"solver": autodiff.Implicit()}, "solver: expected"),
        ({"solver": autodiff.Picard}, "solver: expected"),
        ({"adjoint": autodiff.Picard()}, "adjoint: expected"),
        ({"adjoint": autodiff.Unrolled}, "adjoint: expected"),
        ({"fn": 3}, "fn: expected a function"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    call = {"fn": lambda z: z, "z0": torch.zeros(3, 2), **change}
    with pytest.raises((TypeError, ValueError), match=message):
        autodiff.fixed_point(call.pop("fn"), call.pop("z0"), **call)


@pytest.mark.parametrize("module", ["fixed_point", "linear"])
def test_examples_in_docstrings(module):
    result = doctest.testmod(sys.modules[f"jpmhc.autodiff.{module}"])
    assert result.attempted > 0
    assert result.failed == 0
