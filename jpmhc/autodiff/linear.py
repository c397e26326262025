"""Linear systems ``x = J x + b`` with the Jacobian of a fixed-point equation, solved sample by sample in one batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from jpmhc.autodiff.convergence import Watch
from jpmhc.autodiff.options import check_count, check_tolerance
from jpmhc.kernels.batches import each
from jpmhc.kernels.elementary import eliminated, is_captured

Operator = Callable[[Tensor], Tensor]


class LinearSolver(Protocol):
    """Solves ``x = J x + b`` for a batch of right sides; ``J`` is known through its products only."""

    def solve(self, jacobian: Operator, rhs: Tensor, watch: Watch) -> tuple[Tensor, Tensor]:
        """Return the solution of shape ``(*batch, D)`` and its relative residual of shape ``batch``."""
        ...


def default_tolerance(dtype: torch.dtype) -> float:
    """1e-10 in float64 and 1e-6 in float32: what a well-posed system reaches with a margin for round-off."""
    return 1e-10 if dtype == torch.float64 else 1e-6


def _magnitude(vector: Tensor) -> Tensor:
    """Largest entry of every sample, of shape ``(*batch, 1)``; one where it is zero or not finite.

    In its unit a norm neither underflows nor overflows, which outside of about 1e-19 to 1e19 the squares in float32 do.
    """
    largest = vector.abs().amax(-1, keepdim=True)
    return torch.where((largest > 0) & largest.isfinite(), largest, 1)


def relative_residual(jacobian: Operator, x: Tensor, rhs: Tensor) -> Tensor:
    """``|b - (I - J) x| / (|b| + |x|)``, the backward error of ``x`` up to the norm of ``I - J``; zero for ``b = 0``.

    Measured against ``|b|`` alone no solver reaches the tolerance when ``I - J`` is badly conditioned: round-off in the
    product with ``x`` is in proportion to ``|x|``.
    """
    unit = _magnitude(rhs)
    error = torch.linalg.vector_norm((rhs - x + jacobian(x)) / unit, dim=-1)
    scale = torch.linalg.vector_norm(rhs / unit, dim=-1) + torch.linalg.vector_norm(x / unit, dim=-1)
    return torch.where(scale == 0, error, error / scale)


@dataclass(frozen=True)
class GMRES:
    """Generalised minimal residuals (Saad and Schultz 1986), every sample with its own Krylov space.

    Parameters
    ----------
    tol : float, optional
        Relative residual at which a sample stops; by default 1e-10 in float64 and 1e-6 in float32.
    max_steps : int, default=64
        Largest number of products with the Jacobian. At ``max_steps >= D`` the result is exact up to round-off.

    Notes
    -----
    One product and 4 k D multiplications a sample at step k; keeps ``max_steps`` vectors a sample while it runs. The
    residual of every step follows from the left null vector of the Hessenberg matrix, which grows by one entry a step:
    no rotations, no small least-squares problem before the end.

    Examples
    --------
    >>> from jpmhc import autodiff
    >>> autodiff.Implicit(autodiff.GMRES(tol=1e-8, max_steps=32)).linear_solver.max_steps
    32
    """

    tol: float | None = None
    max_steps: int = 64

    def __post_init__(self) -> None:
        check_tolerance(self.tol)
        check_count("max_steps", self.max_steps)

    def solve(self, jacobian: Operator, rhs: Tensor, watch: Watch) -> tuple[Tensor, Tensor]:
        """See `LinearSolver.solve`."""
        tol = self.tol or default_tolerance(rhs.dtype)
        unit = _magnitude(rhs)
        goal = tol * unit * torch.linalg.vector_norm(rhs / unit, dim=-1, keepdim=True)
        x, steps = self._cycle(jacobian, rhs, goal, self.max_steps, watch)
        residual = relative_residual(jacobian, x, rhs)
        # Round-off parts the recursive residual from the true one; another cycle on the true one is its refinement.
        while watch.check != "none" and steps < self.max_steps and not watch.stops(residual, tol):
            rest = torch.where((residual > tol).unsqueeze(-1), rhs - x + jacobian(x), 0)
            correction, more = self._cycle(jacobian, rest, goal, self.max_steps - steps, watch)
            x, steps = x + correction, steps + more
            residual = relative_residual(jacobian, x, rhs)
        watch.conclude(residual, tol, steps)
        return x, residual

    def _cycle(self, jacobian: Operator, rhs: Tensor, goal: Tensor, max_steps: int, watch: Watch) -> tuple[Tensor, int]:
        """Minimise ``|rhs - (I - J) x|`` over growing Krylov spaces to at most ``goal``, of shape ``(*batch, 1)``."""
        tiny = torch.finfo(rhs.dtype).eps
        unit = _magnitude(rhs)
        norm = unit * torch.linalg.vector_norm(rhs / unit, dim=-1, keepdim=True)  # (*batch, 1)
        running = norm > goal
        basis = (rhs / torch.where(running, norm, 1)).unsqueeze(-2)  # (*batch, k, D), rows orthonormal
        null = torch.ones_like(norm)  # (*batch, k), the left null vector of the Hessenberg matrix
        columns: list[Tensor] = []
        for _ in range(min(max_steps, rhs.shape[-1])):
            direction = basis[..., -1, :]
            image = direction - jacobian(direction)
            size = torch.linalg.vector_norm(image, dim=-1, keepdim=True)
            image, coefficients = _orthogonalise(image, basis)
            height = torch.linalg.vector_norm(image, dim=-1, keepdim=True)
            # A vanishing height is the good end: the space contains the solution.
            height = torch.maximum(height, tiny * size)
            # A stopped sample gets a unit column, whose coefficient in the solution is zero.
            height = torch.where(running, height, 1)
            coefficients = torch.where(running, coefficients, 0)
            columns.append(torch.cat([coefficients, height], dim=-1))
            entry = -(coefficients * null).sum(-1, keepdim=True) / height
            null = torch.cat([null, entry], dim=-1)
            basis = torch.cat([basis, torch.where(running, image / height, 0).unsqueeze(-2)], dim=-2)
            residual = norm / torch.linalg.vector_norm(null, dim=-1, keepdim=True)
            running = running & (residual > goal)
            if watch.ends(running):
                break
        return self._combine(basis, columns, null, norm), len(columns)

    @staticmethod
    def _combine(basis: Tensor, columns: list[Tensor], null: Tensor, norm: Tensor) -> Tensor:
        """Combine the basis so that the residual is ``norm * null / |null|^2``, the smallest possible one."""
        k = len(columns)
        hessenberg = torch.stack([torch.nn.functional.pad(c, (0, k + 1 - c.shape[-1])) for c in columns], dim=-1)
        residual = norm * null / null.square().sum(-1, keepdim=True)
        # All rows but the first form an upper triangle: the columns' heights are its diagonal.
        y = torch.linalg.solve_triangular(hessenberg[..., 1:, :], -residual[..., 1:, None], upper=True)
        return (y.mT @ basis[..., :k, :]).squeeze(-2)


def _orthogonalise(vector: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """Split ``vector`` into a part orthogonal to the rows of ``basis`` and coefficients; twice is enough."""
    # Row vectors times the transposed basis: on the CPU up to twenty times faster than the basis times columns.
    row = vector.unsqueeze(-2)
    first = row @ basis.mT
    row = row - first @ basis
    second = row @ basis.mT
    return (row - second @ basis).squeeze(-2), (first + second).squeeze(-2)


@dataclass(frozen=True)
class Neumann:
    """The series ``b + J b + J^2 b + ...``, the fastest where the map contracts well, useless where it does not.

    Parameters
    ----------
    steps : int, default=100
        Terms, one product with the Jacobian each.
    tol : float, optional
        Relative residual at which a sample stops; by default 1e-10 in float64 and 1e-6 in float32.

    Notes
    -----
    The error falls by the spectral radius of ``J`` a step. A few terms are a common approximate gradient: write
    ``PhantomGradient(steps)`` for that, here too few terms are a failure to converge.
    """

    steps: int = 100
    tol: float | None = None

    def __post_init__(self) -> None:
        check_tolerance(self.tol)
        check_count("steps", self.steps)

    def solve(self, jacobian: Operator, rhs: Tensor, watch: Watch) -> tuple[Tensor, Tensor]:
        """See `LinearSolver.solve`."""
        tol = self.tol or default_tolerance(rhs.dtype)
        x, term = rhs.clone(), rhs
        unit = _magnitude(rhs)
        scale = torch.linalg.vector_norm(rhs / unit, dim=-1)
        tiny = torch.finfo(rhs.dtype).tiny
        residual = torch.ones_like(scale)
        running = residual > tol
        for step in range(1, self.steps + 1):
            # The first term left out is the residual of x.
            term = jacobian(term)
            size = torch.linalg.vector_norm(x / unit, dim=-1)
            error = torch.linalg.vector_norm(term / unit, dim=-1) / (scale + size + tiny)
            residual = torch.where(running, error, residual)
            if step == self.steps or watch.stops(residual, tol):
                break
            # A stopped sample goes on with terms that are zero.
            running = residual > tol
            term = torch.where(running.unsqueeze(-1), term, 0)
            x = x + term
        watch.conclude(residual, tol, step)
        return x, residual


@dataclass(frozen=True)
class Dense:
    """The matrix ``I - J`` in full and an LU solve: exact to round-off for any map, for small ``D``.

    Notes
    -----
    ``D`` products with the Jacobian in one batch; ``D^2`` numbers a sample while it runs. A singular matrix gives NaN
    in its own sample and is reported like any failure.
    """

    def solve(self, jacobian: Operator, rhs: Tensor, watch: Watch) -> tuple[Tensor, Tensor]:
        """See `LinearSolver.solve`."""
        x = solve_with_matrix(dense_matrix(jacobian, rhs), rhs)
        residual = relative_residual(jacobian, x, rhs)
        watch.conclude(residual, default_tolerance(rhs.dtype), 1)
        return x, residual


def dense_matrix(product: Operator, like: Tensor) -> Tensor:
    """Assemble the matrices ``(*batch, D, D)`` of a linear map on tensors like ``like``."""
    size = like.shape[-1]
    identity = torch.eye(size, dtype=like.dtype, device=like.device)
    directions = identity.reshape(size, *[1] * (like.dim() - 1), size).expand(size, *like.shape)
    return torch.func.vmap(product)(directions).movedim(0, -1)


def solve_with_matrix(jacobian: Tensor, rhs: Tensor) -> Tensor:
    """Solve ``x = J x + b`` for given matrices ``J``."""
    identity = torch.eye(rhs.shape[-1], dtype=rhs.dtype, device=rhs.device)
    return lu_solve(identity - jacobian, rhs.unsqueeze(-1)).squeeze(-1)


def lu_solve(matrix: Tensor, rhs: Tensor) -> Tensor:
    """Solve with square matrices; a singular one gives infinity or NaN in its own sample. Reads nothing on the host.

    ``torch.linalg.solve_ex`` would do, were its forward-mode rule right when it is differentiated again: in torch 2.13
    ``jacfwd`` of it under ``jacfwd`` or ``jacrev`` lacks a term.
    """
    if is_captured(matrix):
        return eliminated(matrix, rhs)

    def solve(matrix: Tensor, rhs: Tensor) -> Tensor:
        factors, pivots, _ = torch.linalg.lu_factor_ex(matrix)
        return torch.linalg.lu_solve(factors, pivots, rhs)

    return each(solve, matrix, rhs)
