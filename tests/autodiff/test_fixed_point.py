import contextlib
import dataclasses
import doctest
import functools
import sys
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from jpmhc import autodiff
from tests.autodiff.equations import arguments, error, gradients, layer, loss, unrolled

EXACT = autodiff.Anderson(tol=1e-13, max_steps=200)


def given(weight, x, bias, **options):
    """The solution with every dependence passed as an argument."""
    return autodiff.fixed_point(layer, torch.zeros_like(x), weight, x, bias, **{"solver": EXACT, **options}).value


def captured(weight, x, bias, **options):
    """The same with every dependence captured in a closure."""
    z0 = torch.zeros(x.shape, dtype=x.dtype)
    return autodiff.fixed_point(lambda z: layer(z, weight, x, bias), z0, **{"solver": EXACT, **options}).value


both_forms = pytest.mark.parametrize("solve", [given, captured], ids=["given", "captured"])


# --- every transform agrees with the unrolled truth ------------------------------------------------------------------


def first_derivatives(solve):
    weight, x, bias = arguments()
    tangents = arguments(seed=1)
    return {
        "grad": torch.func.grad(lambda *a: loss(solve(*a)), argnums=(0, 1, 2))(weight, x, bias),
        "vjp": torch.func.vjp(solve, weight, x, bias)[1](tangents[1]),
        "jvp": torch.func.jvp(solve, (weight, x, bias), tangents),
        "jvp in one argument": torch.func.jvp(lambda b: solve(weight, x, b), (bias,), (tangents[2],)),
        "jacrev": torch.func.jacrev(solve, argnums=(0, 2))(weight, x, bias),
        "jacfwd": torch.func.jacfwd(solve, argnums=(0, 2))(weight, x, bias),
    }


@pytest.mark.parametrize("name", ["grad", "vjp", "jvp", "jvp in one argument", "jacrev", "jacfwd"])
@both_forms
def test_first_derivatives_under_every_transform(solve, name):
    assert error(_first(solve)[name], _first(unrolled)[name]) < 1e-11


_first = functools.cache(first_derivatives)


def second_derivatives(solve):
    weight, x, bias = arguments()
    f = functools.partial(lambda x, bias: loss(solve(weight, x, bias)), x)
    grad, jacfwd, jacrev = torch.func.grad, torch.func.jacfwd, torch.func.jacrev
    return {
        "forward over reverse": torch.func.hessian(lambda w: loss(solve(w, x, bias)))(weight),
        "reverse over reverse": jacrev(jacrev(f))(bias),
        "reverse over forward": jacrev(jacfwd(f))(bias),
        "forward over forward": jacfwd(jacfwd(f))(bias),
        "grad of grad": grad(lambda w: (grad(lambda v: loss(solve(w, x, v)))(bias) ** 2).sum())(weight),
    }


_second = functools.cache(second_derivatives)


@pytest.mark.parametrize(
    "name",
    ["forward over reverse", "reverse over reverse", "reverse over forward", "forward over forward", "grad of grad"],
)
@both_forms
def test_second_derivatives_in_every_order_of_modes(solve, name):
    # torchdeq and torchopt are off by more than a tenth of the norm here, without a word.
    assert error(_second(solve)[name], _second(unrolled)[name]) < 1e-11


def test_third_derivatives():
    weight, x, bias = arguments(size=2, batch=1)
    jacfwd, jacrev = torch.func.jacfwd, torch.func.jacrev
    f = functools.partial(lambda solve, bias: loss(solve(weight, x, bias)), given)
    truth = jacrev(jacrev(jacrev(lambda b: loss(unrolled(weight, x, b)))))(bias)
    assert error(jacfwd(jacrev(jacrev(f)))(bias), truth) < 1e-10
    assert error(jacfwd(jacfwd(jacfwd(f)))(bias), truth) < 1e-10


