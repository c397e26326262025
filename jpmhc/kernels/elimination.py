"""Inverses and orthonormal columns of many small matrices.

On devices other than the CPU by products and elementwise operations alone: cuSOLVER's factorisations take the matrices
of a batch one after another, and a library that sets itself up for a stream cannot be captured in a CUDA graph.
"""

import torch
from torch import Tensor

from jpmhc.kernels.batches import inv
from jpmhc.kernels.primitive import primitive

FEW = 4  # columns; beyond, the fewer launches of the library win


@primitive("inverse")
def inverse(matrix: Tensor) -> Tensor:
    """Invert matrices; infinity or NaN where they are singular.

    Parameters
    ----------
    matrix : Tensor, shape (..., n, n)
        float32 or float64.

    Returns
    -------
    Tensor, shape (..., n, n)

    Notes
    -----
    The reference goes by the library on a CPU and for n above 4, otherwise by Gauss and Jordan's elimination with row
    pivots, in 9 n launches.
    """
    if matrix.device.type == "cpu" or matrix.shape[-1] > FEW:
        return inv(matrix).contiguous()
    return eliminated(matrix)


def eliminated(matrix: Tensor) -> Tensor:
    """Invert by elimination, see `inverse`."""
    n = matrix.shape[-1]
    place = torch.arange(n, device=matrix.device)
    identity = torch.eye(n, dtype=matrix.dtype, device=matrix.device)
    work = torch.cat([matrix, identity.expand_as(matrix)], -1)
    for k in range(n):
        sizes = work[..., k].abs().masked_fill(place < k, -1.0)
        chosen = (place == sizes.argmax(-1, keepdim=True)).unsqueeze(-1)
        row = work.where(chosen, 0.0).sum(-2, keepdim=True)
        work = torch.where(chosen, work[..., k : k + 1, :], work)
        row = row / row[..., k : k + 1]
        work = torch.where((place == k).unsqueeze(-1), row, work - work[..., k : k + 1] * row)
    return work[..., n:].contiguous()


def orthonormal_columns(matrix: Tensor) -> Tensor:
    """Orthonormalise columns in their order; NaN where one depends on those before it exactly.

    Parameters
    ----------
    matrix : Tensor, shape (..., m, n)
        float32 or float64, m >= n.

    Returns
    -------
    Tensor, shape (..., m, n)

    Notes
    -----
    On a CPU and for n above 4 Householder's factorisation, whose columns may have other signs; otherwise Gram and
    Schmidt's, every column twice.
    """
    if matrix.device.type == "cpu" or matrix.shape[-1] > FEW:
        return torch.linalg.qr(matrix).Q
    return gram_schmidt(matrix)


def gram_schmidt(matrix: Tensor) -> Tensor:
    """Orthonormalise by Gram and Schmidt's way, see `orthonormal_columns`."""
    done = matrix[..., :0]
    for column in matrix.split(1, -1):
        for _ in range(2 if done.shape[-1] else 0):
            column = column - done @ (done.mT @ column)
        done = torch.cat([done, column / torch.linalg.vector_norm(column, dim=-2, keepdim=True)], -1)
    return done
