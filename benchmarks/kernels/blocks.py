"""Which blocks the boundary's kernels are fastest with on a GPU; winners belong into ``blocks_to_*`` of their file.

``python -m benchmarks.kernels.blocks [--seconds 230] [--widths 4096 512] [--processes 12] [--out blocks.json]``
compiles all candidates side by side, prints a line for every one as soon as it is timed and writes the file anew, so
that a run that is cut off has said what it knew. What the code chooses comes first, and again last, kernel by kernel.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks import environment
from benchmarks.arc.files import write_json
from benchmarks.timing import check_device, in_a_line, replayed
from jpmhc.kernels.boundary import Boundary, Pullback

TOKENS, TOKENS_TO_COMPILE = 16384, 64
PASSES = ("forward", "backward")
# The pass that a function's blocks are for; None are all functions, as they are.
CHANGES = {
    None: PASSES,
    "blocks_to_write": ("forward",),
    "blocks_to_pull": ("backward",),
    "blocks_to_sum": ("backward",),
    "blocks_to_close": ("backward",),
}
# Of every function that chooses blocks, candidates for n = 4 and 8: tokens, width, warps, stages. Those with which
# Triton 3.6 lets most warps reside on a multiprocessor come first, see the log.
CANDIDATES: dict[str, dict[int, tuple[tuple[int, ...], ...]]] = {
    "blocks_to_write": {
        4: ((64, 32, 8, 3), (32, 16, 8, 3), (64, 16, 8, 3), (32, 16, 4, 3)),
        8: ((64, 16, 16, 2), (64, 16, 8, 3), (64, 32, 8, 1)),
    },
    "blocks_to_pull": {
        4: ((32, 16, 8, 3), (32, 16, 4, 3), (64, 16, 8, 3), (32, 32, 4, 2)),
        8: ((32, 16, 8, 2), (32, 16, 4, 2), (32, 16, 8, 3)),
    },
    "blocks_to_sum": {
        4: ((64, 64, 4, 4), (64, 256, 8, 3), (128, 128, 4, 3)),
        8: ((64, 128, 8, 4), (64, 128, 4, 3)),
    },
    "blocks_to_close": {
        4: ((16, 64, 4), (32, 128, 8), (8, 256, 4)),
        8: ((16, 128, 8), (8, 128, 4)),
    },
}

Candidate = tuple[int, int, str | None, tuple[int, ...]]
"""Streams, width, the function that chooses blocks, or None for all as they are, and the blocks."""


def material(tokens: int, n: int, d: int, device: str, dtype: torch.dtype) -> tuple[Boundary, Pullback]:
    """Random arguments of both passes, with the numbers of a Sinkhorn mixer."""
    from jpmhc.kernels.cuda import boundary as bodies

    generator = torch.Generator(device).manual_seed(0)

    def normal(*shape: int, scale: float = 1.0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return (scale * torch.randn(shape, generator=generator, device=device)).to(dtype)

    x, y = normal(tokens, n, d, dtype=dtype), normal(tokens, d, dtype=dtype)
    weight = normal(n * n + 2 * n, n * d, scale=(n * d) ** -0.5)
    mixers = normal(tokens, n, n, scale=n**-0.5)
    given = Boundary(x, mixers, normal(tokens, n), y, weight, normal(n), normal(1), "sigmoid", True, 1e-6, -1.0)
    streams, u, z, pre, rms, _ = bodies.boundary_forward(given)
    cotangents = (torch.ones_like(value) for value in (streams, u, z))
    return given, Pullback(*cotangents, *given[:5], given.scale, streams, z, pre, rms, None, "sigmoid")


@contextmanager
def blocks(name: str | None, sizes: tuple[int, ...]) -> Iterator[None]:
    """Let one function choose these blocks inside; None changes nothing."""
    from jpmhc.kernels.cuda import boundary as bodies

    before = getattr(bodies, name) if name else None
    if name:
        setattr(bodies, name, lambda *_: bodies.Blocks(*sizes))
    try:
        yield
    finally:
        if name:
            setattr(bodies, name, before)


def order(widths: Sequence[int]) -> Iterator[Candidate]:
    """Yield what is timed: what the code chooses, then the first candidates of all functions and shapes, and so on."""
    shapes = [(n, d) for d in widths for n in (8, 4)]
    yield from ((n, d, None, ()) for n, d in shapes)
    most = max(len(sizes) for of in CANDIDATES.values() for sizes in of.values())
    for place in range(most):
        for n, d in shapes:
            yield from ((n, d, name, of[n][place]) for name, of in CANDIDATES.items() if place < len(of[n]))


def calls_of(candidate: Candidate, given: Boundary, back: Pullback) -> dict[str, Callable[[], object]]:
    """Return the passes that a candidate changes."""
    from jpmhc.kernels.cuda import boundary as bodies

    calls = {"forward": partial(bodies.boundary_forward, given), "backward": partial(bodies.boundary_backward, back)}
    return {which: calls[which] for which in CHANGES[candidate[2]]}


def prepare(widths: Sequence[int], seconds: float, processes: int) -> int:
    """Compile candidates in so many processes, which leave the results in Triton's cache on disk; return how many.

    What takes longer than so many seconds in all is ended: it would take the time of others while they are timed.
    """
    until = time.monotonic() + seconds
    with get_context("spawn").Pool(processes) as pool:
        results = [pool.apply_async(compile_one, (candidate,)) for candidate in order(widths)]
        for result in results:
            result.wait(max(0.0, until - time.monotonic()))
        return sum(result.ready() and result.get() for result in results)


def compile_one(candidate: Candidate, device: str = "cuda", dtype: torch.dtype = torch.bfloat16) -> bool:
    """Run a candidate on a few tokens, as kernels are not compiled again for more; return whether that succeeded."""
    n, d, name, sizes = candidate
    try:
        with blocks(name, sizes):
            for call in calls_of(candidate, *material(TOKENS_TO_COMPILE, n, d, device, dtype)).values():
                call()
    except Exception:  # what it is the row will say, and not every error can be sent to another process
        return False
    return True


def by_kernel(call: Callable[[], object], repeats: int = 5) -> dict[str, float]:
    """Return the milliseconds that each kernel of a call takes on a GPU; none without one."""
    if not torch.cuda.is_available():
        return {}
    call()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as record:
        for _ in range(repeats):
            call()
        torch.cuda.synchronize()
    found = (event for event in record.key_averages() if event.device_type == DeviceType.CUDA)
    return {event.key: event.self_device_time_total / repeats / 1e3 for event in found}


def measure(widths: Sequence[int], seconds: float, device: str, processes: int = 0) -> Iterator[dict[str, Any]]:
    """Time what the code chooses, then every candidate, until the time is up; yield a row for each.

    Then rows of how long each kernel takes with what is chosen: a profiler stays attached and may slow what follows.
    """
    begin = time.perf_counter()
    if processes:
        _prepare(widths, seconds / 2, processes)
    made = cache(lambda n, d: material(TOKENS, n, d, device, torch.bfloat16))
    chosen: list[Candidate] = []
    for n, d, name, sizes in order(widths):
        if time.perf_counter() - begin > seconds:
            break
        check_device(device)
        row: dict[str, Any] = {"n": n, "d": d, "function": name, "blocks": sizes}
        try:
            with blocks(name, sizes):  # the material too, should what the code chooses not fit
                given, back = made(n, d)
                calls = calls_of((n, d, name, sizes), given, back)
                times = replayed(calls, 7, device)
        except Exception as error:
            row["error"] = in_a_line(error)
        else:  # blocks that do not fit are a result here
            for which, timed in times.items():
                row |= {which if key == "ms" else f"{which}_{key}": value for key, value in timed.row().items()}
            if name is None:
                chosen.append((n, d, name, sizes))
        yield row
    for candidate in chosen:
        yield {"n": candidate[0], "d": candidate[1], "kernels": _profiled(candidate, made)}


def _prepare(widths: Sequence[int], seconds: float, processes: int) -> None:
    begin = time.perf_counter()
    try:
        count = prepare(widths, seconds, processes)
    except Exception as error:  # without it they are compiled when they are timed
        print(f"nothing was compiled ahead: {in_a_line(error)}")
    else:
        print(f"compiled {count} of {len([*order(widths)])} in {time.perf_counter() - begin:.0f} s", flush=True)


def _profiled(candidate: Candidate, made: Callable[[int, int], tuple[Boundary, Pullback]]) -> dict[str, Any] | str:
    try:
        return {which: by_kernel(call) for which, call in calls_of(candidate, *made(*candidate[:2])).items()}
    except Exception as error:  # not everybody may count on every machine, and the times are there
        return in_a_line(error)


def main(arguments: list[str] | None = None) -> int:
    """Print and write every row as it comes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=230.0)
    parser.add_argument("--widths", type=int, nargs="*", default=[4096, 512])
    parser.add_argument("--processes", type=int, default=min(12, os.cpu_count() or 1), help="that compile; 0 for none")
    parser.add_argument("--out", type=Path, default=Path("blocks.json"))
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("no GPU here: nothing was measured")
        return 1
    head = {**environment.describe(), "gpu": torch.cuda.get_device_name(), "tokens": TOKENS}
    rows: list[dict[str, Any]] = []
    write_json(options.out, {**head, "rows": rows})  # a folder that is not there is found out before
    for row in measure(options.widths, options.seconds, "cuda", options.processes):
        print(row, flush=True)
        rows.append(row)
        write_json(options.out, {**head, "rows": rows})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
