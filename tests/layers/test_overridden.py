"""Coefficients that a subclass makes in its own way are those that the layer uses, however it is called."""

import pytest
import torch
from torch import nn

from jpmhc import layers
from jpmhc.layers.charts.sinkhorn import Sinkhorn
from jpmhc.layers.gates import SoftmaxGate


class Swapping(layers.HyperConnection):
    """Mixes in the reverse order of streams, and reads the stream that is largest."""

    def coefficients(self, x):
        pre, post, matrix = super().coefficients(x)
        largest = x.square().sum(-1).argmax(-1)
        return nn.functional.one_hot(largest, self.streams).to(pre), post, matrix.flip(-2)


def made(kind, **options):
    torch.manual_seed(0)
    connections = [kind(8, nn.Linear(8, 8), layer_index=i, **options) for i in range(3)]
    with torch.no_grad():
        for parameter in layers.mixing_parameters(nn.ModuleList(connections)):
            parameter.add_(0.3 * torch.randn_like(parameter))
    return connections


def written_out(layer, x):
    pre, post, matrix = layer.coefficients(x)
    u = (pre.unsqueeze(-1) * x).sum(-2)
    return matrix @ x + post.unsqueeze(-1) * layer.branch(u).unsqueeze(-2)


@pytest.mark.parametrize("norm", ["rms", "layer"])  # a kernel reads with the first, not with the second
@pytest.mark.parametrize("dynamic", [True, False])
@pytest.mark.parametrize("chain", [lambda made: nn.Sequential(*made), layers.HyperStack])
def test_a_subclass_makes_coefficients(chain, dynamic, norm):
    connections = made(Swapping, dynamic=dynamic, norm=norm)
    x = torch.randn(5, 7, 4, 8, requires_grad=True)
    expected = x
    for layer in connections:
        expected = written_out(layer, expected)
    actual = chain(connections)(x)
    torch.testing.assert_close(actual, expected)
    parameters = [x, *(p for p in connections[0].parameters() if p.requires_grad)]
    gradients = [torch.autograd.grad(y.sin().sum(), parameters, retain_graph=True) for y in (actual, expected)]
    torch.testing.assert_close(*gradients)


def test_a_single_pass_takes_them_too():
    connections, x = made(Swapping), torch.randn(5, 4, 8)
    expected, pre = x, torch.eye(4)[0]
    for layer in connections:
        own, post, matrix = layer.coefficients(expected)
        u = (pre.unsqueeze(-1) * expected).sum(-2)
        expected, pre = matrix @ expected + post.unsqueeze(-1) * layer.branch(u).unsqueeze(-2), own
    result = (pre.unsqueeze(-1) * expected).sum(-2)
    torch.testing.assert_close(layers.SinglePass(connections)(x), result)


@pytest.mark.parametrize("dynamic", [True, False])
def test_coefficients_replaced_on_one_layer_are_used(dynamic):
    connections, x = made(layers.HyperConnection, dynamic=dynamic), torch.randn(5, 4, 8)
    _, post, matrix = (c[0] if dynamic else c for c in connections[1].coefficients(x[:1]))
    connections[1].coefficients = lambda x: (x.square().mean(-1), post.expand(*x.shape[:-1]), matrix)
    expected = x
    for layer in connections:
        expected = written_out(layer, expected)
    torch.testing.assert_close(layers.HyperStack(connections)(x), expected)
    torch.testing.assert_close(nn.Sequential(*connections)(x), expected)
    compiled = torch.compile(layers.HyperStack(connections), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), expected)


class Half:
    """Writes half as much."""

    def forward(self, raw_read, raw_write):
        pre, post = super().forward(raw_read, raw_write)
        return pre, post / 2


class Halved(SoftmaxGate):
    def forward(self, raw_read, raw_write):
        pre, post = super().forward(raw_read, raw_write)
        return pre, post / 2


class Mixed(Half, SoftmaxGate):
    pass


class Called(SoftmaxGate):
    def __call__(self, *raw):
        pre, post = super().__call__(*raw)
        return pre, post / 2


class Around(nn.Module):
    """Has whatever the module inside has, but for a forward and a bound of its own."""

    def __init__(self, inside):
        super().__init__()
        self.inside = inside

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inside"), name)

    def forward(self, *raw):
        made = self.inside(*raw)
        return made if isinstance(made, torch.Tensor) else (made[0], made[1] / 2)

    def squash(self, dynamic):
        return dynamic.atan()


