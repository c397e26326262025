"""Adjoints: how a fixed point is differentiated, through its equation or through its iteration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from jpmhc.autodiff.convergence import Check
from jpmhc.autodiff.derivatives import AdjointRecord, ImplicitProblem, solve_implicitly
from jpmhc.autodiff.equation import Equation
from jpmhc.autodiff.linear import GMRES, LinearSolver
from jpmhc.autodiff.options import check_count, check_damping
from jpmhc.autodiff.solvers import Solver, iterate
from jpmhc.autodiff.traced import attach_derivative

_GMRES = GMRES()

Solved = tuple[Tensor, Tensor, Tensor, Tensor]


class Adjoint(Protocol):
    """Solves an equation so that the solution carries a derivative."""

    def solve(
        self,
        equation: Equation,
        z0: Tensor,
        leaves: Sequence[Tensor],
        solver: Solver,
        check: Check,
        record: AdjointRecord,
    ) -> Solved:
        """Solution of shape ``(*batch, D)``; steps, residual and convergence of every sample."""
        ...


@dataclass(frozen=True)
class Implicit:
    """The derivative of the equation: ``dz = J dz + d fn``, one linear solve for a gradient or a tangent.

    Parameters
    ----------
    linear_solver : GMRES | Neumann | Dense
        Solves with ``I - J`` and its transpose.

    Notes
    -----
    Saves the solution and the arguments, nothing else: memory does not depend on the number of steps. Exact at every
    order up to the residuals of the solves. The derivative with respect to ``z0`` is zero.
    """

    linear_solver: LinearSolver = _GMRES

    def solve(
        self,
        equation: Equation,
        z0: Tensor,
        leaves: Sequence[Tensor],
        solver: Solver,
        check: Check,
        record: AdjointRecord,
    ) -> Solved:
        """See `Adjoint.solve`."""
        if torch.compiler.is_compiling():
            with torch.no_grad():
                constants = [leaf.detach() for leaf in leaves]
                z, steps, residual, converged = iterate(solver, equation, z0, constants, check)
            z = attach_derivative(equation, z.detach(), leaves, self.linear_solver)
            return z, steps, residual, converged
        problem = ImplicitProblem(equation, solver, self.linear_solver, check, record)
        return solve_implicitly(problem, z0.detach(), leaves)


_IMPLICIT = Implicit()


@dataclass(frozen=True)
class Unrolled:
    """The derivative of the iteration itself, every step saved: the honest choice for a solver that is stopped early.

    Notes
    -----
    Saves every step: memory grows with their number. Passes a derivative to ``z0`` too.
    """

    def solve(
        self,
        equation: Equation,
        z0: Tensor,
        leaves: Sequence[Tensor],
        solver: Solver,
        check: Check,
        record: AdjointRecord,
    ) -> Solved:
        """See `Adjoint.solve`."""
        return iterate(solver, equation, z0, leaves, check)


@dataclass(frozen=True)
class PhantomGradient:
    """The derivative of a few damped steps taken at the solution: cheap, and an approximation.

    Parameters
    ----------
    steps : int, default=5
        Steps that are differentiated.
    damping : float, default=1.0
        Share of each step that is taken, in (0, 1].

    Notes
    -----
    Geng et al., On Training Implicit Models, 2021. The error falls by the spectral radius of
    ``(1 - damping) I + damping J`` a step; with that below one and many steps it is the implicit gradient. Saves
    ``steps`` evaluations of the function.
    """

    steps: int = 5
    damping: float = 1.0

    def __post_init__(self) -> None:
        check_count("steps", self.steps)
        check_damping(self.damping)

    def solve(
        self,
        equation: Equation,
        z0: Tensor,
        leaves: Sequence[Tensor],
        solver: Solver,
        check: Check,
        record: AdjointRecord,
    ) -> Solved:
        """See `Adjoint.solve`."""
        constants = [leaf.detach() for leaf in leaves]
        solution, steps, residual, converged = _IMPLICIT.solve(equation, z0, constants, solver, check, record)
        z = solution.detach()
        for _ in range(self.steps):
            z = torch.lerp(z, equation(z, *leaves), self.damping)
        return z, steps, residual, converged
