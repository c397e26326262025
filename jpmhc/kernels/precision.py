"""The precision in which small numbers are computed: that of their arguments, autocast or not."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor


def full_precision(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Switch autocast off where it is on: it would take products of coefficients to half precision."""
    kind = device.type
    return torch.autocast(kind, enabled=False) if autocast_on(kind) else contextlib.nullcontext()


def autocast_on(device_type: str) -> bool:
    """Whether autocast is on for devices of a type."""
    return device_type != "meta" and torch.is_autocast_enabled(device_type)  # torch knows no autocast for meta


def cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert a tensor; one that needs none is spared torch's microsecond, a dozen of which a token would pay."""
    return tensor if tensor.dtype is dtype else tensor.to(dtype)