@both_forms
def test_backward_and_double_backward(solve):
    def penalised(solve, *inputs):
        first = torch.autograd.grad(loss(solve(*inputs)), inputs, create_graph=True)
        return sum((g**2).sum() for g in first)

    inputs = arguments()
    assert (
        error(gradients(lambda *a: loss(solve(*a)), inputs), gradients(lambda *a: loss(unrolled(*a)), inputs)) < 1e-11
    )
    found = gradients(lambda *a: penalised(solve, *a), inputs)
    assert error(found, gradients(lambda *a: penalised(unrolled, *a), inputs)) < 1e-11


@both_forms
def test_vmap_alone_and_with_derivatives_on_either_side(solve):
    weight, x, bias = arguments()
    weights = torch.stack([weight, 0.5 * weight, -weight])
    xs = torch.stack([x, 2 * x, x - 1])
    vmap, grad = torch.func.vmap, torch.func.grad
    dims = (0, 0, None)

    def everything(solve):
        def f(*a):
            return loss(solve(*a))

        return (
            vmap(solve, in_dims=dims)(weights, xs, bias),
            vmap(solve, in_dims=(None, 1, None), out_dims=1)(weight, xs.transpose(0, 1), bias),
            vmap(grad(f, argnums=(0, 1, 2)), in_dims=dims)(weights, xs, bias),
            grad(lambda w: loss(vmap(solve, in_dims=dims)(w, xs, bias)))(weights),
            vmap(lambda w: vmap(lambda x: solve(w, x, bias))(xs))(weights),
            vmap(torch.func.hessian(lambda x, w: f(w, x, bias)), in_dims=(0, 0))(xs[:, :1], weights),
        )

    assert error(everything(solve), everything(unrolled)) < 1e-10


def test_forward_mode_of_plain_autograd():
    inputs, tangents = arguments(), arguments(seed=1)
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(p, t) for p, t in zip(inputs, tangents, strict=True)]
        found = [forward_ad.unpack_dual(solve(*duals)).tangent for solve in (given, captured)]
    truth = torch.func.jvp(unrolled, inputs, tangents)[1]
    assert error(found, [truth, truth]) < 1e-11


def test_checkpointing_recomputes_the_same_gradient():
    inputs = arguments()
    found = gradients(lambda *a: loss(checkpoint(captured, *a, use_reentrant=False)), inputs)
    assert error(found, gradients(lambda *a: loss(unrolled(*a)), inputs)) < 1e-11


def test_a_fixed_point_inside_a_fixed_point():
    weight, x, bias = arguments()

    def outer(solve, weight, x, bias):
        z = torch.zeros_like(x)

        def step(z, weight, x, bias):
            return 0.3 * solve(weight, x + z, bias)

        if solve is unrolled:
            for _ in range(60):
                z = step(z, weight, x, bias)
            return z
        return autodiff.fixed_point(step, z, weight, x, bias, solver=EXACT).value

    def f(solve):
        return lambda *a: loss(outer(solve, *a))

    assert error(gradients(f(given), (weight, x, bias)), gradients(f(unrolled), (weight, x, bias))) < 1e-10
    truth = torch.func.jvp(f(unrolled), (weight, x, bias), arguments(seed=1))
    assert error(torch.func.jvp(f(given), (weight, x, bias), arguments(seed=1)), truth) < 1e-10


# --- states and arguments -------------------------------------------------------------------------------------------


