"""Vectorised Jacobians, and what is derived from them, are those of the definition."""

from functools import partial

import pytest
import torch
from torch.autograd.functional import jacobian

from jpmhc import autodiff, kernels
from jpmhc.autodiff.balanced import balanced
from tests.autodiff.maps import MAPS, cayley_by_inverse, unrolled_sinkhorn

SHIFT = torch.randn(3, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


def unrolled_fixed_point(weight):
    z = torch.zeros(3, dtype=weight.dtype)
    for _ in range(60):
        z = torch.tanh(z @ weight / 8 + SHIFT)
    return z


def fixed_point(weight, check, squash=torch.tanh):
    def fn(z, weight):
        return squash(z @ weight / 8 + SHIFT)

    z0 = torch.zeros(3, dtype=weight.dtype)
    solver = autodiff.Picard(tol=1e-15, max_steps=60)
    return autodiff.fixed_point(fn, z0, weight, solver=solver, check=check, batch_dims=0).value


class TanhByRules(torch.autograd.Function):
    """With a pullback that is a function with rules of its own."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return torch.tanh(x)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, gradient):
        return TanhPullback.apply(*ctx.saved_tensors, gradient)


class TanhPullback(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x, gradient):
        return gradient / torch.cosh(x) ** 2

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, cotangent):
        x, gradient = ctx.saved_tensors
        slope = 1 / torch.cosh(x) ** 2
        return -2 * torch.tanh(x) * slope * gradient * cotangent, slope * cotangent


def squared_jacobian_by(strategy, function):
    """A number made of the Jacobian, and its derivative, which torch takes through the graph of the Jacobian."""

    def call(x):
        x = x.detach().clone().requires_grad_()
        value = (jacobian(function, x, create_graph=True, vectorize=strategy == "vectorised") ** 2).sum()
        return value, torch.autograd.grad(value, x)[0]

    return call


VECTORISED = {
    **MAPS,
    "sinkhorn with marginals": (
        partial(autodiff.sinkhorn, row_marginals=torch.ones(3, dtype=torch.float64)),
        unrolled_sinkhorn,
    ),
    "quaternion": (
        lambda x: autodiff.quaternion(x.flatten()[:8].view(2, 4)),
        lambda x: kernels.plain_quaternion(x.flatten()[:8].view(2, 4)),
    ),
    "balanced": (
        lambda x: balanced(x.exp(), x),
        lambda x: balanced_by_equations(x.exp(), x),
    ),
    "fixed point": (partial(fixed_point, check="raise"), unrolled_fixed_point),
    "fixed point without checks": (partial(fixed_point, check="none"), unrolled_fixed_point),
    "fixed point of a function with rules of its own": (
        partial(fixed_point, check="raise", squash=lambda x: TanhByRules.apply(x)),
        unrolled_fixed_point,
    ),
    "map inside a map": (
        lambda x: autodiff.cayley(autodiff.sinkhorn(x) @ x),
        lambda x: cayley_by_inverse(unrolled_sinkhorn(x) @ x),
    ),
}


def balanced_by_equations(weights, matrix):
    identity, one = torch.eye(3, dtype=weights.dtype), torch.ones(1, 3, dtype=weights.dtype)
    sums = torch.cat([torch.kron(identity, one), torch.kron(one, identity)])  # of the rows, of the columns
    flat = (weights.reshape(-1) * sums).T
    missing = torch.linalg.pinv(sums @ flat) @ (sums @ matrix.reshape(-1))
    return matrix - (flat @ missing).view(3, 3)


@pytest.mark.parametrize("name", VECTORISED)
def test_derivative_of_a_vectorised_jacobian_is_that_of_the_definition(name):
    function, definition = VECTORISED[name]
    x = torch.randn(3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found, expected = (squared_jacobian_by(*way)(x) for way in (("vectorised", function), ("one by one", definition)))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", VECTORISED)
def test_second_derivative_through_batched_gradients_is_that_through_single_ones(name):
    function, _ = VECTORISED[name]
    x = torch.randn(3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()
    result = function(x)
    cotangents = torch.randn(4, *result.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    (together,) = torch.autograd.grad(result, x, cotangents, is_grads_batched=True, create_graph=True)
    one_by_one = torch.stack([torch.autograd.grad(result, x, c, create_graph=True)[0] for c in cotangents])
    torch.testing.assert_close(together, one_by_one, rtol=1e-10, atol=1e-11)
    mixed = torch.randn(5, *together.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    found = torch.autograd.grad(together, x, mixed, is_grads_batched=True, create_graph=True)[0]
    expected = torch.stack([torch.autograd.grad(one_by_one, x, m, create_graph=True)[0] for m in mixed])
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)
    third = [torch.autograd.grad(second.square().sum(), x, retain_graph=True)[0] for second in (found, expected)]
    torch.testing.assert_close(*third, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("name", VECTORISED)
def test_vectorised_forward_mode_is_the_jacobian_and_keeps_its_graph(name):
    function, definition = VECTORISED[name]
    scale = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    x = torch.randn(3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = jacobian(lambda x: function(scale * x), x, vectorize=True, strategy="forward-mode")
    expected = jacobian(lambda x: definition(scale * x), x, create_graph=True)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)
    derivatives = [torch.autograd.grad(part.square().sum(), scale)[0] for part in (found, expected)]
    torch.testing.assert_close(*derivatives, rtol=1e-9, atol=1e-10)
