"""Derivatives are the same where hooks on saved tensors are at work: offloading, checkpoints, recomputed reads."""

import contextlib

import pytest
import torch
from torch import nn
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from jpmhc import autodiff, layers
from jpmhc.autodiff.hooks import hooks_aside
from tests.autodiff.equations import arguments, error, layer, loss, unrolled

SOLVERS = [autodiff.Anderson(tol=1e-13, max_steps=200), autodiff.Newton(tol=1e-13)]
ADJOINTS = [autodiff.Implicit(), autodiff.Unrolled(), autodiff.PhantomGradient(60)]


def first_and_second(function, inputs):
    """First derivatives of `loss`, and those of their squares."""
    first = torch.autograd.grad(loss(function(*inputs)), inputs, create_graph=True)
    return first, torch.autograd.grad(sum(part.square().sum() for part in first), inputs)


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("adjoint", ADJOINTS, ids=lambda a: type(a).__name__)
@pytest.mark.parametrize("backward_inside", [False, True], ids=["backward outside", "backward inside"])
def test_a_fixed_point_may_be_offloaded(solver, adjoint, backward_inside):
    inputs = [tensor.requires_grad_() for tensor in arguments()]
    stack = contextlib.ExitStack()

    def solve(*given):
        value = autodiff.fixed_point(layer, torch.zeros_like(given[1]), *given, solver=solver, adjoint=adjoint).value
        if not backward_inside:
            stack.close()
        return value

    with stack:
        stack.enter_context(save_on_cpu())
        found = first_and_second(solve, inputs)
    assert error(found, first_and_second(unrolled, inputs)) < 1e-8


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("adjoint", ADJOINTS, ids=lambda a: type(a).__name__)
@pytest.mark.parametrize("captures", [False, True], ids=["given", "captured"])
def test_a_fixed_point_may_be_recomputed(solver, adjoint, captures):
    inputs = [tensor.requires_grad_() for tensor in arguments()]

    def solve(*given):
        z0, options = torch.zeros_like(given[1]), {"solver": solver, "adjoint": adjoint}
        if captures:
            return autodiff.fixed_point(lambda z: layer(z, *given), z0, **options).value
        return autodiff.fixed_point(layer, z0, *given, **options).value

    found = torch.autograd.grad(loss(checkpoint(solve, *inputs, use_reentrant=False)), inputs)
    assert error(found, torch.autograd.grad(loss(unrolled(*inputs)), inputs)) < 1e-9


def test_a_quaternion_may_be_differentiated_twice_while_offloaded():
    pair = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    expected = first_and_second(autodiff.quaternion, [pair])
    with save_on_cpu():
        found = first_and_second(autodiff.quaternion, [pair])
    assert error(found, expected) < 1e-12


class Equilibrium(nn.Module):
    def __init__(self, solver):
        super().__init__()
        self.linear, self.solver = nn.Linear(8, 8, dtype=torch.float64), solver

    def forward(self, u):
        def fn(z):
            return 0.3 * torch.tanh(self.linear(z)) + u

        return autodiff.fixed_point(fn, torch.zeros_like(u), solver=self.solver).value


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: type(s).__name__)
def test_a_fixed_point_may_be_a_branch_whose_reads_are_recomputed(solver):
    torch.manual_seed(0)
    made = [layers.HyperConnection(8, Equilibrium(solver), layer_index=i, dtype=torch.float64) for i in range(2)]
    x = torch.randn(3, 4, 8, dtype=torch.float64, requires_grad=True)
    found, expected = (
        torch.autograd.grad(loss(layers.HyperStack(made, recompute_reads=again)(x)), [x, *made[0].branch.parameters()])
        for again in (True, False)
    )
    assert error(found, expected) < 1e-10


def test_hooks_come_back_in_their_order_after_an_error_too():
    seen = []

    def hooks(name):
        return saved_tensors_hooks(lambda tensor: seen.append(name) or tensor, lambda tensor: tensor)

    x = torch.ones(2, requires_grad=True)
    with hooks("outer"):
        with hooks("inner"):
            with contextlib.suppress(KeyError), hooks_aside():
                x.sin()
                raise KeyError
            assert seen == []
            x.sin()
        x.sin()
    assert seen == ["inner", "outer"]
