"""The implicit derivative inside ``torch.compile``, in operations that its tracer differentiates correctly.

The tracer replaces the backward of an ``autograd.Function`` by that of its forward under ``torch.func.grad``, and drops
its ``jvp``, without a word (torch 2.13). So a function with a backward of its own is used only where reverse mode
outside is the one thing that can happen; wherever a transform is at work, the solution gets its derivatives by attached
Newton steps in plain operations: ``k`` of them, at a constant solution, are exact through order ``2^k - 1``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from jpmhc.autodiff.convergence import Watch
from jpmhc.autodiff.equation import Equation
from jpmhc.autodiff.linear import LinearSolver, dense_matrix, solve_with_matrix
from jpmhc.autodiff.transforms import traced_orders
from jpmhc.kernels.once import anchor
from jpmhc.kernels.transforms import transform_depth


def attach_derivative(equation: Equation, z: Tensor, leaves: Sequence[Tensor], linear_solver: LinearSolver) -> Tensor:
    """Give the constant solution ``z`` the derivative of ``z = fn(z, *leaves)``, for use under ``torch.compile``.

    In reverse mode alone ``linear_solver`` solves. Under a transform the Jacobian is formed in full: ``D^2`` numbers a
    sample, whatever the linear solver.
    """
    if transform_depth() == 0:
        image = equation(z, *leaves)
        if not image.requires_grad:
            # Without a gradient torch 2.13 calls a forward of variable length with one argument too many.
            return z
        constants = [leaf.detach() for leaf in leaves]
        return _ReverseOnly.apply(equation, linear_solver, image, anchor(image), z, *constants)
    attached = z
    for _ in range(traced_orders().bit_length()):
        product = equation.linearised(attached, leaves, transposed=True)
        jacobian = dense_matrix(product, attached).mT
        attached = attached + solve_with_matrix(jacobian, equation(attached, *leaves) - attached)
    return z + (attached - attached.detach())


class _ReverseOnly(torch.autograd.Function):
    """``(equation, linear_solver, image, anchor, z, *leaves) -> z``; its pullback to ``image`` is ``(I - J)^-T``."""

    @staticmethod
    def forward(
        equation: Equation, linear_solver: LinearSolver, image: Tensor, _anchor: Tensor, z: Tensor, *leaves: Tensor
    ) -> Tensor:
        return z.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.equation, ctx.linear_solver, _, _, *tensors = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        z, *leaves = ctx.saved_tensors
        # Compiled backward passes run under the autocast of the forward's caller.
        with torch.autocast(gradient.device.type, enabled=False):
            transposed = ctx.equation.linearised(z, leaves, transposed=True)
            weight, _ = ctx.linear_solver.solve(transposed, gradient, Watch("none", "", ""))
        return None, None, weight, None, None, *(None for _ in leaves)
