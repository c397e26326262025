"""Orthonormal columns with the same leading subspaces: the factor Q of ``matrix = Q R`` with a positive diagonal of R.

Derivatives follow from `plain_orthonormalise`, which is the same map in differentiable operations.
"""

import torch
from torch import Tensor

from jpmhc.kernels.elementary import gram_schmidt, is_captured
from jpmhc.kernels.primitive import primitive
from jpmhc.kernels.reading import can_read

_NEAR = 0.9  # Frobenius distance of the Gram matrix from I within which its condition is no concern


def plain_orthonormalise(matrix: Tensor) -> Tensor:
    """Compute `orthonormalise` in plain operations."""
    if is_captured(matrix):
        q = gram_schmidt(matrix / matrix.detach().abs().amax((-2, -1), keepdim=True))
    else:
        q, r = torch.linalg.qr(matrix)
        q = q * torch.where(r.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).to(q.dtype).unsqueeze(-2)
    return q + (q - q @ (q.mT @ q)) / 2


@primitive("orthonormalise")
def orthonormalise(matrix: Tensor) -> Tensor:
    """Orthonormalise columns in their order.

    Parameters
    ----------
    matrix : Tensor, shape (..., n, p)
        float32 or float64, n >= p, with independent columns.

    Returns
    -------
    Tensor, shape (..., n, p)
        Contiguous, orthonormal to round-off. Columns that depend on those before them are replaced by arbitrary ones;
        in a CUDA graph by NaN.

    Notes
    -----
    A Householder factorisation and one Newton-Schulz step; Gram-Schmidt twice where there is a body for it, and while a
    CUDA graph is captured. Near orthonormal columns, where looking at them costs nothing, the triangular factor comes
    from their Gram matrix, whose condition is below 19 there: fewer and faster operations, and as orthonormal, since a
    Newton-Schulz step would start from a Gram matrix with the same round-off.
    """
    if can_read(matrix):
        gram = matrix.mT @ matrix
        factor = torch.linalg.cholesky_ex(gram).L
        gram.diagonal(dim1=-2, dim2=-1).sub_(1)
        if gram.flatten(-2).norm(dim=-1).amax().item() < _NEAR:
            if matrix.shape[-2] < 2 * matrix.shape[-1]:
                return torch.linalg.solve_triangular(factor.mT, matrix, upper=True, left=False).contiguous()
            identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
            return matrix @ torch.linalg.solve_triangular(factor, identity, upper=False).mT
    return plain_orthonormalise(matrix).contiguous()
