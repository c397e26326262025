"""Rules made by the helpers stay right when transforms nest."""

import threading
import warnings
from typing import Any

import pytest
import torch
from torch._vmap_internals import _vmap
from torch.func import jacfwd, jvp, vmap

from jpmhc.autodiff.transforms import (
    along_batched_gradients,
    differentiable,
    leading_batch,
    tangent_rule,
    traced_orders,
)


@leading_batch
class Sine(torch.autograd.Function):
    @staticmethod
    def forward(x, frequency):
        return torch.sin(frequency * x)

    @staticmethod
    def setup_context(ctx: Any, inputs, output):
        ctx.options = {"frequency": inputs[1]}
        ctx.save_for_forward(inputs[0])

    @tangent_rule
    def jvp(saved, tangent, _, frequency):
        return frequency * torch.cos(frequency * saved[0]) * tangent


def test_forward_mode_nests():
    x = torch.tensor(0.3, dtype=torch.float64)
    derivative = lambda x: Sine.apply(x, 2.0)  # noqa: E731
    for expected in (2 * torch.cos(2 * x), -4 * torch.sin(2 * x), -8 * torch.cos(2 * x)):
        derivative = jacfwd(derivative)
        torch.testing.assert_close(derivative(x), expected)


def test_forward_mode_of_vmap_and_vmap_of_forward_mode():
    x = torch.randn(5, dtype=torch.float64)
    one = torch.ones((), dtype=torch.float64)

    def second(x, tangent):
        return jvp(lambda y: jvp(lambda z: Sine.apply(z, 2.0), (y,), (tangent,))[1], (x,), (tangent,))[1]

    expected = -4 * torch.sin(2 * x)
    torch.testing.assert_close(vmap(lambda y: second(y, one))(x), expected)
    mapped = vmap(lambda z: Sine.apply(z, 2.0))
    torch.testing.assert_close(jvp(mapped, (x,), (torch.ones_like(x),))[1], 2 * torch.cos(2 * x))


@leading_batch
class Product(torch.autograd.Function):
    """``x y`` of matrices, whose pullback applies it again."""

    @staticmethod
    def forward(x, y):
        return x * y

    @staticmethod
    def setup_context(ctx: Any, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient):
        x, y = ctx.saved_tensors
        return Product.apply(gradient, y), Product.apply(x, gradient)


def test_the_graph_is_kept_along_nested_axes_of_batched_gradients():
    x = torch.randn(2, 2, 2, dtype=torch.float64, requires_grad=True)
    left = torch.randn(3, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    right = torch.randn(4, 2, 2, 2, dtype=torch.float64, requires_grad=True)

    def cubes(multiply):
        def both(a, b):
            return multiply(multiply(a, b), x)

        by_outer = _vmap(lambda a: _vmap(lambda b: both(a, b) + multiply(a, x), 0, 0)(right), 0, 0)(left)
        by_inner = _vmap(lambda a: _vmap(lambda b: multiply(b, x) + multiply(b, a), 1, 1)(right.movedim(0, 1)), 0, 0)
        return by_outer.pow(3).sum() + by_inner(left).pow(2).sum()

    found = torch.autograd.grad(cubes(Product.apply), (x, left, right))
    torch.testing.assert_close(found, torch.autograd.grad(cubes(torch.mul), (x, left, right)))


def test_a_kernel_may_be_called_only_where_nothing_is_differentiated():
    assert differentiable()
    with torch.no_grad():
        assert not differentiable()
        with torch.autograd.forward_ad.dual_level():
            assert differentiable()


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_orders_count_the_transforms(depth):
    seen = []

    def function(x):
        seen.append(traced_orders())
        return x.sum()

    transformed = function
    for _ in range(depth):
        transformed = torch.func.grad(lambda x, inner=transformed: inner(x).sum())
    transformed(torch.randn(3))
    assert seen == [depth + 1]


def test_the_axis_of_batched_gradients_is_found_on_the_threads_of_a_backward_pass_too():
    def doubled_elsewhere(batch):
        found = []

        def work():
            found.append(along_batched_gradients(lambda size, dims, tensor: 2 * tensor, [batch]))

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        thread.join(timeout=60)
        return found[0]

    x = torch.randn(5, 3, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.testing.assert_close(_vmap(doubled_elsewhere)(x), 2 * x)
