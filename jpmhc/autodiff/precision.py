"""The precision in which equations are solved: never below float32, autocast or not."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from jpmhc.kernels.precision import full_precision

LOW_PRECISION = (torch.float16, torch.bfloat16)


def raised(tensor: Tensor) -> Tensor:
    """Raise a tensor of lower precision to float32."""
    return tensor.float() if tensor.dtype in LOW_PRECISION else tensor


def in_full_precision(rule: Callable[..., Any]) -> Callable[..., Any]:
    """Let a derivative rule run in full precision, also when ``backward`` is called under autocast."""

    @functools.wraps(rule)
    def wrapped(*args: Any, **options: Any) -> Any:
        tensors = (entry for arg in args for entry in (arg if isinstance(arg, tuple) else (arg,)))
        device = next(entry.device for entry in tensors if isinstance(entry, Tensor))
        with full_precision(device):
            return rule(*args, **options)

    return wrapped
