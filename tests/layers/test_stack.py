"""A stack of layers is the layers one by one."""

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.utils.checkpoint import checkpoint

from jpmhc import layers


def connections(count=3, dim=8, streams=4, dtype=torch.float64, **options):
    """Layers away from their start."""
    torch.manual_seed(0)
    options = {"mixer": "cayley", **options}
    made = [
        layers.HyperConnection(dim, nn.Linear(dim, dim), streams=streams, layer_index=i, **options)
        for i in range(count)
    ]
    for layer in made:
        with torch.no_grad():
            for parameter in layers.mixing_parameters(layer):
                parameter.add_(0.3 * torch.randn_like(parameter))
    return nn.ModuleList(made).to(dtype)


def one_by_one(made, x, norm=False):
    for layer in made:
        x = layer(x)
        x = nn.functional.rms_norm(x, x.shape[-1:], eps=1e-5) if norm else x
    return x


def streams(*shape, dtype=torch.float64):
    draw = torch.Generator().manual_seed(1)
    return torch.randn(*(shape or (2, 5)), 4, 8, generator=draw, dtype=dtype).requires_grad_()


OPTIONS = [
    {"mixer": "sinkhorn", "gate": "sigmoid"},
    {"mixer": layers.Sinkhorn(4, iterations=3, last="rows"), "gate": "sigmoid"},
    {"mixer": "identity"},
    {"mixer": "free", "gate": "tanh", "norm": None},
    {"dynamic": False},
    {"norm": "layer"},
    {"norm": "streams"},
    {"projection": "published", "mixer": "sinkhorn"},
    {"gate": "uniform", "stream_embedding": True},
    {"fractions": 2},
    {"static": False, "scale": None},
]


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_values_gradients_and_statistics_are_those_of_the_layers_one_by_one(options, norm):
    made = connections(**options)
    stack = layers.HyperStack(made, post_norm="rms" if norm else None)
    x = streams()
    exact = one_by_one(made, x, norm)
    kept = [layer.last for layer in made]
    found = stack(x)
    torch.testing.assert_close(found, exact)
    torch.testing.assert_close([layer.last for layer in made], kept)
    wanted = [x, *(p for p in made.parameters() if p.requires_grad)]
    cotangent = torch.randn_like(exact)
    for output in (found, exact):
        output.retain_grad()
    actual = torch.autograd.grad(found, wanted, cotangent, allow_unused=True, materialize_grads=True)
    expected = torch.autograd.grad(exact, wanted, cotangent, allow_unused=True, materialize_grads=True)
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_low_precision_streams_agree_to_their_precision(dtype):
    made, x = connections(dtype=torch.float32), streams(dtype=dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype is torch.bfloat16):
        found, exact = layers.HyperStack(made)(x), one_by_one(made, x)
    assert found.dtype == dtype
    torch.testing.assert_close(found, exact)


def test_layers_of_different_kinds_and_with_hooks_stand_side_by_side():
    made = [*connections(2), *connections(1, fractions=2), *connections(2, mixer="identity")]
    calls = []
    made[1].register_forward_hook(lambda *_: calls.append("hook"))
    x = streams()
    torch.testing.assert_close(layers.HyperStack(made)(x), one_by_one(made, x))
    assert calls == ["hook", "hook"]


def test_hooks_of_all_modules_are_called():
    made, x, calls = connections(2), streams(), []
    handle = nn.modules.module.register_module_forward_hook(
        lambda module, *_: calls.append(module) if isinstance(module, layers.HyperConnection) else None
    )
    try:
        layers.HyperStack(made)(x)
    finally:
        handle.remove()
    assert calls == [*made]


