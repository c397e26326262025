"""Functions of the library that factorise by elimination, on a batch of matrices.

While a CUDA graph is captured our own elimination takes their place, but for the sign of a determinant.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from jpmhc.kernels.elementary import eliminated, is_captured

# MKL uses threads of its own from 151 rows on. torch calls it for several matrices side by side, and once a program has
# called torch.set_num_threads, pivots get lost: numbers are wrong without a word, or the call hangs
# (pytorch/pytorch#142815; measured with torch 2.13 from 152 rows on; Cholesky, QR, SVD and eigenvalues are right).
_ROWS = 128


def each(function: Callable[..., Tensor], *matrices: Tensor) -> Tensor:
    """Call a function that ends in an LU factorisation, on a CPU with one large matrix at a time.

    Parameters
    ----------
    function : callable
        From tensors of a batch of matrices to one tensor of that batch; differentiable if it is.
    *matrices : Tensor, shape (..., n, m) each
        Their batch dimensions are broadcast.

    Notes
    -----
    Large matrices of a batch take as long one by one. Where the batch cannot be seen (``vmap``) or taken apart
    (``torch.compile``), it is left to torch.
    """
    first = matrices[0]
    if first.shape[-1] <= _ROWS or first.device.type != "cpu" or torch.compiler.is_compiling():
        return function(*matrices)
    if math.prod(first.shape[:-2]) < 2:
        return function(*matrices)
    batch = torch.broadcast_shapes(*(matrix.shape[:-2] for matrix in matrices))
    count = math.prod(batch)
    flat = (matrix.expand(*batch, -1, -1).reshape(count, *matrix.shape[-2:]) for matrix in matrices)
    result = torch.stack([function(*one) for one in zip(*flat, strict=True)])
    return result.reshape(*batch, *result.shape[1:])


def solve(matrix: Tensor, right_sides: Tensor) -> Tensor:
    """Solve ``matrix x = right side``; infinity or NaN where a matrix is singular. Not to be differentiated twice."""
    if is_captured(matrix):
        return eliminated(matrix, right_sides)
    return each(lambda a, b: torch.linalg.solve_ex(a, b).result, matrix, right_sides)


def inv(matrix: Tensor) -> Tensor:
    """Invert matrices, differentiable in every way; infinity or NaN where one is singular."""
    if is_captured(matrix):
        return eliminated(matrix)
    return each(lambda a: torch.linalg.inv_ex(a).inverse, matrix)


def determinant_sign(matrix: Tensor) -> Tensor:
    """Return 1 or -1, or 0 where a matrix is singular, one number a matrix; a determinant itself may underflow."""
    return each(lambda a: torch.linalg.slogdet(a).sign, matrix)
