"""Every kernel against the time that moving its numbers once takes at the measured speed of copying."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.memory import pinned_allocator
from benchmarks.timing import Timed, check_device, in_a_line, one_thread, ratio, replayed
from jpmhc import kernels
from jpmhc.kernels.boundary import Boundary, Pullback, boundary_backward, boundary_forward
from jpmhc.kernels.gates import Gates, GatesPullback, gates_backward, gates_forward

MATRICES = {"cpu": (65536, 4, 4), "cuda": (1048576, 4, 4)}
# Tokens and widths of the boundary.
TOKENS = {"cpu": 4096, "cuda": 16384}
WIDTHS = {"cpu": (512,), "cuda": (512, 2048, 4096, 7168)}
STREAMS = (4, 8)
# Share of the floor's speed that the boundary is to reach on a GPU.
TARGETS = {"boundary_forward": 0.8, "boundary_backward": 0.7}


def run(quick: bool) -> Iterator[dict[str, Any]]:
    """Time every kernel alone, in float32 on one thread of a CPU, or on a GPU with bfloat16 streams.

    Parameters
    ----------
    quick : bool
        Two rounds of a sixteenth of the tokens.

    Yields
    ------
    dict
        JSON-able, again after every row: ``rows``, each with kernel, shape, dtype, body, mib (that it must read and
        write, every number once), ms, floor_ms (those bytes at ``copy_gib_s``, the speed at which as many bytes are
        copied in the same rounds), reached, the floor's share of the time, and on a GPU captured (see
        `benchmarks.timing.replayed`); or ``error``. On a GPU the boundary has a target of that share.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with one_thread(), pinned_allocator():
        yield from measure(device, quick)


def measure(device: str, quick: bool, backend: str = "auto") -> Iterator[dict[str, Any]]:
    """Do as `run` on a device with the bodies of a backend."""
    rows: list[dict[str, Any]] = []
    with kernels.backend(backend):
        for case in _cases(device, 16 if quick else 1):
            check_device(device)
            rows.append(_row(case, device, 2 if quick else 15))
            yield {"name": "roofline", "device": device, "threads": 1, "rows": rows}


@dataclass(frozen=True)
class _Case:
    kernel: Callable[..., Any]
    shape: tuple[int, ...]
    """Of its largest argument."""
    make: Callable[[], tuple[Any, ...]]
    """Returns the arguments."""


def _row(case: _Case, device: str, rounds: int) -> dict[str, Any]:
    name = case.kernel.__name__
    row: dict[str, Any] = {"kernel": name, "shape": list(case.shape)}
    try:
        args = case.make()
        given = args[0] if isinstance(args[0], tuple) else args
        row["dtype"] = str(next(v for v in given if isinstance(v, Tensor)).dtype).removeprefix("torch.")
        row["body"] = kernels.choice(name, *given).backend
        size = _bytes(given, case.kernel(*args))
        row["mib"] = size / 2**20
        times = replayed({name: lambda: case.kernel(*args), **copies(device, size)}, rounds, device)
    except Exception as error:
        return {**row, "error": in_a_line(error)}
    row |= times[name].row()
    copy = fastest_copy(times)
    if copy.ms is not None:
        row |= {"copy_gib_s": size / (copy.ms / 1e3) / 2**30, "floor_ms": copy.ms}
    return {**row, "reached": ratio(copy, times[name]), "target": TARGETS.get(name) if device == "cuda" else None}


def _bytes(given: tuple[Any, ...], results: Any) -> int:
    made = list(results) if isinstance(results, tuple) else [results]
    tensors = [value for value in given if isinstance(value, Tensor)]
    # An argument that two places share is read once.
    moved = [*{tensor.data_ptr(): tensor for tensor in tensors if tensor.numel()}.values(), *made]
    return sum(tensor.numel() * tensor.itemsize for tensor in moved)


