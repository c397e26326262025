"""Fixed-point solvers: small frozen objects that propose the next iterate, and the loop that runs them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from jpmhc.autodiff.convergence import Check, Watch
from jpmhc.autodiff.equation import Equation
from jpmhc.autodiff.linear import Dense, LinearSolver, lu_solve
from jpmhc.autodiff.options import check_count, check_damping, check_tolerance


class Solver(Protocol):
    """Proposes iterates for ``z = fn(z)``; the loop measures, freezes and stops."""

    @property
    def tol(self) -> float:
        """Residual at which a sample has converged."""
        ...

    @property
    def max_steps(self) -> int:
        """Largest number of steps, each with an evaluation of the function whose residual is measured."""
        ...

    def step(self, equation: Equation, z: Tensor, image: Tensor, leaves: Sequence[Tensor], state: Any) -> Any:
        """Next iterate and next state from ``z``, ``image = fn(z)`` and the state, which is ``None`` at first."""
        ...


def iterate(
    solver: Solver, equation: Equation, z0: Tensor, leaves: Sequence[Tensor], check: Check
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Run a solver from ``z0`` of shape ``(*batch, D)``.

    The residual of a sample is ``max |fn(z) - z| / (1 + max |z|)``, measured at the very ``z`` that is returned. A
    sample whose residual is at most ``tol`` is frozen. With ``check="none"`` it takes ``max_steps`` steps and reads
    nothing on the host. A step evaluates the function once, and the solver may evaluate it more often.

    Returns
    -------
    tuple
        ``z``; per sample the number of evaluations it took, its residual, and whether it converged.
    """
    watch = Watch(check, f"fixed_point: {type(solver).__name__}", _ADVICE)
    z = z0.clone()
    state = None
    converged = torch.zeros(z.shape[:-1], dtype=torch.bool, device=z.device)
    steps = torch.zeros(z.shape[:-1], dtype=torch.int64, device=z.device)
    residual = torch.full(z.shape[:-1], torch.inf, dtype=z.dtype, device=z.device)
    for step in range(1, solver.max_steps + 1):
        image = equation(z, *leaves)
        steps = steps + ~converged
        residual = torch.where(converged, residual, fixed_point_residual(z, image))
        converged = residual <= solver.tol
        if step == solver.max_steps or watch.stops(residual, solver.tol):
            break
        proposal, state = solver.step(equation, z, image, leaves, state)
        z = torch.where(converged.unsqueeze(-1), z, proposal)
    watch.conclude(residual, solver.tol, step)
    return z, steps, residual, converged


def fixed_point_residual(z: Tensor, image: Tensor) -> Tensor:
    """``max |image - z| / (1 + max |z|)`` of every sample: absolute for small solutions, relative for large ones."""
    z, image = z.detach(), image.detach()
    return (image - z).abs_().amax(-1) / (1 + z.abs().amax(-1))


_ADVICE = (
    "raise max_steps or tol, start closer, or take a more robust solver: "
    "Picard(damping=0.5) or Anderson(damping=0.5) against oscillation, Broyden or Newton where fn does not contract"
)


@dataclass(frozen=True)
class Picard:
    """Plain iteration ``z <- z + damping (fn(z) - z)``: the cheapest step, for maps that contract.

    Parameters
    ----------
    damping : float, default=1.0
        Share of the step that is taken, in (0, 1]; below one it tames oscillation.
    tol : float, default=1e-6
        Residual ``max |fn(z) - z| / (1 + max |z|)`` at which a sample has converged.
    max_steps : int, default=100
        Largest number of evaluations of the function.

    Notes
    -----
    The error falls by the spectral radius of the Jacobian a step.
    """

    damping: float = 1.0
    tol: float = 1e-6
    max_steps: int = 100

    def __post_init__(self) -> None:
        check_tolerance(self.tol)
        check_count("max_steps", self.max_steps)
        check_damping(self.damping)

    def step(self, equation: Equation, z: Tensor, image: Tensor, leaves: Sequence[Tensor], state: None) -> Any:
        """See `Solver.step`."""
        return image if self.damping == 1 else torch.lerp(z, image, self.damping), None


