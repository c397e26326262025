"""Interleaved timing of contenders: the smallest mean over rounds, so that load on the machine hits all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one thread inside."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def fastest(calls: Mapping[str, Callable[[], object]], rounds: int, at_least: float = 0.01) -> dict[str, float]:
    """Time every contender in every round and return the smallest time of each, in milliseconds.

    Parameters
    ----------
    calls : mapping of str to callable
        The contenders, warmed up here by one call each.
    rounds : int
        Number of rounds; contenders alternate within one, and another one begins each.
    at_least : float
        Seconds that a contender runs in a round; its time there is the mean over the calls that fit.
    """
    for call in calls.values():
        call()
    best = dict.fromkeys(calls, float("inf"))
    names = list(calls)
    for turn in range(rounds):
        # Whoever follows a contender on the same data finds them in the cache.
        for place in range(len(names)):
            name = names[(turn + place) % len(names)]
            best[name] = min(best[name], milliseconds(calls[name], at_least))
    return best


def milliseconds(call: Callable[[], object], at_least: float) -> float:
    """Mean time of a call over a stretch of at least so many seconds."""
    calls, begin = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - begin) < at_least or not calls:
        call()
        calls += 1
    return 1e3 * elapsed / calls


def replayed(calls: Mapping[str, Callable[[], object]], rounds: int, device: str) -> dict[str, float]:
    """Time every contender as `fastest` does; on a GPU without what launching from Python costs.

    There each is captured once as a CUDA graph of ten calls, and the graph's replay is timed by the device. A
    contender that cannot be captured is launched call by call.
    """
    if device != "cuda":
        return fastest(calls, rounds)
    replays = {name: _captured(call) for name, call in calls.items()}
    best = dict.fromkeys(calls, float("inf"))
    for _ in range(rounds):
        for name, (replay, count) in replays.items():
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            replay()
            end.record()
            torch.cuda.synchronize()
            best[name] = min(best[name], begin.elapsed_time(end) / count)
    return best


def _captured(call: Callable[[], object], count: int = 10) -> tuple[Callable[[], object], int]:
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):  # what is made at the first calls must not be captured
        for _ in range(3):
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            for _ in range(count):
                call()
    except RuntimeError:
        torch.cuda.synchronize()
        return call, 1
    return graph.replay, count


def in_a_line(error: Exception) -> str:
    """Return kind and first line of an error."""
    return f"{type(error).__name__}: {error}".splitlines()[0]
