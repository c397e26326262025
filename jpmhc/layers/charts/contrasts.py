"""The contrasts of the streams: an orthonormal basis of what is left of them when their mean is taken out."""

import torch
from torch import Tensor


def contrasts(streams: int) -> Tensor:
    """Return Helmert's basis: n x (n-1), float64, orthonormal columns orthogonal to the all-ones vector.

    Column k compares the mean of the first k + 1 streams with the next one.
    """
    basis = torch.zeros(streams, streams - 1, dtype=torch.float64)
    for k in range(1, streams):
        basis[:k, k - 1] = 1.0
        basis[k, k - 1] = -k
        basis[:, k - 1] /= (k * (k + 1)) ** 0.5
    return basis


def on_contrasts(matrix: Tensor, basis: Tensor) -> Tensor:
    """Return ``1 1^T / n + U C U^T``: the mean is kept, the contrasts are mapped by C.

    Parameters
    ----------
    matrix : Tensor, shape (..., n-1, n-1)
        C.
    basis : Tensor, shape (n, n-1)
        U, from `contrasts`.
    """
    basis = basis.to(matrix)
    return basis @ matrix @ basis.mT + 1 / basis.shape[0]