@dataclass(frozen=True)
class Anderson:
    """Anderson acceleration: the step that would cancel the residual if ``fn`` were affine on the last iterates.

    Parameters
    ----------
    memory : int, default=5
        Differences of past iterates that are kept.
    damping : float, default=1.0
        Share of the accelerated step's residual part that is taken, in (0, 1].
    regularisation : float, default=1e-8
        Ridge of the least-squares problem, whose columns have unit length; the dtype's round-off is added.
    tol : float, default=1e-6
        Residual ``max |fn(z) - z| / (1 + max |z|)`` at which a sample has converged.
    max_steps : int, default=100
        Largest number of evaluations of the function.

    Notes
    -----
    Type II (Anderson 1965; Walker and Ni 2011), one small least-squares problem a sample and step, solved without a
    host check; a sample whose problem is degenerate takes the plain step. Keeps ``2 memory`` vectors a sample.
    """

    memory: int = 5
    damping: float = 1.0
    regularisation: float = 1e-8
    tol: float = 1e-6
    max_steps: int = 100

    def __post_init__(self) -> None:
        check_tolerance(self.tol)
        check_count("max_steps", self.max_steps)
        check_count("memory", self.memory)
        check_damping(self.damping)
        if not self.regularisation >= 0:
            raise ValueError(f"regularisation: expected a number >= 0, got {self.regularisation}")

    def step(self, equation: Equation, z: Tensor, image: Tensor, leaves: Sequence[Tensor], state: Any) -> Any:
        """See `Solver.step`."""
        residual = image - z
        plain = z + self.damping * residual
        if state is None:
            return plain, (z, residual, (), ())
        z_before, residual_before, moves, changes = state
        moves = (*moves, z - z_before)[-self.memory :]
        changes = (*changes, residual - residual_before)[-self.memory :]
        A = torch.stack(changes, dim=-2)  # (*batch, m, D)
        # Unit columns: the differences shrink with the iteration, and the newest, smallest ones matter most. The
        # scale cancels in the result, so no derivative passes through it.
        norm = torch.linalg.vector_norm(A.detach(), dim=-1, keepdim=True)
        scale = torch.where(norm > 0, 1 / norm, 0)
        A = A * scale
        ridge = self.regularisation + torch.finfo(z.dtype).eps
        gram = A @ A.mT + ridge * torch.eye(len(changes), dtype=z.dtype, device=z.device)
        weights = lu_solve(gram, (residual.unsqueeze(-2) @ A.mT).mT)
        weights = torch.where(weights.isfinite(), weights, 0) * scale
        correction = torch.stack(moves, dim=-2) + self.damping * torch.stack(changes, dim=-2)
        return plain - (weights * correction).sum(-2), (z, residual, moves, changes)


@dataclass(frozen=True)
class Broyden:
    """Broyden's good method for ``fn(z) - z = 0`` with the inverse Jacobian in low-rank form.

    Parameters
    ----------
    memory : int, default=16
        Rank-one updates after which it starts afresh, so that memory does not grow with the steps.
    tol : float, default=1e-6
        Residual ``max |fn(z) - z| / (1 + max |z|)`` at which a sample has converged.
    max_steps : int, default=100
        Largest number of evaluations of the function.

    Notes
    -----
    Broyden 1965, inverse form; starts from the plain iteration. Converges superlinearly near a solution, contraction
    or not. Keeps ``2 memory`` vectors a sample.
    """

    memory: int = 16
    tol: float = 1e-6
    max_steps: int = 100

    def __post_init__(self) -> None:
        check_tolerance(self.tol)
        check_count("max_steps", self.max_steps)
        check_count("memory", self.memory)

    def step(self, equation: Equation, z: Tensor, image: Tensor, leaves: Sequence[Tensor], state: Any) -> Any:
        """See `Solver.step`."""
        residual = image - z
        if state is None:
            return image, (z, residual, (), ())
        z_before, residual_before, lefts, rights = state
        if len(lefts) == self.memory:
            # Later updates build on the earlier ones, so they go together.
            lefts, rights = (), ()
        move, change = z - z_before, residual - residual_before
        # H approximates the inverse of d(fn - z); H = -I + sum left right^T.
        gap = move - _low_rank(change, lefts, rights)
        row = _low_rank(move, rights, lefts)
        denominator = (row * change).sum(-1, keepdim=True)
        # A sample that does not move has nothing to learn; it keeps its H.
        usable = denominator.abs() > torch.finfo(z.dtype).eps * row.norm(dim=-1, keepdim=True) * change.norm(
            dim=-1, keepdim=True
        )
        left = torch.where(usable, gap / torch.where(usable, denominator, 1), 0)
        lefts, rights = (*lefts, left), (*rights, row)
        return z - _low_rank(residual, lefts, rights), (z, residual, lefts, rights)


def _low_rank(vector: Tensor, lefts: tuple[Tensor, ...], rights: tuple[Tensor, ...]) -> Tensor:
    """``(-I + sum left right^T) vector``."""
    if not lefts:
        return -vector
    coefficients = vector.unsqueeze(-2) @ torch.stack(rights, dim=-2).mT
    return (coefficients.mT * torch.stack(lefts, dim=-2)).sum(-2) - vector


_DENSE = Dense()


@dataclass(frozen=True)
class Newton:
    """Newton's method: one linear solve with ``I - J`` a step, quadratic convergence near the solution.

    Parameters
    ----------
    linear_solver : LinearSolver, default=Dense()
        Solves for the step; an inexact step only slows convergence.
    tol : float, default=1e-6
        Residual ``max |fn(z) - z| / (1 + max |z|)`` at which a sample has converged.
    max_steps : int, default=20
        Largest number of steps.

    Notes
    -----
    A step evaluates the function twice, for the residual and for the Jacobian; the last one, which is not followed by
    a solve, once: ``2 max_steps - 1`` evaluations at most.
    """

    linear_solver: LinearSolver = _DENSE
    tol: float = 1e-6
    max_steps: int = 20

    def __post_init__(self) -> None:
        check_tolerance(self.tol)
        check_count("max_steps", self.max_steps)

    def step(self, equation: Equation, z: Tensor, image: Tensor, leaves: Sequence[Tensor], state: None) -> Any:
        """See `Solver.step`."""
        jacobian = equation.linearised(z, leaves, transposed=False)
        # The outer loop judges convergence; the inner solve is watched by nobody.
        move, _ = self.linear_solver.solve(jacobian, image - z, Watch("none", "", ""))
        return z + move, None
