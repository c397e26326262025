"""Layers under the transformations that people put models through."""

import io

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from jpmhc import layers

MIXERS = [str(info) for info in layers.mixers() if info.supports(4)]


def layer(mixer, **options):
    """A layer away from its start."""
    torch.manual_seed(0)
    hc = layers.HyperConnection(8, nn.Linear(8, 8), streams=4, mixer=mixer, **options)
    with torch.no_grad():
        for parameter in layers.mixing_parameters(hc):
            parameter.add_(0.3 * torch.randn_like(parameter))
    return hc


def streams(batch=5):
    return torch.randn(batch, 4, 8, generator=torch.Generator().manual_seed(1))


def gradients(function, hc, x):
    x = x.clone().requires_grad_()
    return torch.autograd.grad(function(x).sin().sum(), [x, *hc.parameters()])


@pytest.mark.parametrize("mixer", MIXERS)
def test_compiled_whole_it_computes_the_same(mixer):
    torch._dynamo.reset()
    hc = layer(mixer)
    compiled = torch.compile(hc, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(streams()), hc(streams()), rtol=1e-5, atol=1e-5)
    for actual, expected in zip(gradients(compiled, hc, streams()), gradients(hc, hc, streams()), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mixer", ["sinkhorn", "cayley"])
@pytest.mark.slow
def test_compiled_by_inductor_it_computes_the_same(mixer):
    torch._dynamo.reset()
    hc = layer(mixer)
    compiled = torch.compile(hc, fullgraph=True)
    for actual, expected in zip(gradients(compiled, hc, streams()), gradients(hc, hc, streams()), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mixer", MIXERS)
def test_vmap_is_a_loop(mixer):
    hc = layer(mixer)
    x = streams(6).view(2, 3, 4, 8)
    torch.testing.assert_close(torch.func.vmap(hc)(x), torch.stack([hc(part) for part in x]))


@pytest.mark.parametrize("mixer", MIXERS)
def test_exported_it_computes_the_same(mixer):
    hc = layer(mixer)
    exported = torch.export.export(hc, (streams(),)).module()
    torch.testing.assert_close(exported(streams()), hc(streams()))


def test_an_exported_layer_takes_any_number_of_tokens():
    hc = layer("cayley")
    free = {0: torch.export.Dim("batch", max=64), 1: torch.export.Dim("tokens", max=4096)}
    exported = torch.export.export(hc, (streams(10).view(2, 5, 4, 8),), dynamic_shapes=(free,)).module()
    for x in (streams(27).view(3, 9, 4, 8), streams(1).view(1, 1, 4, 8), streams(300).view(2, 150, 4, 8)):
        torch.testing.assert_close(exported(x), hc(x))


@pytest.mark.parametrize("mixer", MIXERS)
def test_recomputed_in_backward_it_has_the_same_gradients(mixer):
    hc = layer(mixer)

    def again(x):
        return checkpoint(hc, x, use_reentrant=False)

    for actual, expected in zip(gradients(again, hc, streams()), gradients(hc, hc, streams()), strict=True):
        assert torch.equal(actual, expected)


@pytest.mark.parametrize("mixer", MIXERS)
def test_forward_mode_agrees_with_reverse_mode(mixer):
    hc = layer(mixer).double()
    x, tangent, cotangent = (torch.randn(3, 4, 8, dtype=torch.float64) for _ in range(3))
    _, pushed = torch.func.jvp(hc, (x,), (tangent,))
    _, pull = torch.func.vjp(hc, x)
    torch.testing.assert_close((pushed * cotangent).sum(), (pull(cotangent)[0] * tangent).sum())


def assert_batched_gradients_can_be_differentiated(function):
    """What ``is_grads_batched=True`` gives with ``create_graph=True`` has the derivative of single gradients."""
    x = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()
    result = function(x)
    cotangents = torch.randn(3, *result.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    (together,) = torch.autograd.grad(result, x, cotangents, is_grads_batched=True, create_graph=True)
    one_by_one = torch.stack([torch.autograd.grad(result, x, c, create_graph=True)[0] for c in cotangents])
    torch.testing.assert_close(together, one_by_one, rtol=1e-10, atol=1e-11)
    wanted = [x, *(parameter for parameter in function.parameters() if parameter.requires_grad)]
    found, expected = (
        torch.autograd.grad(part.square().sum(), wanted, allow_unused=True, materialize_grads=True, retain_graph=True)
        for part in (together, one_by_one)
    )
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("mixer", MIXERS)
def test_batched_gradients_of_a_layer_can_be_differentiated(mixer):
    assert_batched_gradients_can_be_differentiated(layer(mixer).double())


@pytest.mark.parametrize(
    "options", [{}, {"post_norm": "rms"}, {"recompute_reads": True}], ids=["plain", "post_norm", "recompute_reads"]
)
def test_batched_gradients_of_a_stack_can_be_differentiated(options):
    made = [layer(mixer).double() for mixer in ("cayley", "sinkhorn", "quaternion")]
    assert_batched_gradients_can_be_differentiated(layers.HyperStack(made, **options))


@pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node")
# Of a parameter that is a subclass, a manifold's base point, torch makes no graph.
@pytest.mark.parametrize("mixer", [mixer for mixer in MIXERS if mixer != "manifold"])
def test_linearised_a_layer_pushes_tangents_as_forward_mode_does(mixer):
    hc = layer(mixer).double()
    x, tangent = (torch.randn(3, 4, 8, dtype=torch.float64) for _ in range(2))
    value, pushed = torch.func.linearize(hc, x)
    torch.testing.assert_close(value, hc(x))
    torch.testing.assert_close(pushed(tangent), torch.func.jvp(hc, (x,), (tangent,))[1])


def assert_scripted_it_computes_the_same(function):
    """Traced with gradients on, it is checked, saved and loaded, and refuses to be differentiated."""
    traced = torch.jit.trace(function, (streams(),))
    file = io.BytesIO()
    torch.jit.save(traced, file)
    file.seek(0)
    loaded = torch.jit.load(file)
    for x in (streams(), 2 * streams(7)):
        torch.testing.assert_close(loaded(x), function(x))
    with pytest.raises(RuntimeError, match="no autograd formula"):
        loaded(streams()).sum().backward()


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("mixer", MIXERS)
def test_traced_to_torchscript_a_stack_computes_the_same(mixer):
    assert_scripted_it_computes_the_same(layers.HyperStack([layer(mixer), layer(mixer)]))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("mixer", ["sinkhorn", "cayley", "grassmann"])
def test_traced_to_torchscript_a_layer_computes_the_same(mixer):
    assert_scripted_it_computes_the_same(layer(mixer))


OPTIONS = [
    {"reads": 2},
    {"fractions": 2},
    {"fractions": 2, "gate": "tanh", "mixer": "free"},
    {"projection": "shared", "mixer": "free", "gate": "tanh"},
    {"gate": "uniform", "stream_embedding": True},
    {"mixer": layers.Sinkhorn(4, iterations=20, clamp=10.0), "scale": None, "norm": "streams-layer"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(map(str, options.values())))
def test_every_form_of_a_layer_goes_through_the_transformations(options):
    torch._dynamo.reset()
    branch = (lambda u, v: u * v.tanh()) if "reads" in options else nn.Linear(8, 8)
    hc = layers.HyperConnection(8, branch, **options)
    with torch.no_grad():
        for parameter in layers.mixing_parameters(hc):
            parameter.add_(0.3 * torch.randn_like(parameter))
    x = streams(6)
    torch.testing.assert_close(torch.func.vmap(hc)(x.view(2, 3, 4, 8)).flatten(0, 1), hc(x))
    compiled = torch.compile(hc, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), hc(x), rtol=1e-5, atol=1e-5)
    for actual, expected in zip(gradients(compiled, hc, x), gradients(hc, hc, x), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    exported = torch.export.export(hc, (x,)).module()
    torch.testing.assert_close(exported(x), hc(x))
    u, write = hc.read(x.bfloat16())
    assert write(u[0] if "reads" in options else u).dtype == torch.bfloat16
    for shape in ((0,), (2, 0), ()):
        assert hc(torch.randn(*shape, 4, 8)).shape == (*shape, 4, 8)


@pytest.mark.parametrize("wrap", [lambda hc: hc, nn.Sequential, lambda hc: layers.HyperStack([hc])])
def test_scripting_is_refused_in_words(wrap):
    hc = layers.HyperConnection(8, nn.Linear(8, 8))
    with pytest.raises(TypeError, match=r"torch.jit.script: expected .*, got HyperConnection; take torch\.jit\.trace"):
        torch.jit.script(wrap(hc))
