"""Checks of the arguments that layers are made from."""

from __future__ import annotations

import math
from typing import Any


def check_size(name: str, value: Any, least: int = 1) -> int:
    """Return an integer of at least ``least``; anything else raises and names the argument."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: expected an integer, got {value!r}")
    if value < least:
        raise ValueError(f"{name}: expected at least {least}, got {value}")
    return value


def check_number(name: str, value: Any, *, least: float = -math.inf) -> float:
    """Return a finite number of at least ``least``; anything else raises and names the argument."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name}: expected a number, got {value!r}")
    if not math.isfinite(value) or value < least:
        at_least = "" if least == -math.inf else f" of at least {least:g}"
        raise ValueError(f"{name}: expected a finite number{at_least}, got {value}")
    return float(value)
