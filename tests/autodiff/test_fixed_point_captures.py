"""Derivatives with respect to what the map of a fixed point holds inside, and refusals of what cannot be followed."""

import functools

import pytest
import torch
from torch import nn

from jpmhc import autodiff
from tests.autodiff.equations import EXACT, arguments, captured, error, gradients, layer, loss, unrolled


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


ADJOINTS = [autodiff.Implicit(), autodiff.Unrolled(), autodiff.PhantomGradient(60)]


def half_pinned(w):
    """One leaf of the state is what was captured, the other depends on both."""
    return lambda z: (w, 0.5 * z[1] + z[0].sin())


def half_pinned_value(w, adjoint):
    z0 = (torch.zeros(3, 2, dtype=torch.float64), torch.zeros(3, 2, dtype=torch.float64))
    return torch.stack(autodiff.fixed_point(half_pinned(w), z0, solver=EXACT, adjoint=adjoint).value)


@pytest.mark.parametrize("adjoint", ADJOINTS, ids=lambda a: type(a).__name__)
def test_a_captured_tensor_may_be_returned_as_it_is(adjoint):
    w = torch.randn(3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    truth = [torch.ones_like(w) + 2 * w.cos(), -2 * w.sin()]  # of the sum of w and 2 sin w

    def derivatives(scale):
        leaf = w.clone().requires_grad_()
        made = leaf if scale is None else leaf * scale  # a parameter, or the result of an operation
        (first,) = torch.autograd.grad(half_pinned_value(made, adjoint).sum(), leaf, create_graph=True)
        return [first, *torch.autograd.grad(first.sum(), leaf)]

    for scale in (None, 1.0):
        assert error(derivatives(scale), truth) < 1e-9
    assert error(torch.func.grad(lambda w: half_pinned_value(w, adjoint).sum())(w), truth[0]) < 1e-9
    pushed = torch.func.jvp(lambda w: half_pinned_value(w, adjoint).sum(0), (w,), (torch.ones_like(w),))[1]
    assert error(pushed, truth[0]) < 1e-9


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_constant_function_of_a_captured_tensor_is_its_own_fixed_point(dtype):
    w = torch.randn(5, 3, 2, generator=torch.Generator().manual_seed(0)).to(dtype)

    def constant(w):
        return autodiff.fixed_point(lambda z: w, torch.zeros(3, 2, dtype=dtype)).value

    assert torch.equal(torch.func.vmap(constant)(w), w)
    mapped = torch.func.vmap(torch.func.grad(lambda w: constant(w).sum()))(w)
    torch.testing.assert_close(mapped, torch.ones_like(w))
    leaf = w[0].clone().requires_grad_()
    torch.testing.assert_close(torch.autograd.grad(constant(leaf).sum(), leaf)[0], torch.ones_like(leaf))


def test_a_returned_capture_is_the_one_of_the_solution_in_backward_too():
    first, second = (torch.full((3, 2), v, dtype=torch.float64, requires_grad=True) for v in (1.0, 2.0))
    holder = {"w": first}
    solution = autodiff.fixed_point(lambda z: holder["w"], torch.zeros(3, 2, dtype=torch.float64))
    holder["w"] = second
    found = torch.autograd.grad(solution.value.sum(), (first, second), allow_unused=True)
    torch.testing.assert_close(found[0], torch.ones_like(first))
    assert found[1] is None


def test_what_a_scripted_function_makes_is_not_taken_for_a_capture():
    torch.manual_seed(0)
    scripted = torch.jit.script(nn.Linear(2, 2, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"captures `scripted\.weight`"):
        autodiff.fixed_point(lambda z: (z[1], scripted(z[0])), (torch.zeros(3, 2, dtype=torch.float64),) * 2)
