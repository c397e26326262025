"""Sinkhorn and Cayley, forward and backward, beside what autograd makes of the usual code and its compiled form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.memory import pinned_allocator, saved_mib
from benchmarks.timing import fastest, one_thread
from jpmhc import autodiff, kernels

SHAPES = ((65536, 4, 4), (16384, 8, 8))
SWEEPS = 20

Map = Callable[[Tensor], Tensor]


def run(quick: bool) -> dict[str, Any]:
    """Time all contenders in float32, on one thread of a CPU or, where there is one, on the GPU.

    Parameters
    ----------
    quick : bool
        Two rounds of a sixteenth of the first shape's tokens, nothing compiled by ``torch.compile``, which is compared
        for the first shape alone.

    Returns
    -------
    dict
        JSON-able: ``rows``, each with map, name, shape, ms (forward and backward), ratio (its time over that of the
        first row of its map and shape), target (of that ratio, where one was set) and saved_mib (kept for backward
        beyond the argument).
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    shapes = ((SHAPES[0][0] // 16, 4, 4),) if quick else SHAPES
    rows = []
    with one_thread(), pinned_allocator():
        for shape in shapes:
            for name, contenders in (("sinkhorn", _sinkhorns()), ("cayley", _cayleys())):
                rows += _rows(name, contenders, shape, device, quick)
    return {"name": "small maps", "dtype": "float32", "device": device, "sweeps": SWEEPS, "rows": rows}


def _rows(
    name: str, contenders: dict[str, tuple[Map, float | None]], shape: tuple[int, int, int], device: str, quick: bool
) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator).to(device).requires_grad_()
    cotangent = torch.randn(shape, generator=generator).to(device)
    rows, calls = {}, {}
    for contender, (function, target) in contenders.items():
        if "compile" in contender and (quick or shape != SHAPES[0]):
            continue
        if "compile" in contender:
            torch._dynamo.reset()
            function = torch.compile(function, fullgraph=True, dynamic=False)
        rows[contender] = {"map": name, "name": contender, "shape": list(shape)}
        rows[contender]["saved_mib"] = saved_mib(function, x)
        rows[contender]["target"] = target if shape == SHAPES[0] else None
        calls[contender] = _call(function, x, cotangent, "reference" if "reference" in contender else "auto")
    times = fastest(calls, 2 if quick else 7, at_least=0.03)
    ours = times[next(iter(times))]
    return [{**row, "ms": times[contender], "ratio": times[contender] / ours} for contender, row in rows.items()]


def _call(function: Map, x: Tensor, cotangent: Tensor, backend: str) -> Callable[[], None]:
    def call() -> None:
        with kernels.backend(backend):
            torch.autograd.grad(function(x), x, cotangent)
        if x.is_cuda:
            torch.cuda.synchronize()

    return call


def _sinkhorns() -> dict[str, tuple[Map, float | None]]:
    return {
        f"jpmhc, {SWEEPS} sweeps": (lambda x: autodiff.sinkhorn(x, iterations=SWEEPS), None),
        "jpmhc, converged": (autodiff.sinkhorn, None),
        f"jpmhc, {SWEEPS} sweeps, reference body": (lambda x: autodiff.sinkhorn(x, iterations=SWEEPS), None),
        "jpmhc, converged, reference body": (autodiff.sinkhorn, None),
        "unrolled": (unrolled, 25.0),
        "unrolled, torch.compile": (unrolled, 8.0),
    }


def _cayleys() -> dict[str, tuple[Map, float | None]]:
    return {
        "jpmhc, exact": (autodiff.cayley, None),
        "jpmhc, exact, reference body": (autodiff.cayley, None),
        "torch.linalg.solve": (_solved, 20.0),
        "published iteration, 2 steps": (_iterated, 5.0),
        "published iteration, 2 steps, torch.compile": (_iterated, None),
    }


def unrolled(logits: Tensor) -> Tensor:
    """Sweep as most code does, for autograd to go back through every sweep."""
    matrix = (logits - logits.amax(-1, keepdim=True)).exp()
    for _ in range(SWEEPS):
        matrix = matrix / matrix.sum(-1, keepdim=True)
        matrix = matrix / matrix.sum(-2, keepdim=True)
    return matrix


def _solved(raw: Tensor) -> Tensor:
    half = (raw - raw.mT) / 2
    identity = torch.eye(raw.shape[-1], device=raw.device)
    return torch.linalg.solve(identity - half, identity + half)


def _iterated(raw: Tensor) -> Tensor:
    skew = 0.1 * (raw - raw.mT)
    identity = torch.eye(raw.shape[-1], device=raw.device)
    result = identity + skew
    for _ in range(2):
        result = identity + skew / 2 @ (identity + result)
    return result
