"""Checks of the numbers an optimiser is given: an argument is honoured or refused."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor


def plain(value: Any) -> Any:
    """Return an option with NumPy's numbers, also those in a tuple, as Python's: files of weights hold no others."""
    if isinstance(value, tuple):
        return tuple(map(plain, value))
    if isinstance(value, bool) or not isinstance(value, Real):
        return value
    return int(value) if isinstance(value, Integral) else float(value)


def check_range(name: str, value: Any, low: float, high: float = math.inf, *, open_high: bool = False) -> None:
    """Raise unless a value is a finite number in [low, high], or in [low, high) if ``open_high``.

    Parameters
    ----------
    name : str
        Of the argument, for the message.
    value : Any
        What was given.
    low, high : float
        The range.
    open_high : bool
        Whether high itself is refused.

    Raises
    ------
    TypeError
        If it is no real number.
    ValueError
        If it is outside.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}")
    number = float(value)
    if not (math.isfinite(number) and low <= number <= high) or (open_high and number == high):
        above = "" if high == math.inf else f" and {'below' if open_high else 'at most'} {high}"
        raise ValueError(f"{name}: expected a finite number, at least {low}{above}, got {value}")


def check_count(name: str, value: Any) -> None:
    """Raise unless a value is an integer of at least one.

    Raises
    ------
    TypeError, ValueError
        If it is no integer, or below one.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name}: expected an integer, got {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{name}: expected at least 1, got {value}")


def check_rate(value: Any, capturable: bool) -> None:
    """Raise unless a learning rate is a number >= 0, or with ``capturable`` a tensor of one element.

    Raises
    ------
    TypeError, ValueError
        If it is anything else.
    """
    if not isinstance(value, Tensor):
        check_range("lr", value, 0.0)
    elif not capturable:
        raise TypeError("lr: expected a number, got a tensor; a tensor is for capturable=True")
    elif value.numel() != 1:
        raise ValueError(f"lr: expected a tensor of one element, got shape {tuple(value.shape)}")


def rate(group: dict[str, Any]) -> float | Tensor:
    """Return a group's learning rate: a number, or a tensor without dimensions, which promotes no dtype."""
    value: float | Tensor = group["lr"]
    return value.reshape(()) if isinstance(value, Tensor) else value


def check_edited(group: dict[str, Any]) -> None:
    """Raise if a group's rate is not finite or its interval is no count any more: what a step would not survive.

    Raises
    ------
    TypeError, ValueError
        As where the group was added.
    """
    if torch.compiler.is_compiling():
        return  # a rate may be a symbol there, and a question about it a graph more
    rate, interval = group["lr"], group["stabilize"]
    if not isinstance(rate, Tensor) and not math.isfinite(rate):
        check_range("lr", rate, 0.0)
    if interval is not None:
        check_count("stabilize", interval)
