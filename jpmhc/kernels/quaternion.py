"""Rotation of four dimensions by two quaternions, ``M x = p x q / (|p| |q|)`` with x read as a quaternion."""

from typing import Any

import torch
from torch import Tensor

from jpmhc.kernels.primitive import primitive

# Entry (i, j) of the matrix of a product with q: which component of q stands there, and with which sign.
COMPONENT = ((0, 1, 2, 3), (1, 0, 3, 2), (2, 3, 0, 1), (3, 2, 1, 0))
LEFT = ((1, -1, -1, -1), (1, 1, -1, 1), (1, 1, 1, -1), (1, -1, 1, 1))
RIGHT = ((1, -1, -1, -1), (1, 1, 1, -1), (1, -1, 1, 1), (1, 1, -1, 1))


def _rotation(pair: Tensor) -> Tensor:
    return pair.new_empty(*pair.shape[:-2], 4, 4)


def _like_pair(pair: Tensor, _cotangent: Tensor) -> Tensor:
    return torch.empty_like(pair, memory_format=torch.contiguous_format)


@primitive("quaternion_forward", fake=_rotation)
def quaternion_forward(pair: Tensor) -> Tensor:
    """Compute the rotation.

    Parameters
    ----------
    pair : Tensor, shape (..., 2, 4)
        float32 or float64, p and q of any length. A quaternion of nothing but zeros counts as 1.

    Returns
    -------
    Tensor, shape (..., 4, 4)
        Orthogonal to round-off, of determinant 1.
    """
    return plain_quaternion(pair)


@primitive("quaternion_adjoint", fake=_like_pair)
def quaternion_adjoint(pair: Tensor, cotangent: Tensor) -> Tensor:
    """Pull a gradient with respect to the rotation back to the pair.

    Parameters
    ----------
    pair : Tensor, shape (..., 2, 4)
        As for `quaternion_forward`.
    cotangent : Tensor, shape (..., 4, 4)
        G.

    Returns
    -------
    Tensor, shape (..., 2, 4)
        ``(H - (H . p) p) / |p|`` for both, with the unit p, and H the sums of ``G R^T`` and ``L^T G`` over the entries
        where a component stands in the matrices L and R of the two products. Zero for a quaternion of zeros.
    """
    unit, length = _units(pair)
    left, right = _matrix(unit[..., 0, :], LEFT), _matrix(unit[..., 1, :], RIGHT)
    slopes = torch.stack([_gather(cotangent @ right.mT, LEFT), _gather(left.mT @ cotangent, RIGHT)], -2)
    tangent = slopes - (slopes * unit).sum(-1, keepdim=True) * unit
    zero = length == 0
    return torch.where(zero, 0.0, tangent / torch.where(zero, 1.0, length))


def plain_quaternion(pair: Tensor) -> Tensor:
    """Do as `quaternion_forward` in operations that torch can differentiate."""
    unit, _ = _units(pair)
    return _matrix(unit[..., 0, :], LEFT) @ _matrix(unit[..., 1, :], RIGHT)


def _units(pair: Tensor) -> tuple[Tensor, Tensor]:
    """Return unit quaternions and lengths (..., 2, 1), zero where a length is too small for its inverse."""
    # The direction does not depend on the scale, and squares of small numbers underflow before the numbers do.
    largest = pair.detach().abs().amax(-1, keepdim=True)
    usable = ~(largest <= torch.finfo(pair.dtype).tiny)  # what is not a number stays that
    scaled = torch.where(usable, pair / torch.where(usable, largest, 1.0), _one(pair))
    squares = scaled.square().sum(-1, keepdim=True)
    return scaled * squares.rsqrt(), torch.where(usable, largest * squares.sqrt(), 0.0)


def _one(pair: Tensor) -> Tensor:
    one = torch.zeros_like(pair[..., :1])
    return torch.cat([one + 1, one, one, one], -1)


def _matrix(unit: Tensor, signs: Any) -> Tensor:
    """Return the matrix of the product with a quaternion from one side."""
    parts = unit.unbind(-1)
    entries = [parts[COMPONENT[i][j]] * signs[i][j] for i in range(4) for j in range(4)]
    return torch.stack(entries, -1).unflatten(-1, (4, 4))


def _gather(matrix: Tensor, signs: Any) -> Tensor:
    """Sum the entries of a matrix where each component of a quaternion stands."""
    places = [[(i, COMPONENT[i].index(k)) for i in range(4)] for k in range(4)]
    sums = [torch.stack([matrix[..., i, j] * signs[i][j] for i, j in place], -1).sum(-1) for place in places]
    return torch.stack(sums, -1)
