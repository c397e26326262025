"""Every kernel against the time that moving its numbers once takes at the measured speed of copying."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.memory import pinned_allocator
from benchmarks.timing import one_thread, replayed
from jpmhc import kernels
from jpmhc.kernels.boundary import Boundary, Pullback, boundary_backward, boundary_forward

MATRICES = {"cpu": (65536, 4, 4), "cuda": (1048576, 4, 4)}
# Tokens and widths of the boundary.
TOKENS = {"cpu": 4096, "cuda": 16384}
WIDTHS = {"cpu": (512,), "cuda": (512, 2048, 4096, 7168)}
STREAMS = (4, 8)
# Share of the floor's speed that the boundary is to reach on a GPU.
TARGETS = {"boundary_forward": 0.8, "boundary_backward": 0.7}


def run(quick: bool) -> dict[str, Any]:
    """Time every kernel alone, in float32 on one thread of a CPU, or on a GPU with bfloat16 streams.

    Parameters
    ----------
    quick : bool
        Two rounds of a sixteenth of the tokens.

    Returns
    -------
    dict
        JSON-able: ``rows``, each with kernel, shape, dtype, body, mib (that it must read and write, every number once),
        ms, floor_ms (those bytes at ``copy_gib_s``, the speed at which as many streams are copied) and reached, the
        floor's share of the time. On a GPU the boundary has a target of that share.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with one_thread(), pinned_allocator():
        return measure(device, quick)


def measure(device: str, quick: bool, backend: str = "auto") -> dict[str, Any]:
    """Do as `run` on a device with the bodies of a backend."""
    divisor = 16 if quick else 1
    rows: list[dict[str, Any]] = []
    speeds = {}
    with kernels.backend(backend):
        calls = _small_maps(device, divisor)
        for n in STREAMS:
            for width in WIDTHS[device]:
                calls += _boundaries(device, TOKENS[device] // divisor, n, width)
        for size in sorted({_bytes(tensors) for _, tensors, _ in calls}):
            speeds[size] = _copy_speed(device, size, quick)
        rounds = 2 if quick else 15
        times = replayed({str(number): call for number, (_, _, call) in enumerate(calls)}, rounds, device)
    for number, (row, tensors, _) in enumerate(calls):
        size, ms = _bytes(tensors), times[str(number)]
        floor = 1e3 * size / speeds[size]
        row |= {"mib": size / 2**20, "ms": ms, "copy_gib_s": speeds[size] / 2**30, "floor_ms": floor}
        row |= {"reached": floor / ms, "target": TARGETS.get(row["kernel"]) if device == "cuda" else None}
        rows.append(row)
    return {"name": "roofline", "device": device, "threads": 1, "rows": rows}


Call = tuple[dict[str, Any], list[Tensor], Callable[[], Any]]


def _bytes(tensors: list[Tensor]) -> int:
    return sum(tensor.numel() * tensor.itemsize for tensor in tensors)


def _copy_speed(device: str, size: int, quick: bool) -> float:
    """Bytes a second, read and written, of a pass that moves so many: the faster of a copy and an elementwise one.

    On a GPU a copy in a graph is left to an engine that reaches four fifths of what the multiprocessors do.
    """
    source = torch.zeros(size // 2, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    passes = {"copy": lambda: target.copy_(source), "invert": lambda: torch.bitwise_not(source, out=target)}
    times = replayed(passes, 2 if quick else 15, device)
    return 2 * source.numel() / (min(times.values()) / 1e3)


def _call(device: str, kernel: Callable[..., Any], *args: Any) -> Call:
    results = kernel(*args)
    given = args[0] if isinstance(args[0], tuple) else args
    tensors = [value for value in given if isinstance(value, Tensor)]
    made = list(results) if isinstance(results, tuple) else [results]
    # An argument that two places share is read once.
    moved = [*{tensor.data_ptr(): tensor for tensor in tensors if tensor.numel()}.values(), *made]
    largest = max(tensors, key=lambda tensor: tensor.numel())
    row = {
        "kernel": kernel.__name__,
        "shape": list(largest.shape),
        "dtype": str(largest.dtype).removeprefix("torch."),
        "body": kernels.choice(kernel.__name__, *given).backend,
    }
    return row, moved, lambda: kernel(*args)


def _small_maps(device: str, divisor: int) -> list[Call]:
    tokens, *size = MATRICES[device]
    draw = torch.Generator().manual_seed(0)
    x, g = (torch.randn(tokens // divisor, *size, generator=draw).to(device) for _ in range(2))
    pair = x.reshape(-1, 2, 4)[: len(x)].contiguous()
    p, q = kernels.sinkhorn_sweeps(x, None, None, 20), kernels.cayley_forward(x, 1.0)
    make = partial(_call, device)
    return [
        make(kernels.sinkhorn_sweeps, x, None, None, 20),
        make(kernels.sinkhorn_forward, x, None, None, 8 * torch.finfo(x.dtype).eps, 64),
        make(kernels.sinkhorn_adjoint, p, g),
        make(kernels.cayley_forward, x, 1.0),
        make(kernels.cayley_adjoint, q, g, 1.0),
        make(kernels.quaternion_forward, pair),
        make(kernels.quaternion_adjoint, pair, g),
    ]


def _boundaries(device: str, tokens: int, n: int, width: int) -> list[Call]:
    draw = torch.Generator().manual_seed(0)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    rows = n * n + 2 * n

    def normal(*shape: int, scale: float = 1.0, dtype: torch.dtype = torch.float32) -> Tensor:
        return (scale * torch.randn(shape, generator=draw)).to(device, dtype)

    x, y = normal(tokens, n, width, dtype=dtype), normal(tokens, width, dtype=dtype)
    matrix, post = normal(tokens, n, n, scale=n**-0.5), normal(tokens, n)
    weight, bias, scale = normal(rows, n * width, scale=(n * width) ** -0.5), normal(n), normal(1)
    boundary = Boundary(x, matrix, post, y, weight, bias, scale, "sigmoid", True, 1e-6, -1.0)
    streams, u, z, pre, rms, _ = boundary_forward(boundary)
    gradients = torch.randn_like(streams), torch.randn_like(u), torch.randn_like(z)
    pullback = Pullback(*gradients, x, matrix, post, y, weight, scale, streams, z, pre, rms, None, "sigmoid")
    return [_call(device, boundary_forward, boundary), _call(device, boundary_backward, pullback)]
