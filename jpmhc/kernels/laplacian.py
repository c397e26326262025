"""Weighted graph Laplacians of larger matrices by LAPACK, for Sinkhorn scaling and its derivative."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from jpmhc.kernels.batches import solve
from jpmhc.kernels.reading import can_read


def dense_potentials(matrix: Tensor) -> Callable[[Tensor], Tensor]:
    """Return `kernels.sinkhorn_potentials` of a matrix (..., n, m), a map of imbalances (..., n, m)."""
    column_sums = matrix.sum(-2)
    conditional = matrix / column_sums.unsqueeze(-2)
    invert = grounded(conditional @ matrix.mT, matrix.sum(-1))

    def potentials(imbalance: Tensor) -> Tensor:
        wanted = imbalance.sum(-2)
        u = invert(imbalance.sum(-1, keepdim=True).sub_(conditional @ wanted.unsqueeze(-1)))
        v = wanted.div_(column_sums).sub_((u.mT @ conditional).squeeze(-2))
        return u + v.unsqueeze(-2)

    return potentials


def grounded(weights: Tensor, rows: Tensor | float) -> Callable[[Tensor], Tensor]:
    """Return the map of right sides (..., n, k) to solutions of ``S u = right side``, the last of u zero.

    S is the Laplacian of the weights (..., n, n), which are overwritten, with every node tied to the ground by one
    machine epsilon of `rows`. Its diagonal is a sum of weights, but the elimination subtracts.
    """
    weights.diagonal(dim1=-2, dim2=-1).zero_()
    degree = weights.sum(-1) + torch.finfo(weights.dtype).eps * rows
    system = weights.neg_()
    system.diagonal(dim1=-2, dim2=-1).copy_(degree)
    system = system[..., :-1, :-1]
    factor = _definite_factor(system)

    def potentials(right_sides: Tensor) -> Tensor:
        solution = torch.zeros_like(right_sides)
        wanted, target = right_sides[..., :-1, :], solution[..., :-1, :]
        if factor is None:
            target.copy_(solve(system, wanted))
        else:
            target.copy_(torch.cholesky_solve(wanted, factor))
        return solution

    return potentials


def _definite_factor(system: Tensor) -> Tensor | None:
    """Return the factor of Cholesky where there is one and looking costs nothing."""
    if not can_read(system):
        return None
    factor, failed = torch.linalg.cholesky_ex(system)
    return None if bool(failed.any()) else factor
