"""Golub-Kahan bidiagonalisation with full reorthogonalisation, for batches of start vectors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Product = Callable[[Tensor], Tensor]

# A direction shorter than this, relative to the longest seen, is round-off: the Krylov space is complete.
_BREAKDOWN = 1e-13


@dataclass(frozen=True)
class Bidiagonal:
    """``A V = U B`` for upper bidiagonal B (k, k): what k steps from one start vector learn about A.

    Attributes
    ----------
    nodes, weights : Tensor, shape (..., k)
        Gauss quadrature of ``v^T f(A^T A) v`` at the start vector v: singular values of B, largest first, and squares
        of the first components of its right singular vectors; exact for polynomials in s^2 up to degree 2k - 1.
    residual : Tensor, shape (..., k)
        Of the nodes: within that distance of each lies a singular value of A.
    largest, smallest : Tensor, shape (...)
        Extreme singular values of B; never above the largest of A, never below its smallest.
    largest_error, smallest_error : Tensor, shape (...)
        Estimates of their distance from those of A: the residual r of the Ritz pair, or r^2 over the gap to its
        neighbour where that is less.
    """

    nodes: Tensor
    weights: Tensor
    residual: Tensor
    largest: Tensor
    smallest: Tensor
    largest_error: Tensor
    smallest_error: Tensor


class Bidiagonalisation:
    """Golub-Kahan steps on A from a batch of unit vectors.

    Parameters
    ----------
    times, transposed_times : Callable
        ``A v`` and ``A^T u`` for vectors (p, B, size).
    start : Tensor, shape (p, B, N)
        Unit vectors in the space of A's columns, N at most the number of its rows.

    Notes
    -----
    Every new vector is orthogonalised twice against all before, so no singular value is found twice; two vectors a step
    are kept. N steps are enough. A space that closes early leaves zero rows, whose weights are zero.
    """

    def __init__(self, times: Product, transposed_times: Product, start: Tensor) -> None:
        self._times, self._transposed_times = times, transposed_times
        self._size = start.shape[-1]
        self._right: list[Tensor] = [start]
        self._left: list[Tensor] = []
        self._alphas: list[Tensor] = []
        self._betas: list[Tensor] = []
        self._longest = torch.zeros_like(start[..., 0])

    @property
    def steps(self) -> int:
        """Steps made."""
        return len(self._alphas)

    def complete(self) -> bool:
        """Whether every space has closed, so that further steps bring nothing."""
        return self.steps == self._size or bool(self._betas and (self._betas[-1] == 0).all())

    def step(self) -> None:
        """Go one step on; nothing if complete."""
        if self.complete():
            return
        v = self._right[-1]
        u = self._times(v)
        if self._betas:
            u = u - self._betas[-1].unsqueeze(-1) * self._left[-1]
        u, alpha = self._normalised(_orthogonalised(u, self._left))
        w = self._transposed_times(u) - alpha.unsqueeze(-1) * v
        w, beta = self._normalised(_orthogonalised(w, self._right))
        self._left.append(u)
        self._right.append(w)
        self._alphas.append(alpha)
        self._betas.append(beta)

    def keep(self, which: slice) -> None:
        """Drop all but some of the p sequences, and go on with those."""
        for vectors in (self._right, self._left, self._alphas, self._betas):
            vectors[:] = [vector[which] for vector in vectors]
        self._longest = self._longest[which]

    def result(self) -> Bidiagonal:
        """Decompose what was found, in O(k^3) a sequence; leading shape (p, B)."""
        return _decompose(self._alphas, self._betas, whole=self.steps == self._size)

    def _normalised(self, vector: Tensor) -> tuple[Tensor, Tensor]:
        norm = vector.norm(dim=-1)
        norm = torch.where(norm > _BREAKDOWN * self._longest, norm, 0)
        self._longest = torch.maximum(self._longest, norm)
        return vector / torch.where(norm > 0, norm, torch.inf).unsqueeze(-1), norm


def _orthogonalised(vector: Tensor, basis: list[Tensor]) -> Tensor:
    # Classical Gram-Schmidt, twice is enough; in blocks, so that the basis is never copied as a whole.
    for _ in range(2):
        for begin in range(0, len(basis), 32):
            block = torch.stack(basis[begin : begin + 32])
            inner = torch.einsum("k...n,...n->k...", block, vector)
            vector = vector - torch.einsum("k...,k...n->...n", inner, block)
    return vector


def _decompose(alphas: list[Tensor], betas: list[Tensor], whole: bool) -> Bidiagonal:
    diagonal, above = torch.stack(alphas, -1), torch.stack(betas, -1)
    matrix = torch.diag_embed(diagonal) + torch.diag_embed(above[..., :-1], offset=1)
    x, nodes, yt = torch.linalg.svd(matrix)
    weights = yt[..., 0].square()
    # A^T U x - s V y = beta_k x_k v_{k+1}: what the next step would bring.
    residual = torch.zeros_like(nodes) if whole else (above[..., -1:] * x[..., -1, :]).abs()
    # Steps behind a closed space are zero rows and belong to no singular value of A.
    made = 1 + (above[..., :-1] > 0).cumprod(-1).sum(-1, keepdim=True)

    def at(values: Tensor, index: Tensor) -> Tensor:
        return values.gather(-1, index.clamp_min(0))[..., 0]

    first, last = torch.zeros_like(made), made - 1
    largest, smallest = at(nodes, first), at(nodes, last)
    return Bidiagonal(
        nodes,
        weights,
        residual,
        largest,
        smallest,
        _error(at(residual, first), largest - at(nodes, last.clamp(max=1))),
        _error(at(residual, last), at(nodes, last - 1) - smallest),
    )


def _error(residual: Tensor, gap: Tensor) -> Tensor:
    return torch.minimum(residual, residual.square() / gap.clamp_min(torch.finfo(gap.dtype).tiny))
