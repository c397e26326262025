import dataclasses
import functools

import numpy as np
import pytest
import torch
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from jpmhc import autodiff
from tests.autodiff.equations import EXACT, arguments, captured, error, given, gradients, layer, loss, unrolled

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