class Bounded(Sinkhorn):
    """Bounds its numbers by another function than tanh."""

    def squash(self, dynamic):
        return dynamic.atan()


class Any(nn.Module):
    """A mixer that is none of the library's classes."""

    streams, n_coefficients, mixes = 4, 16, True

    def squash(self, dynamic):
        return dynamic.sin()

    def forward(self, raw):
        return raw.unflatten(-1, (4, 4)).softmax(-1)


def replace_in(layer, name):
    """Put something of somebody's own in the place of what kernels know."""
    if name == "gate's forward":
        forward = layer.gate.forward
        layer.gate.forward = lambda *raw: tuple(weights / 2 for weights in forward(*raw))
    elif name == "gate's hook":
        layer.gate.register_forward_hook(lambda _module, _args, weights: (weights[0].flip(-1), weights[1] / 3))
    elif name == "mixer's squash":
        layer.mixer.squash = torch.atan
    else:
        part, make = {
            "gate": ("gate", lambda _: Halved(4, 1)),
            "gate of two classes": ("gate", lambda _: Mixed(4, 1)),
            "gate's call": ("gate", lambda _: Called(4, 1)),
            "gate's wrapper": ("gate", Around),
            "mixer": ("mixer", lambda _: Bounded(4)),
            "mixer's wrapper": ("mixer", Around),
            "mixer of no class": ("mixer", lambda _: Any()),
        }[name]
        setattr(layer, part, make(getattr(layer, part)))


REPLACED = ["gate", "gate of two classes", "gate's call", "gate's wrapper", "gate's forward", "gate's hook"]
REPLACED += ["mixer", "mixer's wrapper", "mixer of no class", "mixer's squash"]


@pytest.mark.parametrize("name", REPLACED)
@pytest.mark.parametrize("tokens", [5, 600])
def test_gates_and_mixers_of_ones_own_are_used(tokens, name):
    connections, x = (
        made(layers.HyperConnection, mixer="sinkhorn", gate="softmax", norm="rms"),
        torch.randn(tokens, 4, 8),
    )
    plain = layers.HyperStack(connections)(x)
    replace_in(connections[1], name)
    expected = x
    for layer in connections:
        expected = written_out(layer, expected)
    assert not torch.allclose(expected, plain, atol=1e-3)
    torch.testing.assert_close(layers.HyperStack(connections)(x), expected)
    torch.testing.assert_close(nn.Sequential(*connections)(x), expected)


def test_a_gate_whose_class_was_changed_is_called(monkeypatch):
    layer, x = made(layers.HyperConnection, gate="softmax")[0], torch.randn(5, 4, 8)
    own = SoftmaxGate.forward
    monkeypatch.setattr(SoftmaxGate, "forward", lambda self, *raw: tuple(w / 2 for w in own(self, *raw)))
    torch.testing.assert_close(layer(x), written_out(layer, x))
    assert layer.last[1].sum(-1).allclose(torch.tensor(2.0))


def test_hooks_of_all_modules_see_gates():
    layer, x = made(layers.HyperConnection, gate="softmax")[0], torch.randn(5, 4, 8)

    def third(module, _args, weights):
        return (weights[0], weights[1] / 3) if isinstance(module, SoftmaxGate) else None

    handle = nn.modules.module.register_module_forward_hook(third)
    try:
        layer(x)
    finally:
        handle.remove()
    assert layer.last[1].sum(-1).allclose(torch.tensor(4 / 3))


@pytest.mark.parametrize("name", ["gate", "gate of two classes", "gate's wrapper", "mixer", "mixer of no class"])
def test_traced_layers_with_parts_of_ones_own_can_be_saved(name, tmp_path):
    connections, x = made(layers.HyperConnection, mixer="sinkhorn", gate="softmax", norm="rms"), torch.randn(5, 4, 8)
    replace_in(connections[1], name)
    stack = layers.HyperStack(connections)
    torch.jit.save(torch.jit.trace(stack, x), tmp_path / "stack.pt")
    torch.testing.assert_close(torch.jit.load(tmp_path / "stack.pt")(x), stack(x))