class Around(nn.Module):
    """A wrapper that shows nothing of what it wraps."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, *args, **kwargs):
        return self.module(*args, **kwargs)


@pytest.mark.parametrize("wrap", [Around, checkpoint_wrapper, lambda m: torch.compile(m, backend="eager")])
def test_layers_that_are_wrapped_in_the_stack_stand_alone(wrap):
    torch._dynamo.reset()
    made, x = connections(4), streams()
    exact = one_by_one(made, x, norm=True)
    wanted = [x, *made.parameters()]
    expected = torch.autograd.grad(exact.sin().sum(), wanted)
    stack = layers.HyperStack(made, post_norm="rms")
    stack.connections[1] = wrap(stack.connections[1])
    found = stack(x)
    torch.testing.assert_close(found, exact)
    torch.testing.assert_close(torch.autograd.grad(found.sin().sum(), wanted), expected)


def test_a_compiled_stack_an_exported_one_and_a_recomputed_one_agree():
    torch._dynamo.reset()
    stack, x = layers.HyperStack(connections(dtype=torch.float32), post_norm="rms"), streams(dtype=torch.float32)
    exact = stack(x)
    wanted = [x, *stack.parameters()]
    gradients = torch.autograd.grad(exact.sin().sum(), wanted)
    compiled = torch.compile(stack, fullgraph=True, backend="aot_eager")
    for function in (compiled, lambda x: checkpoint(stack, x, use_reentrant=False)):
        torch.testing.assert_close(function(x), exact)
        torch.testing.assert_close(torch.autograd.grad(function(x).sin().sum(), wanted), gradients)
    torch.testing.assert_close(torch.export.export(stack, (x,)).module()(x), exact)


def test_second_derivatives_and_forward_mode():
    stack = layers.HyperStack(connections(2))
    x = streams(2).detach().requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x: stack(x).sin(), [x], atol=1e-4)
    tangent, cotangent = torch.randn_like(x), torch.randn_like(x)
    _, pushed = torch.func.jvp(stack, (x.detach(),), (tangent,))
    pulled = torch.autograd.grad(stack(x), x, cotangent)[0]
    torch.testing.assert_close((pushed * cotangent).sum(), (pulled * tangent).sum())
    torch.testing.assert_close(torch.func.vmap(stack)(torch.stack([x, 2 * x]))[1], stack(2 * x))


def test_arguments_reach_the_branches():
    def scaled(u, factor, shift=0.0):
        return u * factor + shift

    made = [layers.HyperConnection(8, scaled, layer_index=i) for i in range(2)]
    x = streams(dtype=torch.float32)
    found = layers.HyperStack(made)(x, 2.0, arguments=[None, {"shift": 1.0}])
    torch.testing.assert_close(found, made[1](made[0](x, 2.0), 2.0, shift=1.0))


class Returning(nn.Module):
    """A branch that returns more than its result."""

    def __init__(self, wrap):
        super().__init__()
        self.inner, self.wrap = nn.Linear(8, 8, dtype=torch.float64), wrap

    def forward(self, u):
        return self.wrap(self.inner(u))


@pytest.mark.parametrize("norm", [False, True])
def test_what_branches_return_beside_their_result_comes_out_beside_the_streams(norm):
    wraps = [lambda y: (y, "cache"), lambda y: y, lambda y: {"shift": 3, "y": y}, lambda y: [y, y.detach()]]
    made = connections(4)
    for layer, wrap in zip(made, wraps, strict=True):
        layer.branch = Returning(wrap)
    made[3].register_forward_hook(lambda *_: None)  # this one runs by itself
    x = streams()
    expected = x
    for layer, find in zip(
        made, (lambda out: out[0], lambda out: out, lambda out: out["y"], lambda out: out[0]), strict=True
    ):
        expected = find(layer(expected))
        expected = nn.functional.rms_norm(expected, (8,), eps=1e-5) if norm else expected
    found, rests = layers.HyperStack(made, post_norm="rms" if norm else None)(x)
    torch.testing.assert_close(found, expected)
    assert rests[:3] == [("cache",), None, {"shift": 3}]
    assert rests[3][0].shape == (2, 5, 8)
    gradients = [torch.autograd.grad(out.sin().sum(), [x, *made.parameters()]) for out in (found, expected)]
    torch.testing.assert_close(*gradients)


def test_an_empty_batch_goes_through():
    stack = layers.HyperStack(connections())
    x = streams(0)
    result = stack(x)
    assert result.shape == x.shape
    for gradient in torch.autograd.grad(result.sum(), [x, *stack.parameters()]):
        assert (gradient == 0).all()


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="connections: expected at least one"):
        layers.HyperStack([])
    with pytest.raises(TypeError, match="connections: expected HyperConnection, got Linear"):
        layers.HyperStack([nn.Linear(2, 2)])
    with pytest.raises(TypeError, match="with a branch"):
        layers.HyperStack([layers.HyperConnection(8)])
    with pytest.raises(ValueError, match="one number of streams"):
        layers.HyperStack([*connections(1), *connections(1, streams=2)])
    with pytest.raises(ValueError, match="post_norm: expected 'rms' or None, got 'layer'"):
        layers.HyperStack(connections(), post_norm="layer")
    stack = layers.HyperStack([layers.HyperConnection(8, lambda u: ("cache", 1))])
    with pytest.raises(TypeError, match=r"branch: expected a tensor, or a tuple.*got tuple"):
        stack(streams())
    with pytest.raises(ValueError, match="arguments: expected 1 entries, got 2"):
        stack(streams(), arguments=[{}, {}])
    with pytest.raises(ValueError, match="x: expected shape"):
        stack(torch.randn(2, 3, 8))
    with pytest.raises(ValueError, match="branch: expected a result of shape"):
        layers.HyperStack([layers.HyperConnection(8, lambda u: u[..., :4])])(streams())


def test_a_layer_that_was_compiled_in_place_runs_compiled():
    stack = layers.HyperStack([layers.HyperConnection(8, torch.nn.Linear(8, 8)) for _ in range(3)])
    x = torch.randn(5, 4, 8)
    wanted = stack(x)
    traced = []

    def backend(graph, inputs):
        traced.append(graph)
        return graph.forward

    torch._dynamo.reset()
    stack.connections[1].compile(backend=backend)
    torch.testing.assert_close(stack(x), wanted)
    assert len(traced) == 1
