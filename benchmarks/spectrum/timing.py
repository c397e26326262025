"""A call, and the seconds it took."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def timed(function: Callable[[], T]) -> tuple[T, float]:
    """Return what a function returns and how long it ran, in seconds."""
    begin = time.perf_counter()
    result = function()
    return result, time.perf_counter() - begin
