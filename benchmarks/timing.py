"""Interleaved timing of contenders: the smallest mean over rounds, so that load on the machine hits all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

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


@dataclass(frozen=True)
class Timed:
    """What became of a contender: a time and how it was taken, or why there is none."""

    ms: float | None = None
    captured: bool | None = None
    """Whether a graph was replayed, or calls launched from Python; None on a CPU, which has no graphs."""
    error: str | None = None
    """Why there is no time, or no graph."""

    def row(self) -> dict[str, Any]:
        """Return what a row says of it."""
        if self.ms is None:
            return {"error": self.error}
        how = {} if self.captured is None else {"captured": self.captured}
        return {"ms": self.ms, **how, **({"not_captured": self.error} if self.error else {})}


def ratio(one: Timed | None, other: Timed | None) -> float | None:
    """Return a time over another; None unless both were taken, and in the same way."""
    if one is None or other is None or one.ms is None or other.ms is None or one.captured is not other.captured:
        return None
    return one.ms / other.ms


def in_a_line(error: Exception) -> str:
    """Return kind and first line of an error."""
    return f"{type(error).__name__}: {error}".splitlines()[0]


def check_device(device: str) -> None:
    """Raise what an earlier call did to a GPU, which answers nothing more after it: what follows would be in vain."""
    if device == "cuda":
        torch.cuda.synchronize()


def replayed(calls: Mapping[str, Callable[[], object]], rounds: int, device: str) -> dict[str, Timed]:
    """Time every contender as `fastest` does; on a GPU without what launching from Python costs.

    There each is captured once as a CUDA graph of ten calls, and the graph's replay is timed by the device. A
    contender that cannot be captured is launched call by call, and one that cannot run takes nothing from the others;
    `Timed` says both.
    """
    found: dict[str, Timed] = {}
    replays: dict[str, _Replay] = {}
    for name, call in calls.items():
        try:
            replays[name] = _captured(call) if device == "cuda" else _Replay(call, _called(call))
        except Exception as error:
            found[name] = Timed(error=in_a_line(error))
    if device != "cuda":
        best = fastest({name: replay.run for name, replay in replays.items()}, rounds)
        return found | {name: Timed(ms) for name, ms in best.items()}
    for _ in range(rounds):
        for name, replay in replays.items():
            if name in found and found[name].ms is None:
                continue
            try:
                ms = min(_replay_ms(replay), found[name].ms if name in found else float("inf"))
                found[name] = Timed(ms, replay.error is None, replay.error)
            except Exception as error:
                found[name] = Timed(error=in_a_line(error))
    return found


@dataclass(frozen=True)
class _Replay:
    run: Callable[[], object]
    calls: int
    error: str | None = None


def _called(call: Callable[[], object]) -> int:
    call()
    return 1


def _replay_ms(replay: _Replay) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    replay.run()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / replay.calls


def _captured(call: Callable[[], object], count: int = 10) -> _Replay:
    before, side = torch.cuda.current_stream(), torch.cuda.Stream()
    side.wait_stream(before)
    with torch.cuda.stream(side):  # what is made at the first calls must not be captured
        for _ in range(3):
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            for _ in range(count):
                call()
    except Exception as error:
        # A capture that ends with an error leaves its own stream as the current one.
        torch.cuda.set_stream(before)
        torch.cuda.synchronize()
        return _Replay(call, 1, in_a_line(error))
    return _Replay(graph.replay, count)
