"""Derivatives are of the function that was solved, whatever has become of what it captured."""

import copy
import weakref

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, jacrev, vmap

from jpmhc import autodiff
from tests.autodiff.equations import error

EXACT = {"solver": autodiff.Picard(tol=1e-14, max_steps=400), "adjoint": autodiff.Implicit(autodiff.Dense())}


def unrolled(fn, z):
    for _ in range(200):
        z = fn(z)
    return z


def solved(fn, z):
    return autodiff.fixed_point(fn, z, **EXACT).value


class Cell(nn.Module):
    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.inner = nn.Linear(3, 3, dtype=torch.float64)
        with torch.no_grad():
            self.inner.weight.mul_(0.5)

    def forward(self, z, x):
        return torch.tanh(self.inner(z) + x)


class Layer(nn.Module):
    def __init__(self, solve=solved):
        super().__init__()
        self.cell, self.solve = Cell(), solve

    def forward(self, x):
        return self.solve(lambda z: self.cell(z, x), torch.zeros_like(x))


def points(rows=2):
    return torch.linspace(-1, 1, 3 * rows, dtype=torch.float64).reshape(rows, 3)


def gradients(loss, *tensors):
    return torch.autograd.grad(loss, tensors)


@pytest.mark.parametrize("transform", ["grad", "per sample", "second", "jacobian"])
def test_parameters_that_a_functional_call_lent(transform):
    def of(solve):
        module = Layer(solve)
        parameters = {name: p.detach().clone() for name, p in module.named_parameters()}

        def loss(parameters, x):
            return functional_call(module, parameters, (x,)).square().sum()

        if transform == "grad":
            return grad(loss)(parameters, points())
        if transform == "per sample":
            return vmap(grad(lambda p, x: loss(p, x[None])), in_dims=(None, 0))(parameters, points())
        if transform == "jacobian":
            return jacrev(lambda p: functional_call(module, p, (points(),)))(parameters)
        return grad(lambda p: sum(g.square().sum() for g in grad(loss)(p, points()).values()))(parameters)

    found, wanted = of(solved), of(unrolled)
    assert error(list(found.values()), list(wanted.values())) < 1e-9
    assert all(value.abs().max() > 1e-3 for value in wanted.values())


def test_parameters_lent_and_differentiated_outside():
    module = Layer()
    lent = {name: p.detach().clone().requires_grad_() for name, p in module.named_parameters()}
    value = functional_call(module, lent, (points(),))
    found = gradients(value.sum(), *lent.values())
    wanted = gradients(module(points()).sum(), *module.parameters())
    assert error(found, wanted) < 1e-9


def test_ensembles():
    modules = [Layer() for _ in range(3)]
    for seed, module in enumerate(modules):
        module.cell = Cell(seed)
    parameters, _ = torch.func.stack_module_state(modules)
    base = copy.deepcopy(modules[0])

    def loss(parameters, x):
        return functional_call(base, parameters, (x,)).square().sum()

    found = vmap(grad(loss), in_dims=(0, None))(parameters, points())
    for k, module in enumerate(modules):
        wanted = gradients(module(points()).square().sum(), *module.parameters())
        assert error([value[k] for value in found.values()], wanted) < 1e-9


def test_variables_of_a_loop():
    def of(solve):
        cells, x = [Cell(seed) for seed in range(3)], points().requires_grad_()
        h = x
        for cell in cells:
            h = solve(lambda z: cell(z, h), torch.zeros_like(h))  # noqa: B023  bound late on purpose
        return gradients(h.square().sum(), x, *(p for cell in cells for p in cell.parameters()))

    assert error(of(solved), of(unrolled)) < 1e-9


def test_an_attribute_that_another_call_has_set():
    class Stored(nn.Module):
        def __init__(self, solve):
            super().__init__()
            self.cell, self.solve = Cell(), solve

        def forward(self, x):
            self.x = x
            return self.solve(self.step, torch.zeros_like(x))

        def step(self, z):
            return self.cell(z, self.x)

    def of(solve):
        module, first, second = Stored(solve), points().requires_grad_(), (2 * points()).requires_grad_()
        value = module(first) * module(second)
        return gradients(value.sum(), first, second, *module.parameters())

    assert error(of(solved), of(unrolled)) < 1e-9


