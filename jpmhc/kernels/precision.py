"""The precision in which small numbers are computed: that of their arguments, autocast or not."""

from __future__ import annotations

import contextlib
from typing import Any

import torch


def full_precision(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Switch autocast off where it is on: it would take products of coefficients to half precision."""
    if device.type != "meta" and torch.is_autocast_enabled(device.type):  # torch knows no autocast for meta
        return torch.autocast(device.type, enabled=False)
    return contextlib.nullcontext()
