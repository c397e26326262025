"""The library's own threads, for serial bodies that release the interpreter's lock.

Numba's ``parallel=True`` aborts the process after a fork (its OpenMP layer) or when two Python threads enter it (its
default layer), and its number of threads is a global setting. This pool survives both and sets nothing.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

_lock = threading.Lock()
_executor: ThreadPoolExecutor | None = None
_workers = 0


def split(count: int, grain: int = 1) -> list[tuple[int, int]]:
    """Cut ``0 .. count`` into one range a thread of PyTorch, fewer where a range would be shorter than `grain`.

    Parameters
    ----------
    count : int
        Number of items, 0 gives no range.
    grain : int
        Fewest items worth a thread; starts of ranges are multiples of it.

    Returns
    -------
    list of (int, int)
        Start and stop of each range, in order.
    """
    pieces = min(torch.get_num_threads(), -(-count // grain))
    if pieces == 0:
        return []
    length = grain * -(-count // (grain * pieces))
    return [(start, min(start + length, count)) for start in range(0, count, length)]


def run(function: Callable[..., Any], ranges: Sequence[tuple[int, int]], *args: Any) -> None:
    """Call ``function(*args, start, stop)`` for every range, side by side, and return when all are done.

    The caller's thread takes the first range, so that one range costs nothing extra. Calls from several Python threads
    share the workers. A worker lives in the process that started it: after a fork the child starts its own.
    """
    if not ranges:
        return
    first, *others = ranges
    if not others:
        function(*args, *first)
        return
    executor, mine = _threads(len(others)), [first]
    tasks: list[Future[Any]] = []
    try:
        for span in others:
            try:
                tasks.append(executor.submit(function, *args, *span))
            except RuntimeError as refusal:
                if "shutdown" not in str(refusal):
                    raise
                mine.append(span)  # this thread outlives the main one, and nobody starts others
        for span in mine:
            function(*args, *span)
    finally:
        errors = [task.exception() for task in tasks]  # waits for all: they write into the caller's tensors
    for error in errors:
        if error is not None:
            raise error


def _threads(wanted: int) -> ThreadPoolExecutor:
    """Return the pool, grown to the number of workers wanted; one outgrown ends with its last call."""
    global _executor, _workers
    with _lock:
        if _executor is None or _workers < wanted:
            _executor, _workers = ThreadPoolExecutor(wanted, "jpmhc"), wanted
        return _executor


def _forget() -> None:
    global _executor, _workers, _lock
    _lock, _executor, _workers = threading.Lock(), None, 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
