"""Whether small matrices fit a body and each other: compiled code looks at no sizes and would read behind an array.

What does not fit is left to the reference, which says so in its own words or broadcasts.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

LARGEST = 16  # rows and columns of a small matrix


def misshapen(given: object, shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """Tell which of the named tensors of some arguments has another shape than the one that is given, or None."""
    for name, shape in shapes.items():
        tensor = getattr(given, name, None)
        if tensor is not None and tensor.shape != shape:
            return f"{name}: expected shape {shape}, got {tuple(tensor.shape)}"
    return None


def unlike(matrix: Tensor, *others: object) -> str | None:
    """Tell which tensor has not the shape of the first, or None."""
    for other in others:
        if isinstance(other, Tensor) and other.shape != matrix.shape:
            return f"tensors of different shapes, {tuple(matrix.shape)} and {tuple(other.shape)}"
    return None


def small(matrix: Tensor, *others: object) -> str | None:
    """Tell why the first matrix is not one of a few numbers, or another one does not fit it."""
    n, m = matrix.shape[-2:]
    if not 0 < min(n, m) <= max(n, m) <= LARGEST:
        return f"no body for matrices of {n} x {m}, only from 1 x 1 to {LARGEST} x {LARGEST}"
    return unlike(matrix, *others)


def small_square(matrix: Tensor, *others: object) -> str | None:
    """Tell the same of square matrices."""
    return oblong(matrix) or small(matrix, *others)


def small_repeated(matrix: Tensor, other: Tensor, times: int) -> str | None:
    """Tell the same of an operation that is made so many times."""
    return small(matrix, other) if times > 0 else f"times: expected at least 1, got {times}"


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
