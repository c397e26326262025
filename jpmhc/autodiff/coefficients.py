"""Checks of the matrices that a map is given, raised to float32 at least."""

import torch
from torch import Tensor


def as_coefficients(name: str, value: Tensor) -> Tensor:
    """Raise a floating-point tensor to float32 at least.

    Raises
    ------
    TypeError
        If `value` is not a tensor of floating-point numbers.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(value).__name__}")
    if not value.is_floating_point():
        raise TypeError(f"{name}: expected a floating-point tensor, got {value.dtype}")
    return value.to(torch.promote_types(value.dtype, torch.float32))


def as_matrices(name: str, value: Tensor) -> Tensor:
    """`as_coefficients` of shape ``(..., n, m)`` with n and m at least 1."""
    value = as_coefficients(name, value)
    if value.ndim < 2 or 0 in value.shape[-2:]:
        raise ValueError(f"{name}: expected shape (..., n, m) with n, m >= 1, got {tuple(value.shape)}")
    return value
