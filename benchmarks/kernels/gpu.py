"""On a GPU: a layer's boundary beside Liger's and compiled code, a recursive model's step beside the plain residual.

Everything here runs on a CPU too, small, which is how it is tested; a result it is on a GPU alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.arc.model import Attention, SwiGLU, rms_norm, rotary_table
from benchmarks.kernels.roofline import STREAMS, TOKENS, WIDTHS, copies, fastest_copy
from benchmarks.kernels.systems import UnrolledSinkhorn
from benchmarks.timing import check_device, in_a_line, ratio, replayed
from jpmhc import kernels, layers
from jpmhc.kernels.crossing import Writing

SWEEPS = 20
_REFERENCE = "torch.compile of the reference"
# How many times faster than these ours is to be.
TARGETS = {"Liger": 2.0, _REFERENCE: 1.5}
# How much of the plain residual's time a recursive model's step may take.
TRM_TARGET = 1.25
COMPILED_WIDTHS = (512, 4096)
TRM_WIDTH, TRM_STREAMS, TRM_HEADS, TRM_INNER, TRM_BLOCKS, TRM_POSITIONS = 512, 4, 8, 1536, 2, 916

Boundary = Callable[..., tuple[Tensor, ...]]


def layer(quick: bool) -> Iterator[dict[str, Any]]:
    """Time what stands between two branches, forward and backward: write, projection, 20 sweeps, gates and read.

    Parameters
    ----------
    quick : bool
        The smallest width alone, fewer rounds.

    Yields
    ------
    dict
        JSON-able, again after every size: ``rows``, each with name, streams, width, ms, captured (see
        `benchmarks.timing.replayed`), ratio (to ours, between times that were taken alike) and target, or ``error``; no
        rows without a GPU.
    """
    return _layers("GPU layer", ("jpmhc", "Liger"), WIDTHS["cuda"][:1] if quick else WIDTHS["cuda"], quick)


def compiled(quick: bool) -> Iterator[dict[str, Any]]:
    """Do as `layer` beside compiled code of the reference, some minutes of compiling for each size."""
    return _layers("GPU compiled", ("jpmhc", _REFERENCE), COMPILED_WIDTHS[:1] if quick else COMPILED_WIDTHS, quick)


def _layers(name: str, contenders: tuple[str, ...], widths: tuple[int, ...], quick: bool) -> Iterator[dict[str, Any]]:
    if not torch.cuda.is_available():
        yield {"name": name, "note": _NO_GPU, "rows": []}
        return
    tokens, rounds = TOKENS["cuda"], 3 if quick else 9
    rows: list[dict[str, Any]] = []
    for n in STREAMS:
        for width in widths:
            check_device("cuda")
            try:
                rows += layer_rows("cuda", tokens, n, width, rounds, contenders)
            except Exception as error:  # of what all contenders are given
                rows.append({"name": "all", "streams": n, "width": width, "error": in_a_line(error)})
            yield {"name": name, "tokens": tokens, "dtype": "bfloat16", "sweeps": SWEEPS, "rows": rows}


def step(quick: bool) -> dict[str, Any]:
    """Time a step (forward and backward) of a Tiny Recursive Model's net with four streams and with one.

    Returns
    -------
    dict
        JSON-able: ``rows`` with name, ms, captured, ratio (to the plain residual's), target, and floor: the ratio if
        the streams cost what moving their bytes costs at the measured speed of copying; or ``error``. Ratios are of
        times that were taken alike. No rows without a GPU.
    """
    if not torch.cuda.is_available():
        return {"name": "GPU step", "note": _NO_GPU, "rows": []}
    return {"name": "GPU step", "rows": step_rows("cuda", 16, TRM_POSITIONS, TRM_WIDTH, 3 if quick else 9)}


_NO_GPU = "no GPU here: nothing was measured"


def layer_rows(
    device: str, tokens: int, n: int, width: int, rounds: int, contenders: tuple[str, ...]
) -> list[dict[str, Any]]:
    """Time contenders for one size, ours among them."""
    torch.default_generator.manual_seed(0)  # parameters are drawn on the CPU
    draw = _generator(device)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    x = torch.randn(tokens, n, width, generator=draw, device=device, dtype=dtype).requires_grad_()
    y = torch.randn(tokens, width, generator=draw, device=device, dtype=dtype).requires_grad_()
    matrix = torch.rand(tokens, n, n, generator=draw, device=device).div_(n).requires_grad_()
    post = torch.rand(tokens, n, generator=draw, device=device).requires_grad_()
    made = {
        "jpmhc": partial(_ours, n, width, device),
        "Liger": partial(_liger, n, width, device),
        _REFERENCE: partial(_compiled, n, width, device),
    }
    rows, calls = [], {}
    for name, make in ((name, made[name]) for name in contenders):
        rows.append({"name": name, "streams": n, "width": width, "target": TARGETS.get(name)})
        try:
            calls[name] = _pass(make(), draw, "reference" if "reference" in name else "auto", x, matrix, post, y)
        except Exception as error:  # a peer's fault is a result here, whatever it raises
            rows[-1]["error"] = in_a_line(error)
    times = replayed(calls, rounds, device)
    for row in rows:
        timed = times.get(row["name"])
        if timed is not None:
            row |= {**timed.row(), "ratio": ratio(timed, times.get("jpmhc"))}
    return rows


def _generator(device: str) -> torch.Generator:
    # Not the device's default, which a failed capture of a graph leaves waiting for its end.
    return torch.Generator(device).manual_seed(0)


def _pass(boundary: Boundary, draw: torch.Generator, backend: str, *given: Tensor) -> Callable[[], Any]:
    def call() -> Any:
        with kernels.backend(backend):
            return torch.autograd.grad(boundary(*given), given, cotangents, allow_unused=True)

    with kernels.backend(backend):
        results = boundary(*given)
    cotangents = [torch.randn(r.shape, generator=draw, device=r.device, dtype=r.dtype) for r in results]
    return call


def _connection(n: int, width: int, device: str, mixer: type[layers.Sinkhorn]) -> layers.HyperConnection:
    made = mixer(n, iterations=SWEEPS)
    return layers.HyperConnection(width, nn.Identity(), streams=n, mixer=made, gate="sigmoid").to(device)


def _entered(connection: layers.HyperConnection) -> Boundary:
    def boundary(x: Tensor, matrix: Tensor, post: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        u, streams, writing = connection.enter(x, Writing(matrix, post, y))
        after = writing(u)
        return u, streams, after.matrix, after.post

    return boundary


def _ours(n: int, width: int, device: str) -> Boundary:
    return _entered(_connection(n, width, device, layers.Sinkhorn))


def _compiled(n: int, width: int, device: str) -> Boundary:
    torch._dynamo.reset()
    entered = _entered(_connection(n, width, device, UnrolledSinkhorn))
    compiled: Boundary = torch.compile(entered, fullgraph=True, dynamic=False)
    return compiled


def _liger(n: int, width: int, device: str) -> Boundary:
    from liger_kernel.transformers import functional

    rows = n * n + 2 * n
    phi = (
        (0.02 * torch.randn(n * width, rows, generator=_generator(device), device=device))
        .to(torch.float16)
        .requires_grad_()
    )
    bias = torch.zeros(rows, device=device, requires_grad=True)
    alphas = [torch.ones((), device=device, requires_grad=True) for _ in range(3)]

    def boundary(x: Tensor, matrix: Tensor, post: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        streams = functional.liger_mhc_post_res(x, y, post, matrix)
        pre, after_post, after_matrix = functional.liger_mhc_coeffs(streams, phi, bias, *alphas, tmax=SWEEPS)
        return functional.liger_mhc_pre(streams, pre), streams, after_matrix, after_post

    return boundary


class _Plain(nn.Module):
    """The net with one stream: residual and norm after it, as the model has it."""

    def __init__(self, branches: list[nn.Module]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (B, T, d)."""
        for branch in self.branches:
            x = rms_norm(x + branch(x))
        return x


class _Attending(nn.Module):
    def __init__(self, width: int, heads: int, positions: int, generator: torch.Generator) -> None:
        super().__init__()
        self.attention = Attention(width, heads, generator)
        self.rotary = rotary_table(positions, width // heads)

    def forward(self, x: Tensor) -> Tensor:
        """Attend."""
        self.rotary = (self.rotary[0].to(x.device), self.rotary[1].to(x.device))
        return self.attention(x, self.rotary)


def _branches(width: int, positions: int) -> list[nn.Module]:
    draw = torch.Generator().manual_seed(0)
    heads, inner = TRM_HEADS, TRM_INNER * width // TRM_WIDTH
    pairs = ((_Attending(width, heads, positions, draw), SwiGLU(width, inner, draw)) for _ in range(TRM_BLOCKS))
    return [branch for pair in pairs for branch in pair]


def step_rows(device: str, batch: int, positions: int, width: int, rounds: int) -> list[dict[str, Any]]:
    """Time the net of two blocks with four streams beside the same with one."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    n, depth = TRM_STREAMS, 2 * TRM_BLOCKS
    draw = _generator(device)
    x = torch.randn(batch, positions, width, generator=draw, device=device, dtype=dtype)

    def plain() -> Callable[[], Any]:
        return _training_pass(_Plain(_branches(width, positions)).to(device, dtype), x, draw)

    def streams() -> Callable[[], Any]:
        branches = [branch.to(device, dtype) for branch in _branches(width, positions)]
        connections = [layers.HyperConnection(width, b, streams=n, layer_index=i) for i, b in enumerate(branches)]
        stack = layers.HyperStack(connections, post_norm="rms").to(device)
        return _training_pass(stack, layers.expand_streams(x, n), draw)

    rows: list[dict[str, Any]] = [
        {"name": "plain residual", "target": None},
        {"name": "jpmhc, 4 streams", "target": TRM_TARGET},
    ]
    calls: dict[str, Callable[[], Any]] = {}
    for row, make in zip(rows, (plain, streams), strict=True):
        try:
            calls[row["name"]] = make()
        except Exception as error:  # the other one's time is worth having
            row["error"] = in_a_line(error)
    size = 2 * n * x.numel() * x.itemsize
    times = replayed({**calls, **copies(device, size)}, rounds, device)
    base, copy = times.get("plain residual"), fastest_copy(times)
    # Per sublayer (2n + 2) + (4n + 3) passes over d numbers a token, where the plain residual and norm have 4 + 4.
    share, passes = ratio(copy, base), depth * (6 * n + 5 - 8)
    floors = 1.0, None if share is None else 1 + passes * share / (2 * n)
    for row, floor in zip(rows, floors, strict=True):
        if row["name"] in times:
            timed = times[row["name"]]
            row |= {**timed.row(), "ratio": ratio(timed, base), "floor": floor}
    return rows


def _training_pass(net: nn.Module, given: Tensor, draw: torch.Generator) -> Callable[[], Any]:
    leaf = given.clone().requires_grad_()
    wanted = [leaf, *(p for p in net.parameters() if p.requires_grad)]
    cotangent = torch.randn(leaf.shape, generator=draw, device=leaf.device, dtype=leaf.dtype)
    return lambda: torch.autograd.grad(net(leaf), wanted, cotangent, allow_unused=True)