def test_a_parameter_that_was_replaced():
    cell = Cell()
    before = cell.inner.weight
    value = solved(lambda z: cell(z, points()), torch.zeros(2, 3, dtype=torch.float64))
    wanted = gradients(unrolled(lambda z: cell(z, points()), torch.zeros(2, 3, dtype=torch.float64)).sum(), before)
    cell.inner.weight = nn.Parameter(torch.zeros_like(before))
    assert error(gradients(value.sum(), before), wanted) < 1e-9


def test_a_constant_that_was_replaced():
    x = points().requires_grad_()
    scale = torch.full((3,), 0.5, dtype=torch.float64)
    value = solved(lambda z: torch.tanh(scale * z + x), torch.zeros_like(x))
    wanted = gradients(unrolled(lambda z: torch.tanh(0.5 * z + x), torch.zeros_like(x)).sum(), x)
    scale = torch.zeros(3, dtype=torch.float64)
    assert error(gradients(value.sum(), x), wanted) < 1e-9


def test_a_constant_that_was_written_to_is_refused():
    x = points().requires_grad_()
    scale = torch.full((3,), 0.5, dtype=torch.float64)
    value = solved(lambda z: torch.tanh(scale * z + x), torch.zeros_like(x))
    scale.zero_()
    with pytest.raises(RuntimeError, match=r"fn: uses a tensor of shape \(3,\) that was written to.*args"):
        value.sum().backward()


@pytest.mark.parametrize(
    ("change", "message"), [("number", "gives 0.1 to mul and gave 0.5"), ("branch", "takes other operations")]
)
def test_a_function_that_does_something_else_is_refused(change, message):
    x, flag, number = points().requires_grad_(), False, 0.5
    weight = torch.full((3,), 0.5, dtype=torch.float64, requires_grad=True)

    def fn(z):
        return torch.sin(z) / 2 + x if flag else torch.tanh(number * z * weight + x)

    value = solved(fn, torch.zeros_like(x))
    if change == "number":
        number = 0.1
    else:
        flag = True
    with pytest.raises(RuntimeError, match=f"fn: {message}.*bind"):
        value.sum().backward()


def test_a_function_may_take_other_operations_for_tensors_with_a_gradient():
    torch.manual_seed(0)
    attention = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True, dtype=torch.float64).eval()
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.mul_(0.3)
    x = torch.randn(2, 5, 4, dtype=torch.float64)

    def of(solve):
        return gradients(
            solve(lambda z: 0.3 * attention(z) + x, torch.zeros_like(x)).square().sum(), *attention.parameters()
        )

    assert error(of(solved), of(unrolled)) < 1e-8


def weights(rows=3, columns=3):
    torch.manual_seed(0)
    return (0.2 * torch.randn(rows, columns, dtype=torch.float64)).requires_grad_()


class Halved(torch.autograd.Function):
    @staticmethod
    def forward(x):
        return x / 2

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, gradient):
        return gradient / 2


class OnePass(nn.Module):
    def __init__(self):
        super().__init__()
        self.busy = False

    def forward(self, z, w, x):
        assert not self.busy
        self.busy = True
        y = Halved.apply(z @ w)
        self.busy = False
        return torch.tanh(y) + x


def without_gradient(z, w, x):
    with torch.no_grad():
        size = autodiff.sinkhorn(w).amax()
    return torch.tanh(z @ w) * size + x


class Subclass(torch.Tensor):
    pass


scripted = torch.jit.script(nn.Softplus())
space = torch.zeros(3, dtype=torch.float64)


def in_place(z, w, x):
    torch.full((3,), 0.5, dtype=torch.float64, out=space)
    return torch.tanh(z @ w) * space.clone() + x