def copies(device: str, size: int) -> dict[str, Callable[[], Any]]:
    """Return passes that move so many bytes, read and written: a copy and an elementwise operation.

    On a GPU a copy in a graph is left to an engine that reaches four fifths of what the multiprocessors do.
    """
    source = torch.zeros(size // 2, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return {"copy": lambda: target.copy_(source), "invert": lambda: torch.bitwise_not(source, out=target)}


def fastest_copy(times: dict[str, Timed]) -> Timed:
    """Return the faster of the two `copies`."""
    return min((times["copy"], times["invert"]), key=lambda timed: float("inf") if timed.ms is None else timed.ms)


def _cases(device: str, divisor: int) -> Iterator[_Case]:
    yield from _small_maps(device, divisor)
    for n in STREAMS:
        for width in WIDTHS[device]:
            yield from _boundaries(device, TOKENS[device] // divisor, n, width)


def _small_maps(device: str, divisor: int) -> Iterator[_Case]:
    tokens, *size = MATRICES[device]
    shape = (tokens // divisor, *size)
    pairs = (shape[0], 2, 4)

    @cache
    def drawn() -> tuple[Tensor, Tensor, Tensor]:
        draw = torch.Generator(device).manual_seed(0)
        x, g = (torch.randn(shape, generator=draw, device=device) for _ in range(2))
        return x, g, x.reshape(-1, 2, 4)[: len(x)].contiguous()

    eps = 8 * torch.finfo(torch.float32).eps
    yield _Case(kernels.sinkhorn_sweeps, shape, lambda: (drawn()[0], None, None, 20))
    yield _Case(kernels.sinkhorn_forward, shape, lambda: (drawn()[0], None, None, eps, 64))
    yield _Case(
        kernels.sinkhorn_adjoint, shape, lambda: (kernels.sinkhorn_sweeps(drawn()[0], None, None, 20), drawn()[1])
    )
    yield _Case(kernels.cayley_forward, shape, lambda: (drawn()[0], 1.0))
    yield _Case(kernels.cayley_adjoint, shape, lambda: (kernels.cayley_forward(drawn()[0], 1.0), drawn()[1], 1.0))
    yield _Case(kernels.quaternion_forward, pairs, lambda: (drawn()[2],))
    yield _Case(kernels.quaternion_adjoint, shape, lambda: (drawn()[2], drawn()[1]))
    n = size[0]
    numbers = (shape[0], n * n + 2 * n)
    gates = cache(partial(_gates, device, *numbers, n))
    yield _Case(gates_forward, numbers, lambda: (gates(),))
    yield _Case(gates_backward, numbers, lambda: (_gates_pullback(gates()),))


def _boundaries(device: str, tokens: int, n: int, width: int) -> Iterator[_Case]:
    shape = (tokens, n, width)
    boundary = cache(partial(_boundary, device, *shape))
    yield _Case(boundary_forward, shape, lambda: (boundary(),))
    yield _Case(boundary_backward, shape, lambda: (_pullback(boundary()),))


def _boundary(device: str, tokens: int, n: int, width: int) -> Boundary:
    # A generator of the device's own, which no failed capture of a graph leaves waiting for its end.
    draw = torch.Generator(device).manual_seed(0)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    rows = n * n + 2 * n

    def normal(*shape: int, scale: float = 1.0, dtype: torch.dtype = torch.float32) -> Tensor:
        return (scale * torch.randn(shape, generator=draw, device=device)).to(dtype)

    x, y = normal(tokens, n, width, dtype=dtype), normal(tokens, width, dtype=dtype)
    matrix, post = normal(tokens, n, n, scale=n**-0.5), normal(tokens, n)
    weight, bias, scale = normal(rows, n * width, scale=(n * width) ** -0.5), normal(n), normal(1)
    return Boundary(x, matrix, post, y, weight, bias, scale, "sigmoid", True, 1e-6, -1.0)


def _gates(device: str, tokens: int, numbers: int, n: int) -> Gates:
    draw = torch.Generator(device).manual_seed(0)
    z, bias, scale = (torch.randn(s, generator=draw, device=device) for s in ((tokens, numbers), numbers - n, 2))
    return Gates(z, bias, scale, "sigmoid", n, False)


def _gates_pullback(gates: Gates) -> GatesPullback:
    post, raw = gates_forward(gates)
    draw = torch.Generator(post.device).manual_seed(1)
    gradients = (torch.randn(t.shape, generator=draw, device=t.device) for t in (post, raw))
    return GatesPullback(*gradients, gates.z, post, gates.scale, "sigmoid", False)


def _pullback(boundary: Boundary) -> Pullback:
    streams, u, z, pre, rms, _ = boundary_forward(boundary)
    draw = torch.Generator(streams.device).manual_seed(1)
    gradients = (torch.randn(t.shape, generator=draw, device=t.device, dtype=t.dtype) for t in (streams, u, z))
    return Pullback(*gradients, *boundary[:5], boundary.scale, streams, z, pre, rms, None, "sigmoid")