def test_trees_of_states_and_arguments():
    weight, x, _bias = arguments()
    scales = {
        "first": torch.tensor(0.5, dtype=torch.float64),
        "rest": [torch.tensor(0.3, dtype=torch.float64), 2, None],
    }

    def coupled(z, weight, options, x):
        first = torch.tanh(z["a"] @ weight.T + z["b"][0][..., :1, 0] * options["first"] + x)
        second = options["rest"][0] * z["b"][0].sin() * options["rest"][1] + first[:, :, None]
        return {"a": first, "b": (second,)}

    def solve(weight, first, x):
        z0 = {"a": torch.zeros_like(x), "b": (torch.zeros(*x.shape, 2, dtype=x.dtype),)}
        options = {"first": first, "rest": scales["rest"]}
        solution = autodiff.fixed_point(coupled, z0, weight, options, x, solver=EXACT)
        assert solution.steps.shape == solution.residual.shape == solution.converged.shape == (3,)
        return solution.value["a"], solution.value["b"][0]

    def truth(weight, first, x):
        z = {"a": torch.zeros_like(x), "b": (torch.zeros(*x.shape, 2, dtype=x.dtype),)}
        for _ in range(400):
            z = coupled(z, weight, {"first": first, "rest": scales["rest"]}, x)
        return z["a"], z["b"][0]

    inputs = (weight, scales["first"], x)
    assert error(solve(*inputs), truth(*inputs)) < 1e-11

    def total(f):
        return lambda *a: loss(f(*a)[0]) + loss(f(*a)[1])

    assert error(gradients(total(solve), inputs), gradients(total(truth), inputs)) < 1e-10


@pytest.mark.parametrize("batch_dims", [0, 1, 2])
def test_batch_dimensions_give_one_report_a_sample(batch_dims):
    weight, x, bias = arguments(batch=6)
    x = x.reshape(2, 3, 4)
    solution = autodiff.fixed_point(layer, torch.zeros_like(x), weight, x, bias, solver=EXACT, batch_dims=batch_dims)
    assert solution.steps.shape == solution.residual.shape == solution.converged.shape == x.shape[:batch_dims]
    assert error(solution.value, unrolled(weight, x, bias)) < 1e-11
    assert solution.converged.all()


def test_residual_belongs_to_the_value_that_is_returned():
    weight, x, bias = arguments()
    solution = autodiff.fixed_point(layer, torch.zeros_like(x), weight, x, bias, solver=autodiff.Picard(tol=1e-4))
    z = solution.value
    residual = (layer(z, weight, x, bias) - z).abs().amax(-1) / (1 + z.abs().amax(-1))
    torch.testing.assert_close(solution.residual, residual)
    assert (solution.residual <= 1e-4).all()


def test_starting_at_the_solution_takes_one_step_and_gives_no_alias():
    inputs = arguments()
    start = unrolled(*inputs)
    solution = autodiff.fixed_point(layer, start, *inputs)
    assert (solution.steps == 1).all()
    assert solution.value.data_ptr() != start.data_ptr()


def test_empty_batch():
    weight, x, bias = (t.requires_grad_() for t in arguments(batch=0))
    for check in ("raise", "none"):
        solution = autodiff.fixed_point(layer, torch.zeros_like(x), weight, x, bias, check=check)
        assert solution.value.shape == (0, 4)
        assert torch.autograd.grad(solution.value.sum(), weight)[0].abs().sum() == 0


def test_non_contiguous_states_and_integer_arguments():
    weight, x, bias = arguments(batch=4)
    order = torch.tensor([3, 1, 0, 2])

    def fn(z, x, order):
        return layer(z, weight, x[order], bias)

    z0 = torch.zeros(4, 4, dtype=torch.float64).T
    solution = autodiff.fixed_point(fn, z0, x.T.contiguous().T, order, solver=EXACT, batch_dims=0)
    assert error(solution.value, unrolled(weight, x[order], bias)) < 1e-11


# --- captures -------------------------------------------------------------------------------------------------------


class Cell(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4, dtype=torch.float64)
        with torch.no_grad():
            self.linear.weight.mul_(0.5)

    def forward(self, z, x):
        return torch.tanh(self.linear(z) * (1 + 0.1 * z) + x)


def test_gradients_reach_the_parameters_of_a_captured_module():
    torch.manual_seed(0)
    cell, x = Cell(), arguments()[1]
    for fn in (cell, lambda z, x: cell(z, x), functools.partial(cell.forward), cell.forward):
        cell.zero_grad()
        loss(autodiff.fixed_point(fn, torch.zeros_like(x), x, solver=EXACT).value).backward()
        found = [p.grad for p in cell.parameters()]
        z = torch.zeros_like(x)
        for _ in range(100):
            z = cell(z, x)
        assert error(found, torch.autograd.grad(loss(z), list(cell.parameters()))) < 1e-11


