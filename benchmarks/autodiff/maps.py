"""Sinkhorn forward and backward, against the loop that autograd unrolls, its compiled form and other libraries."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.memory import peak_mib, saved_mib
from jpmhc import autodiff

SHAPES = ((4096, 4, 4), (65536, 4, 4), (4096, 16, 16))
SWEEPS = 20

Map = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Contender:
    """A map from logits to doubly stochastic matrices; ``build(shape)`` raises where it does not run."""

    name: str
    build: Callable[[tuple[int, int, int]], Map]
    in_quick: bool = True


def run(quick: bool) -> dict[str, Any]:
    """Time all contenders on one thread, in float32, with standard normal logits.

    Parameters
    ----------
    quick : bool
        Fewer rounds, the first shape alone, and one compiled contender.

    Returns
    -------
    dict
        JSON-able: ``rows``, each with name, shape, ms (forward and backward, minimum over interleaved rounds), ratio
        (its time over that of ``jpmhc sinkhorn``), saved_mib (kept for backward beyond the logits), peak_mib
        (allocated at once in forward and backward beyond the logits) and residual (largest error of a row or column
        sum). A contender that does not run has an ``error`` in place of numbers.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rounds = 5 if quick else 15
        rows = [row for shape in SHAPES[: 1 if quick else None] for row in _rows(shape, rounds, quick)]
    finally:
        torch.set_num_threads(threads)
    return {"name": "sinkhorn", "dtype": "float32", "threads": 1, "sweeps": SWEEPS, "rounds": rounds, "rows": rows}


def _rows(shape: tuple[int, int, int], rounds: int, quick: bool) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(shape, generator=generator).requires_grad_()
    cotangent = torch.randn(shape, generator=generator)
    rows, calls = [], {}
    for contender in CONTENDERS:
        if quick and not contender.in_quick:
            continue
        row: dict[str, Any] = {"name": contender.name, "shape": list(shape)}
        rows.append(row)
        try:
            function = contender.build(shape)
            result = function(logits)
            torch.autograd.grad(result, logits, cotangent)  # compiles the backward, where there is one to compile
            row["residual"] = autodiff.sinkhorn_residual(result.detach()).max().item()
            row["saved_mib"] = saved_mib(function, logits)
            row["peak_mib"] = peak_mib(function, logits, cotangent)
        except Exception as error:  # a peer's fault is a result here, whatever it raises
            row["error"] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            continue
        calls[contender.name] = (row, function)
    for _ in range(rounds):
        for row, function in calls.values():
            milliseconds = _milliseconds(function, logits, cotangent)
            row["ms"] = min(row.get("ms", milliseconds), milliseconds)
    ours = calls[CONTENDERS[0].name][0]["ms"]
    for row, _ in calls.values():
        row["ratio"] = row["ms"] / ours
    return rows


def _milliseconds(function: Map, logits: Tensor, cotangent: Tensor, at_least: float = 0.03) -> float:
    """Mean time of a forward and backward pass over a stretch of at least 30 ms."""
    start = time.perf_counter()
    calls = 0
    while (elapsed := time.perf_counter() - start) < at_least or not calls:
        torch.autograd.grad(function(logits), logits, cotangent)
        calls += 1
    return 1e3 * elapsed / calls


def _unrolled(logits: Tensor) -> Tensor:
    matrix = (logits - logits.amax(-1, keepdim=True)).exp()
    for _ in range(SWEEPS):
        matrix = matrix / matrix.sum(-1, keepdim=True)
        matrix = matrix / matrix.sum(-2, keepdim=True)
    return matrix


def _unrolled_log(logits: Tensor) -> Tensor:
    for _ in range(SWEEPS):
        logits = logits - logits.logsumexp(-1, keepdim=True)
        logits = logits - logits.logsumexp(-2, keepdim=True)
    return logits.exp()


def _compiled(function: Map) -> Callable[[tuple[int, int, int]], Map]:
    def build(shape: tuple[int, int, int]) -> Map:
        torch._dynamo.reset()
        return torch.compile(function, fullgraph=True, dynamic=False)

    return build


def _pot(shape: tuple[int, int, int]) -> Map:
    from ot.batch import solve_batch

    def solve(logits: Tensor) -> Tensor:
        options = {"max_iter": SWEEPS, "method": "log_sinkhorn", "grad": "autodiff"}
        return shape[-1] * solve_batch(-logits, reg=1.0, **options).plan

    return solve


def _lucidrains(name: str) -> Callable[[tuple[int, int, int]], Map]:
    def build(shape: tuple[int, int, int]) -> Map:
        from hyper_connections import mHCv2

        return lambda logits: getattr(mHCv2, name)(logits, iters=SWEEPS)

    return build


def _transformers(shape: tuple[int, int, int]) -> Map:
    """Reach the layer's own loop through streams that hold the logits and a projection that copies them.

    Its time holds that projection, and its logits are divided by their root mean square first.
    """
    from transformers import DeepseekV4Config
    from transformers.models.deepseek_v4.modeling_deepseek_v4 import DeepseekV4HyperConnection

    n = shape[-1]
    layer = DeepseekV4HyperConnection(DeepseekV4Config(hidden_size=n, hc_mult=n, hc_sinkhorn_iters=SWEEPS))
    with torch.no_grad():
        layer.base.zero_()
        layer.scale.fill_(1.0)
        layer.fn.zero_()
        layer.fn[2 * n :] = torch.eye(n * n)
    return lambda logits: layer(logits.unsqueeze(0))[1].squeeze(0)


CONTENDERS = (
    Contender("jpmhc sinkhorn", lambda shape: autodiff.sinkhorn),
    Contender(f"jpmhc sinkhorn, {SWEEPS} sweeps", lambda shape: lambda x: autodiff.sinkhorn(x, iterations=SWEEPS)),
    Contender("jpmhc sinkhorn, compiled", _compiled(autodiff.sinkhorn)),
    Contender("unrolled", lambda shape: _unrolled),
    Contender("unrolled, log domain", lambda shape: _unrolled_log),
    Contender("unrolled, compiled", _compiled(_unrolled)),
    Contender("unrolled, log domain, compiled", _compiled(_unrolled_log), in_quick=False),
    Contender("POT solve_batch", _pot),
    Contender("lucidrains sinkhorn_knopps", _lucidrains("sinkhorn_knopps")),
    Contender("lucidrains log_domain_sinkhorn_knopps", _lucidrains("log_domain_sinkhorn_knopps")),
    Contender("transformers DeepseekV4HyperConnection", _transformers),
)
