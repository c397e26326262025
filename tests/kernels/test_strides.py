"""What an operation returns is contiguous, as its shape rule says, however its arguments lie in memory."""

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from jpmhc import autodiff, kernels, layers
from jpmhc.kernels.boundary import Boundary, boundary_forward


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def small_maps(n):
    x, g = normal(6, n, n), normal(6, n, n, seed=1)
    weights, q = torch.softmax(x, -1), torch.linalg.qr(x).Q
    return {
        "sinkhorn_forward": (x, None, None, 1e-5, 64),
        "sinkhorn_sweeps": (x, None, None, 5),
        "sinkhorn_adjoint": (weights, g),
        "sinkhorn_potentials": (weights, g),
        "sinkhorn_balanced": (weights, g, 2),
        "sinkhorn_inverse": (weights,),
        "sinkhorn_scaled": (x.exp(), 1e-30, 1e-5, 64),
        "birkhoff_retraction": (torch.full_like(x, 1 / n), 0.01 * x / n, True, 1e-30, 1e-5, 64),
        "cayley_forward": (x, 1.0),
        "cayley_iterated": (x, 0.1, 2),
        "cayley_adjoint": (q, g, 1.0),
        "cayley_retraction": (q, 0.1 * g),
        "cayley_transport": (q, 0.1 * g, x),
        "tangent_part": (q, g, 1.0, -0.5, -0.5),
        "polar_forward": (x,),
        "polar_adjoint": (x, q, g),
        "newton_polar": (x,),
        "sylvester": (x @ x.mT + torch.eye(n), g),
        "orthonormalise": (x,),
        "inverse": (x,),
    }


def turned(tensor):
    return tensor.mT.contiguous().mT


def batch_last(tensor):
    return tensor.movedim(0, -1).contiguous().movedim(-1, 0)


def fake_strides(function, *args):
    """Strides that a tracer expects of the results."""
    seen = []

    def backend(graph, _inputs):
        for node in graph.graph.nodes:
            if "jpmhc" in str(node.target):
                seen.append(node.meta["example_value"])
        return graph

    torch._dynamo.reset()
    torch.compile(function, fullgraph=True, backend=backend)(*args)
    return [part.stride() for part in tree_leaves(seen)]


@pytest.mark.parametrize("lay", [turned, batch_last])
@pytest.mark.parametrize("backend", ["reference", "auto"])
@pytest.mark.parametrize("n", [3, 4, 12, 20])
def test_results_of_small_maps_are_contiguous(n, backend, lay):
    for name, args in small_maps(n).items():
        args = [lay(value) if isinstance(value, torch.Tensor) else value for value in args]
        with kernels.backend(backend):
            result = getattr(torch.ops.jpmhc, name)(*args)
        parts = tree_leaves(result)
        assert all(part.is_contiguous() for part in parts), name
        if lay is turned and n == 20:
            expected = fake_strides(getattr(torch.ops.jpmhc, name).default, *args)
            assert expected == [part.stride() for part in parts], name


@pytest.mark.parametrize("tokens", [5, 200])
def test_results_of_a_boundary_are_contiguous(tokens):
    x, y = batch_last(normal(tokens, 4, 8)), batch_last(normal(tokens, 8))
    post, pre = (batch_last(normal(tokens, 4, seed=s)) for s in (1, 2))
    arguments = Boundary(x, None, post, y, None, pre, None, "given", False, 1e-6, -1.0)
    assert all(part.is_contiguous() for part in boundary_forward(arguments))


@pytest.mark.parametrize(
    "function",
    [lambda x: autodiff.sinkhorn(x), lambda x: autodiff.cayley(x, step=0.1, iterations=2)],
    ids=["sinkhorn", "iterated"],
)
def test_compiled_maps_take_what_lies_otherwise(function):
    x = batch_last(turned(normal(6, 20, 20)))
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: function(x).reshape(-1) * 2, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), function(x).reshape(-1) * 2)


def test_a_compiled_layer_takes_streams_that_lie_otherwise():
    layer = layers.HyperConnection(8, nn.Linear(8, 8), mixer="identity")
    x = batch_last(normal(5, 4, 8))
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend="aot_eager")(x), layer(x))