def test_functional_call_gives_the_same_as_the_capture():
    torch.manual_seed(0)
    cell, x = Cell(), arguments()[1]
    weights = dict(cell.named_parameters())

    def fn(z, weights):
        return torch.func.functional_call(cell, weights, (z, x))

    def f(weights):
        return loss(autodiff.fixed_point(fn, torch.zeros_like(x), weights, solver=EXACT).value)

    found = torch.func.grad(f)(weights)
    loss(autodiff.fixed_point(cell, torch.zeros_like(x), x, solver=EXACT).value).backward()
    assert error([found[name] for name in weights], [p.grad for p in weights.values()]) < 1e-11


def test_gradients_reach_intermediate_tensors_that_were_captured():
    weight, x, bias = arguments()

    def solve(weight, x, bias):
        encoded = x.sin() * bias.exp()
        return autodiff.fixed_point(lambda z: layer(z, weight, encoded, bias), torch.zeros_like(x), solver=EXACT).value

    def truth(weight, x, bias):
        return unrolled(weight, x.sin() * bias.exp(), bias)

    inputs = (weight, x, bias)
    assert error(gradients(lambda *a: loss(solve(*a)), inputs), gradients(lambda *a: loss(truth(*a)), inputs)) < 1e-11


@pytest.mark.parametrize(
    "module",
    [
        lambda: Recurrent(nn.GRUCell(4, 4)),
        lambda: nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True),
        lambda: nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Tanh()),
    ],
    ids=["GRUCell", "TransformerEncoderLayer", "Sequential"],
)
def test_gradients_reach_the_parameters_of_library_modules(module):
    torch.manual_seed(0)
    module = module().double()
    x = torch.randn(3, 2, 4, dtype=torch.float64)

    def fn(z):
        return 0.3 * module(z) + x

    loss(autodiff.fixed_point(fn, torch.zeros_like(x), solver=EXACT).value).backward()
    z = torch.zeros_like(x)
    for _ in range(100):
        z = fn(z)
    expected = torch.autograd.grad(loss(z), list(module.parameters()))
    # Biases that cancel have gradients of the size of round-off.
    for parameter, gradient in zip(module.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-10, atol=1e-10)


class Recurrent(nn.Module):
    def __init__(self, cell):
        super().__init__()
        self.cell = cell

    def forward(self, z):
        return self.cell(torch.ones_like(z[:, 0]), z[:, 0]).unsqueeze(1).expand_as(z)


def test_gradients_reach_a_ready_made_map_inside():
    logits = torch.randn(4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = arguments()[1]

    def fn(z, logits):
        return torch.tanh(0.5 * z @ autodiff.sinkhorn(logits) + x)

    def truth(logits):
        z = torch.zeros_like(x)
        for _ in range(100):
            z = fn(z, logits)
        return z

    for solve in (
        lambda logits: autodiff.fixed_point(fn, torch.zeros_like(x), logits, solver=EXACT).value,
        lambda logits: autodiff.fixed_point(lambda z: fn(z, logits), torch.zeros_like(x), solver=EXACT).value,
    ):
        found = gradients(lambda t, solve=solve: loss(solve(t)), [logits])
        assert error(found, gradients(lambda t: loss(truth(t)), [logits])) < 1e-10


def test_a_compiled_function_is_followed_and_a_scripted_one_refused():
    torch._dynamo.reset()
    inputs = arguments()
    compiled = torch.compile(layer, backend="eager", fullgraph=True)

    def solve(*a):
        return autodiff.fixed_point(compiled, torch.zeros_like(a[1]), *a, solver=EXACT).value

    assert (
        error(gradients(lambda *a: loss(solve(*a)), inputs), gradients(lambda *a: loss(unrolled(*a)), inputs)) < 1e-11
    )
    tangents = arguments(seed=1)
    assert error(torch.func.jvp(solve, inputs, tangents), torch.func.jvp(unrolled, inputs, tangents)) < 1e-11
    weight, x, bias = inputs
    mapped = torch.func.vmap(lambda x: solve(weight, x, bias))(torch.stack([x, -x]))
    assert error(mapped, torch.stack([unrolled(weight, x, bias), unrolled(weight, -x, bias)])) < 1e-11
    cell = torch.jit.script(Cell())
    with pytest.raises(ValueError, match=r"linear.weight`, a tensor of shape \(4, 4\).*functional_call"):
        autodiff.fixed_point(cell, torch.zeros(3, 4, dtype=torch.float64), inputs[1])


class Scale(torch.autograd.Function):
    """An operation that shows its inputs to nobody."""

    @staticmethod
    def forward(z, weight):
        return z * weight

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, gradient):
        z, weight = ctx.saved_tensors
        return gradient * weight, gradient * z


