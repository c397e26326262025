"""Inverses and orthonormal columns of many small matrices.

On devices other than the CPU by products and elementwise operations alone: cuSOLVER's factorisations take the matrices
of a batch one after another. More columns go to a library, unless a CUDA graph is being captured.
"""

import torch
from torch import Tensor

from jpmhc.kernels.batches import inv
from jpmhc.kernels.elementary import eliminated, gram_schmidt, is_captured
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
    On a CPU and for n above 4 Householder's factorisation, whose columns may have other signs; otherwise, and in the
    capture of a CUDA graph, Gram and Schmidt's, every column twice.
    """
    if is_captured(matrix) or (matrix.device.type != "cpu" and matrix.shape[-1] <= FEW):
        return gram_schmidt(matrix)
    return torch.linalg.qr(matrix).Q
