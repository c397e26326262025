"""Rules made by the helpers stay right when transforms nest."""

from typing import Any

import pytest
import torch
from torch.func import jacfwd, jvp, vmap

from jpmhc.autodiff.transforms import differentiable, leading_batch, tangent_rule, traced_orders


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