def test_a_capture_that_cannot_be_followed_is_refused_by_name():
    weight = torch.tensor([0.5, 0.2], dtype=torch.float64, requires_grad=True)
    holder = {"scale": weight}
    with pytest.raises(ValueError, match=r"captures `holder.scale`.*functional_call"):
        autodiff.fixed_point(lambda z: 1 + Scale.apply(z, holder["scale"]), torch.zeros(3, 2, dtype=torch.float64))
    z0 = torch.zeros(3, 2, dtype=torch.float64)
    exact = 3 / (1 - weight.detach()) ** 2
    passed = autodiff.fixed_point(lambda z, w: 1 + Scale.apply(z, w), z0, weight, solver=EXACT).value
    assert error(torch.autograd.grad(passed.sum(), weight), [exact]) < 1e-11

    # Under a transform torch shows the inputs, so there the capture is followed.
    def f(w):
        return autodiff.fixed_point(lambda z: 1 + Scale.apply(z, w), z0, solver=EXACT).value.sum()

    assert error(torch.func.grad(f)(weight.detach()), exact) < 1e-11


@pytest.mark.parametrize(
    "adjoint", [autodiff.Implicit(), autodiff.Unrolled(), autodiff.PhantomGradient(60)], ids=lambda a: type(a).__name__
)
def test_gradients_reach_a_tensor_that_is_captured_at_the_solution_only(adjoint):
    weight = torch.tensor([[1.1], [1.2]], dtype=torch.float64, requires_grad=True)
    shift = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)

    def routed(z):
        return 0.15 * z + shift if z.abs().max() < 0.5 else 0.5 * z * weight + shift

    z0 = torch.zeros(2, 1, dtype=torch.float64)
    solution = autodiff.fixed_point(routed, z0, solver=EXACT, adjoint=adjoint)
    found = torch.autograd.grad(solution.value.sum(), (weight, shift), create_graph=True)
    plain = weight.detach().requires_grad_()
    truth = torch.autograd.grad((1 / (1 - 0.5 * plain)).sum(), plain)[0]
    assert error(solution.value, 1 / (1 - 0.5 * plain)) < 1e-11
    assert error(found, [truth, (1 / (1 - 0.5 * plain)).sum()]) < 1e-9
    assert (solution.steps > 1).all()

    def f(weight):
        def routed(z):
            return 0.15 * z + 1 if z.abs().max() < 0.5 else 0.5 * z * weight + 1

        return autodiff.fixed_point(routed, z0, solver=EXACT, adjoint=adjoint).value.sum()

    assert error(torch.func.grad(f)(weight.detach()), truth) < 1e-9


def test_a_hidden_capture_at_the_solution_only_is_refused_by_name():
    weight = torch.tensor([0.5, 0.2], dtype=torch.float64, requires_grad=True)

    def routed(z):
        return 0.15 * z + 1 if z.abs().max() < 0.5 else 1 + Scale.apply(z, weight)

    with pytest.raises(ValueError, match=r"captures `weight`.*functional_call"):
        autodiff.fixed_point(routed, torch.zeros(3, 2, dtype=torch.float64))


