"""Sums of a positive matrix: scaled to one, or removed within its weights."""

import torch
from torch import Tensor

from jpmhc import kernels
from jpmhc.autodiff.fused import fused
from jpmhc.autodiff.sinkhorn import potentials, sinkhorn
from jpmhc.autodiff.transforms import traced_orders, wants_rule


def scaled(matrix: Tensor, least: float, tol: float, max_steps: int = 128) -> Tensor:
    """`sinkhorn` of the logarithm of a positive matrix, which is not taken where that saves time.

    Parameters
    ----------
    matrix : Tensor, shape (..., n, m)
        Any.
    least : float
        Positive; smaller entries are raised to it, before and after.
    tol, max_steps
        As for `sinkhorn`.
    """
    result: Tensor = fused(kernels.sinkhorn_scaled, _by_logarithms, (matrix,), (least, tol, max_steps))
    return result


def _by_logarithms(matrix: Tensor, least: float, tol: float, max_steps: int) -> Tensor:
    return sinkhorn(matrix.clamp_min(least).log(), tol=tol, max_steps=max_steps).clamp_min(least)


def balanced(weights: Tensor, matrix: Tensor, times: int = 1) -> Tensor:
    """``H - P * (a 1^T + 1 b^T)`` whose rows and columns sum to zero.

    Parameters
    ----------
    weights : Tensor, shape (..., n, n)
        P, positive.
    matrix : Tensor, shape (..., n, n)
        H, with the same batch dimensions.
    times : int
        How often, at least once: the second time takes off the sums of the round-off of the first.

    Returns
    -------
    Tensor, shape (..., n, n)
        The projection of H along ``P * (a 1^T + 1 b^T)``, orthogonal under ``sum(u v / P)``.

    Notes
    -----
    One Laplacian system of size n a matrix (`jpmhc.kernels.sinkhorn_potentials`), O(n^3), whose sums are not squared
    as in normal equations. Under ``torch.compile`` the system is solved by refinement steps with the inverse of a
    constant Laplacian, one for each order of derivative that the trace can be asked for and one more.
    """
    tracing = torch.compiler.is_compiling()
    if not (tracing or wants_rule(weights, matrix)):
        return kernels.sinkhorn_balanced(weights, matrix, times)
    solve = _traced_potentials if tracing else potentials
    for _ in range(times):
        matrix = matrix - weights * solve(weights, matrix)
    return matrix


def _traced_potentials(weights: Tensor, matrix: Tensor) -> Tensor:
    inverse = kernels.sinkhorn_inverse(weights.detach().contiguous())
    row_sums, column_sums = weights.sum(-1), weights.sum(-2)
    wanted = matrix.sum(-2) / column_sums
    missing = matrix.sum(-1) - _apply(weights, wanted)
    u = torch.zeros_like(missing)
    v = wanted
    for _ in range(traced_orders() + 1):
        u = u + _apply(inverse, missing - row_sums * u + _apply(weights, wanted - v))
        v = wanted - _apply(weights.mT, u) / column_sums
    return u.unsqueeze(-1) + v.unsqueeze(-2)


def _apply(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix * vector.unsqueeze(-2)).sum(-1)
