"""Which blocks the boundary's kernels are fastest with on a GPU; winners belong into ``blocks_to_*`` of their file.

``python -m benchmarks.kernels.blocks [--seconds 230] [--widths 4096 512] [--out blocks.json]`` prints a line for every
candidate as soon as it is timed and writes the file anew, so that a run that is cut off has said what it knew.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import environment
from benchmarks.arc.files import write_json
from benchmarks.timing import check_device, in_a_line, replayed
from jpmhc.kernels.boundary import Boundary, Pullback

TOKENS = 16384
PASSES = ("forward", "backward")
# The pass that a function's blocks are for; None are all functions, as they are.
CHANGES = {
    None: PASSES,
    "blocks_to_write": ("forward",),
    "blocks_to_pull": ("backward",),
    "blocks_to_sum": ("backward",),
    "blocks_to_close": ("backward",),
}
# Of every function that chooses blocks, candidates for n = 4 and 8: tokens, width, warps, stages.
CANDIDATES: dict[str, dict[int, tuple[tuple[int, ...], ...]]] = {
    "blocks_to_write": {
        4: ((64, 32, 4, 3), (64, 32, 4, 2), (64, 32, 8, 3), (32, 32, 4, 3), (64, 64, 8, 2), (128, 32, 8, 2)),
        8: ((128, 16, 8, 2), (64, 16, 8, 3), (64, 16, 8, 2), (64, 32, 8, 1)),
    },
    "blocks_to_pull": {
        4: ((64, 16, 4, 3), (64, 16, 4, 2), (32, 16, 4, 3), (32, 32, 4, 2), (64, 32, 8, 2), (128, 16, 8, 2)),
        8: ((64, 16, 8, 2), (32, 16, 4, 2), (32, 16, 4, 3)),
    },
    "blocks_to_sum": {
        4: ((64, 128, 4, 4), (64, 64, 4, 4), (64, 256, 8, 3), (128, 128, 4, 3)),
        8: ((64, 256, 8, 3), (64, 128, 8, 4), (64, 128, 4, 3)),
    },
    "blocks_to_close": {
        4: ((16, 128, 4), (32, 128, 8), (16, 64, 4), (8, 256, 4)),
        8: ((16, 64, 4), (16, 128, 8), (8, 128, 4)),
    },
}


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


def order(widths: Sequence[int]) -> Iterator[tuple[int, int, str | None, tuple[int, ...]]]:
    """Yield n, width, function and blocks in the order in which they are timed: first what the code chooses."""
    shapes = [(n, d) for d in widths for n in (8, 4)]
    yield from ((n, d, None, ()) for n, d in shapes)
    for n, d in shapes:
        yield from ((n, d, name, sizes) for name, of in CANDIDATES.items() for sizes in of[n])


def measure(widths: Sequence[int], seconds: float, device: str) -> Iterator[dict[str, Any]]:
    """Time what the code chooses, then every candidate, until the time is up; yield a row for each."""
    from jpmhc.kernels.cuda import boundary as bodies

    begin = time.perf_counter()
    made = cache(lambda n, d: material(TOKENS, n, d, device, torch.bfloat16))
    for n, d, name, sizes in order(widths):
        if time.perf_counter() - begin > seconds:
            return
        check_device(device)
        row: dict[str, Any] = {"n": n, "d": d, "function": name, "blocks": sizes}
        try:
            with blocks(name, sizes):  # the material too, should what the code chooses not fit
                given, back = made(n, d)
                calls = {
                    "forward": partial(bodies.boundary_forward, given),
                    "backward": partial(bodies.boundary_backward, back),
                }
                times = replayed({which: calls[which] for which in CHANGES[name]}, 7, device)
        except Exception as error:
            row["error"] = in_a_line(error)
        else:  # blocks that do not fit are a result here
            for which, timed in times.items():
                row |= {which if key == "ms" else f"{which}_{key}": value for key, value in timed.row().items()}
        yield row


def main(arguments: list[str] | None = None) -> int:
    """Print and write every row as it comes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=230.0)
    parser.add_argument("--widths", type=int, nargs="*", default=[4096, 512])
    parser.add_argument("--out", type=Path, default=Path("blocks.json"))
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("no GPU here: nothing was measured")
        return 1
    head = {**environment.describe(), "gpu": torch.cuda.get_device_name(), "tokens": TOKENS}
    rows: list[dict[str, Any]] = []
    write_json(options.out, {**head, "rows": rows})  # a folder that is not there is found out before
    for row in measure(options.widths, options.seconds, "cuda"):
        print(row, flush=True)
        rows.append(row)
        write_json(options.out, {**head, "rows": rows})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