def test_constants_that_were_captured_stay_constants():
    weight, x, bias = arguments()
    solution = autodiff.fixed_point(lambda z: layer(z, weight, x, bias), torch.zeros_like(x), solver=EXACT)
    assert not solution.value.requires_grad
    x.requires_grad_()
    with torch.no_grad():
        assert not captured(weight, x, bias).requires_grad


# --- precision ------------------------------------------------------------------------------------------------------


def test_the_solve_stays_in_float32_under_autocast():
    weight, x, bias = (t.float() for t in arguments())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for solve in (given, captured):
            options = {"solver": autodiff.Anderson(tol=1e-6), "adjoint": autodiff.Implicit()}
            assert error(solve(weight, x, bias, **options).double(), unrolled(*arguments())) < 1e-5
            found = gradients(lambda *a, solve=solve, options=options: loss(solve(*a, **options)), (weight, x, bias))
            assert error([g.double() for g in found], gradients(lambda *a: loss(unrolled(*a)), arguments())) < 1e-4


def test_half_precision_is_raised_inside_and_restored_outside():
    weight, x, bias = (t.bfloat16() for t in arguments())
    exact = unrolled(weight.double(), x.double(), bias.double())
    for solve in (given, captured):
        if solve is captured:
            value = autodiff.fixed_point(lambda z: layer(z, weight, x, bias), torch.zeros_like(x)).value
        else:
            value = given(weight, x, bias, solver=autodiff.Anderson())
        assert value.dtype == torch.bfloat16
        assert (value.double() - exact).abs().max() < 2**-8
    found = gradients(lambda *a: given(*a, solver=autodiff.Anderson()).float().sum(), (weight, x, bias))
    assert [g.dtype for g in found] == [torch.bfloat16] * 3


# --- failures -------------------------------------------------------------------------------------------------------


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
        torch.autograd.grad(given(weight, x, bias, **options).sum(), (weight, x, bias))


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
        ({"adjoint": autodiff.Picard()}, "adjoint: expected"),
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


# --- memory ---------------------------------------------------------------------------------------------------------


class PeakMemory(TorchDispatchMode):
    """Largest number of bytes alive at once among the tensors made inside."""

    def __init__(self):
        super().__init__()
        self.peak = 0
        self._alive = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                reference = torch.multiprocessing.reductions.StorageWeakRef(storage)
                self._alive[reference.cdata] = (reference, storage.nbytes())
        self._alive = {key: held for key, held in self._alive.items() if not held[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self._alive.values()))
        return result


@pytest.mark.parametrize(
    "solver",
    [autodiff.Picard(), autodiff.Anderson(memory=2), autodiff.Broyden(memory=2)],
    ids=lambda solver: type(solver).__name__,
)
def test_peak_memory_does_not_grow_with_the_steps(solver):
    weight, x, bias = (t.requires_grad_() for t in arguments(size=16, batch=32))

    def peak(steps, adjoint):
        with PeakMemory() as memory:
            options = {"solver": dataclasses.replace(solver, max_steps=steps), "adjoint": adjoint, "check": "none"}
            torch.autograd.grad(given(weight, x, bias, **options).sum(), (weight, x, bias))
        return memory.peak

    steps = [10, 100, 1000]
    slope, _ = np.polyfit(steps, [peak(count, autodiff.Implicit()) for count in steps], 1)
    assert abs(slope) < 1e-6
    slope, _ = np.polyfit(steps[:2], [peak(count, autodiff.Unrolled()) for count in steps[:2]], 1)
    assert slope > x.numel() * x.element_size()


def test_backward_saves_the_solution_and_the_arguments_alone():
    weight, x, bias = (t.requires_grad_() for t in arguments(size=16, batch=32))
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        solution = given(weight, x, bias)
    assert sum(t.numel() for t in saved) == sum(t.numel() for t in (solution, weight, x, bias))