FUNCTIONS = {
    "autograd function without gradient": without_gradient,
    "scripted": lambda z, w, x: 0.5 * scripted(z @ w) + x,
    "subclass": lambda z, w, x: torch.tanh(z @ w).as_subclass(Subclass).as_subclass(torch.Tensor) + x,
    "jvp": lambda z, w, x: 0.3 * torch.func.jvp(torch.sin, (z @ w,), (z,))[1] + x,
    "grad": lambda z, w, x: 0.3 * torch.func.grad(lambda u: torch.logsumexp(u @ w, -1).sum())(z) + x,
    "vmap": lambda z, w, x: 0.5 * torch.func.vmap(torch.tanh)(z @ w) + x,
    "own space": in_place,
    "one pass": OnePass(),
    "a map of ours": lambda z, w, x: torch.tanh(0.5 * z @ autodiff.cayley(w)) + x,
    "a fixed point inside": lambda z, w, x: 0.5 * solved(lambda y: torch.tanh(y @ w + z), torch.zeros_like(z)) + x,
    "another capture every time": lambda z, w, x: torch.tanh(z @ nn.Parameter(w.detach())) + 0.1 * z @ w + x,
}


@pytest.mark.parametrize("form", ["given", "captured"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_that_do_more_than_calls_of_torch(name, form):
    fn = FUNCTIONS[name]
    if form == "captured" and name == "a fixed point inside":
        pytest.skip("slow")

    def of(solve):
        w, x = weights(), points().requires_grad_()
        if solve is unrolled or form == "captured":
            value = solve(lambda z: fn(z, w, x), torch.zeros_like(x))
        else:
            value = autodiff.fixed_point(fn, torch.zeros_like(x), w, x, **EXACT).value
        return gradients(value.square().sum(), w, x)

    assert error(of(solved), of(unrolled)) < 1e-8


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_buffers_that_a_module_writes_to():
    def of(solve):
        torch.manual_seed(0)
        linear = nn.utils.parametrizations.spectral_norm(nn.Linear(3, 3, dtype=torch.float64), n_power_iterations=50)
        x = points().requires_grad_()
        return gradients(solve(lambda z: 0.5 * torch.tanh(linear(z)) + x, torch.zeros_like(x)).sum(), x)

    assert error(of(solved), of(unrolled)) < 1e-8


LOOPS = {
    "slice": lambda z, h, w, i: torch.tanh(z @ w[:3, i : i + 3] + h),
    "constant slice": lambda z, h, w, i: torch.tanh(
        z * torch.arange(6.0, dtype=z.dtype)[i : i + 3] / 9 @ w[:3, :3] + h
    ),
    "numpy number": lambda z, h, w, i: torch.tanh(z * np.float64(0.5 + 0.1 * i) @ w[:3, :3] + h),
    "numpy index": lambda z, h, w, i: torch.tanh(0.3 * z + w[np.array([i])][:, :3] + h),
    "order": lambda z, h, w, i: torch.tanh((torch.cat([z, h], -1) if i % 2 else torch.cat([h, z], -1)) @ w[:, :3]),
    "sign": lambda z, h, w, i: torch.tanh(0.5 * ((z - h) if i % 2 else (h - z)) @ w[:3, :3]),
    "keyword": lambda z, h, w, i: torch.tanh(z @ w[:3, :3] + h + (z.clamp(min=0.1) if i % 2 else z.clamp(max=0.1)) / 4),
    "our own map": lambda z, h, w, i: torch.tanh((0.2 + 0.1 * i) * z @ autodiff.cayley(w[:3, :3]) + h),
}


@pytest.mark.parametrize("name", LOOPS)
def test_what_a_loop_changes_beside_tensors_is_refused(name):
    fn = LOOPS[name]

    w, x = weights(6, 6), points().requires_grad_()
    h = x
    for i in range(3):
        h = solved(lambda z: fn(z, h, w, i), torch.zeros_like(h))  # noqa: B023  bound late on purpose
    with pytest.raises(RuntimeError, match=r"^fn: (gives|takes other)"):
        gradients(h.square().sum(), x, w)


def test_nothing_of_the_iteration_is_kept():
    made = []

    class Watched(nn.Module):
        def forward(self, z):
            result = scripted(z)
            made.append(weakref.ref(result))
            return result

    w, x = weights(), points().requires_grad_()
    layer = Watched()
    value = solved(lambda z: 0.5 * torch.tanh(layer(z @ w)) + x, torch.zeros_like(x))
    assert made
    assert not any(reference() is not None for reference in made)
    del value
