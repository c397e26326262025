"""Whether small matrices fit a body and each other: compiled code looks at no sizes and would read behind an array.

What does not fit is left to the reference, which says so in its own words or broadcasts.
"""

from __future__ import annotations

from torch import Tensor


def unlike(matrix: Tensor, *others: object) -> str | None:
    """Tell which tensor has not the shape of the first, or None."""
    for other in others:
        if isinstance(other, Tensor) and other.shape != matrix.shape:
            return f"tensors of different shapes, {tuple(matrix.shape)} and {tuple(other.shape)}"
    return None


def oblong(matrix: Tensor, *_others: object) -> str | None:
    """Tell why matrices are not square, or None."""
    n, m = matrix.shape[-2:]
    return None if n == m else f"no body for matrices of {n} x {m}, only for square ones"


def unpaired(pair: Tensor, cotangent: Tensor | None = None) -> str | None:
    """Tell what is no pair of quaternions, or no matrix of one, or None."""
    if pair.shape[-2:] != (2, 4):
        return f"pair: expected shape (..., 2, 4), got {tuple(pair.shape)}"
    if cotangent is not None and cotangent.shape != (*pair.shape[:-2], 4, 4):
        return f"cotangent: expected shape {(*pair.shape[:-2], 4, 4)}, got {tuple(cotangent.shape)}"
    return None
