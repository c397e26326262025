"""Derivative rules of a solution defined by an equation, exact at every order and in both modes.

Two functions close on themselves. `_FixedPoint` is ``z(leaves)`` with ``z = fn(z, leaves)``; its derivative solves
``dz = J dz + d fn . dleaves``. `_LinearSolve` is ``x(b, z, leaves)`` with ``x = J(z, leaves) x + b``; its derivative
solves ``dx = J dx + db + dJ x``, a system of the same kind, and its pullback the transposed one. Each saves its
solution and its inputs and nothing else, and each pushes a mapped axis into the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from jpmhc.autodiff.convergence import Check, Watch
from jpmhc.autodiff.equation import Equation, pullback, pushforward
from jpmhc.autodiff.linear import LinearSolver
from jpmhc.autodiff.precision import in_full_precision
from jpmhc.autodiff.solvers import Solver, iterate
from jpmhc.autodiff.transforms import takes_batched_gradients, tangent_rule


@dataclass
class AdjointRecord:
    """Where the linear solves of a derivative leave their residual for the solution's owner to read."""

    residual: Tensor | None = None


@dataclass(frozen=True, eq=False)
class ImplicitProblem:
    """An equation with the way to solve it and the way to solve its linearisation."""

    equation: Equation
    solver: Solver
    linear_solver: LinearSolver
    check: Check
    record: AdjointRecord

    def mapped(self, in_dims: Sequence[int | None], randomness: str) -> ImplicitProblem:
        """Put one more batch dimension in front."""
        return replace(self, equation=self.equation.mapped(in_dims, randomness))

    def watch(self, transposed: bool) -> Watch:
        """Watch a linear solve."""
        name = "adjoint" if transposed else "tangent"
        return Watch(self.check, f"fixed_point: the {name} solve", "give the linear solver more steps or use Dense()")


def solve_implicitly(
    problem: ImplicitProblem, z0: Tensor, leaves: Sequence[Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Solve for ``z`` with the derivative of its equation; per sample steps, residual and convergence."""
    return _FixedPoint.apply(problem, z0, *leaves)


@takes_batched_gradients
class _FixedPoint(torch.autograd.Function):
    """``(problem, z0, *leaves) -> (z, steps, residual, converged)``."""

    @staticmethod
    def forward(problem: ImplicitProblem, z0: Tensor, *leaves: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return iterate(problem.solver, problem.equation, z0, leaves, problem.check)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        problem, _, *leaves = inputs
        ctx.options = {"problem": problem}
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(output[0], *leaves)
        ctx.save_for_forward(output[0], *leaves)

    @staticmethod
    @in_full_precision
    def backward(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        problem: ImplicitProblem = ctx.options["problem"]
        z, *leaves = ctx.saved_tensors
        weight = _LinearSolve.apply(problem, True, gradient, z, *leaves)
        wanted = ctx.needs_input_grad[2:]
        return None, None, *pullback(lambda *given: problem.equation(z, *given), leaves, wanted, weight)

    @tangent_rule
    @in_full_precision
    def jvp(
        saved: tuple[Tensor, ...], _: None, _z0: Tensor | None, *tangents: Tensor | None, problem: ImplicitProblem
    ) -> tuple[Tensor | None, ...]:
        z, *leaves = saved
        rhs = pushforward(lambda *given: problem.equation(z, *given), leaves, tangents, like=z)
        return _LinearSolve.apply(problem, False, rhs, z, *leaves), None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], problem: ImplicitProblem, *tensors: Tensor) -> Any:
        (z0, *leaves), dims = _batch_in_front(info.batch_size, in_dims[1:], tensors, states=1)
        return _FixedPoint.apply(problem.mapped(dims[1:], info.randomness), z0, *leaves), (0, 0, 0, 0)


@takes_batched_gradients
class _LinearSolve(torch.autograd.Function):
    """``(problem, transposed, b, z, *leaves) -> x`` with ``x = J x + b``, or with the transpose of ``J``."""

    @staticmethod
    def forward(problem: ImplicitProblem, transposed: bool, rhs: Tensor, z: Tensor, *leaves: Tensor) -> Tensor:
        jacobian = problem.equation.linearised(z, leaves, transposed)
        x, residual = problem.linear_solver.solve(jacobian, rhs, problem.watch(transposed))
        problem.record.residual = residual
        return x

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        problem, transposed, _, z, *leaves = inputs
        ctx.options = {"problem": problem, "transposed": transposed}
        ctx.save_for_backward(output, z, *leaves)
        ctx.save_for_forward(output, z, *leaves)

    @staticmethod
    @in_full_precision
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        problem, transposed = ctx.options["problem"], ctx.options["transposed"]
        x, z, *leaves = ctx.saved_tensors
        weight = _LinearSolve.apply(problem, not transposed, gradient, z, *leaves)
        product = _jacobian_product(problem.equation, x, transposed)
        return None, None, weight, *pullback(product, (z, *leaves), ctx.needs_input_grad[3:], weight)

    @tangent_rule
    @in_full_precision
    def jvp(
        saved: tuple[Tensor, ...],
        _problem: None,
        _transposed: None,
        rhs: Tensor | None,
        *tangents: Tensor | None,
        problem: ImplicitProblem,
        transposed: bool,
    ) -> Tensor:
        x, z, *leaves = saved
        product = _jacobian_product(problem.equation, x, transposed)
        change = pushforward(product, (z, *leaves), tangents, like=x)
        return _LinearSolve.apply(problem, transposed, change if rhs is None else change + rhs, z, *leaves)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], problem: ImplicitProblem, transposed: bool, *tensors: Tensor) -> Any:
        (rhs, z, *leaves), dims = _batch_in_front(info.batch_size, in_dims[2:], tensors, states=2)
        return _LinearSolve.apply(problem.mapped(dims[2:], info.randomness), transposed, rhs, z, *leaves), 0


def _jacobian_product(equation: Equation, x: Tensor, transposed: bool) -> Callable[..., Tensor]:
    return lambda z, *leaves: equation.jacobian_product(z, leaves, x, transposed)


def _batch_in_front(
    size: int, in_dims: Sequence[int | None], tensors: Sequence[Tensor], states: int
) -> tuple[list[Tensor], list[int | None]]:
    """Move mapped axes to the front; give one to the first ``states`` tensors, which share the batch dimensions."""
    moved: list[Tensor] = []
    dims: list[int | None] = []
    for position, (dim, tensor) in enumerate(zip(in_dims, tensors, strict=True)):
        if dim is not None:
            tensor = tensor.movedim(dim, 0)
        elif position < states:
            tensor = tensor.expand(size, *tensor.shape)
        moved.append(tensor)
        dims.append(0 if dim is not None or position < states else None)
    return moved, dims
