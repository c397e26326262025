"""Checks of the numbers that predictions and measurements are asked with."""

from __future__ import annotations

import operator
from typing import Any


def as_number(name: str, value: Any) -> float:
    """Return a number, of Python's or another library, as a float; anything else raises and names the argument."""
    try:
        if isinstance(value, (str, bool)):
            raise TypeError
        return float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise TypeError(f"{name}: expected a number, got {value!r}") from error


def as_seed(value: Any) -> int:
    """Return a whole number of at most 62 bits for a generator of random numbers."""
    try:
        seed = operator.index(value)
    except TypeError as error:
        raise TypeError(f"seed: expected an integer, got {value!r}") from error
    if not -(2**62) <= seed < 2**62:
        raise ValueError(f"seed: expected an integer of at most 62 bits, got {seed}")
    return seed
