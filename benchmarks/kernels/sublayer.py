"""What one sublayer costs over its branch: our forms of it, the peers' and what ``torch.compile`` makes of ours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.layers import sublayer as others
from benchmarks.memory import pinned_allocator, saved_mib
from benchmarks.timing import fastest, one_thread
from jpmhc import kernels, layers

TOKENS, WIDTH, SWEEPS, DEPTH = 4096, 512, 20, 4

Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Contender:
    """A layer or a stack of them."""

    name: str
    build: Callable[[int, Callable[[], nn.Module], int], Function]
    """From streams, a maker of branches and a number of layers to a function of streams (tokens, n, d)."""
    depth: int = 1
    """Layers that are run and timed; everything is reported for one of them."""
    backend: str = "auto"
    targets: tuple[tuple[int, float], ...] = ()
    """For a number of streams, how many times faster than this ours is to be."""
    saved_target: float | None = None
    slow: bool = False


def run(quick: bool) -> dict[str, Any]:
    """Time a sublayer forward and backward on one thread in float32: 4,096 tokens of width 512, the branch a matrix.

    Parameters
    ----------
    quick : bool
        Two rounds, n = 4 alone, nothing compiled by ``torch.compile``.

    Returns
    -------
    dict
        JSON-able: ``rows``, each with name, streams, ms (a sublayer's, forward and backward), over_branch_ms (without
        the plain residual's), ratio (of over_branch_ms to that of ours, the first row of a size with one), target (of
        that ratio, where one was set), saved_streams (what a single sublayer keeps for backward beyond its input and
        the parameters, in units of the streams) and saved_target. The first row of a size is the plain residual on one
        stream, the second a copy of the streams, which has no branch.
    """
    with one_thread(), pinned_allocator():
        rows = [row for n in ((4,) if quick else (4, 8)) for row in _rows(n, quick)]
    settings = {"tokens": TOKENS, "width": WIDTH, "dtype": "float32", "sweeps": SWEEPS, "threads": 1}
    return {"name": "sublayer", **settings, "rows": rows}


def _rows(n: int, quick: bool) -> list[dict[str, Any]]:
    torch.manual_seed(0)
    x, cotangent = torch.randn(2, TOKENS, n, WIDTH)
    streams_mib = x.numel() * 4 / 2**20
    rows, calls = [], {}
    for contender in CONTENDERS:
        if quick and contender.slow:
            continue
        row: dict[str, Any] = {"name": contender.name, "streams": n}
        rows.append(row)
        parameters: list[Tensor] = []
        given, gradient = (x[:, 0], cotangent[:, 0]) if contender is CONTENDERS[0] else (x, cotangent)
        leaf = given.clone().requires_grad_()
        try:
            one = contender.build(n, partial(_branch, parameters), 1)
            deep = one if contender.depth == 1 else contender.build(n, partial(_branch, parameters), contender.depth)
            call = _call(deep, leaf, gradient, contender)
            call()
            own = [*one.parameters()] if isinstance(one, nn.Module) else []
            with kernels.backend(contender.backend):
                row["saved_streams"] = saved_mib(one, leaf, *parameters, *own) / streams_mib
        except Exception as error:  # a peer's fault is a result here, whatever it raises
            row["error"] = f"{type(error).__name__}: {error}".splitlines()[0]
            continue
        row["saved_target"] = contender.saved_target
        row["target"] = dict(contender.targets).get(n)
        calls[contender.name] = call
    times = fastest(calls, 2 if quick else 6)
    depths = {contender.name: contender.depth for contender in CONTENDERS}
    for row in rows:
        if row["name"] in times:
            row["ms"] = times[row["name"]] / depths[row["name"]]
    measured = [row for row in rows if "ms" in row]
    for row in measured[2:]:  # a copy has no branch
        row["over_branch_ms"] = row["ms"] - measured[0]["ms"]
        row["ratio"] = row["over_branch_ms"] / measured[2]["over_branch_ms"]
    return rows


def _branch(parameters: list[Tensor]) -> nn.Module:
    made = nn.Linear(WIDTH, WIDTH, bias=False)
    parameters += made.parameters()
    return made


def _call(function: Function, leaf: Tensor, cotangent: Tensor, contender: Contender) -> Callable[[], None]:
    def call() -> None:
        leaf.grad = None
        with kernels.backend(contender.backend):
            function(leaf).backward(cotangent)

    return call


def _layer(n: int, branch: Callable[[], nn.Module], index: int) -> layers.HyperConnection:
    made = layers.Sinkhorn(n, iterations=SWEEPS)
    return layers.HyperConnection(WIDTH, branch(), streams=n, mixer=made, gate="sigmoid", layer_index=index)


def _stack(n: int, branch: Callable[[], nn.Module], depth: int, **options: Any) -> Function:
    return layers.HyperStack([_layer(n, branch, index) for index in range(depth)], **options)


def _compiled(n: int, branch: Callable[[], nn.Module], depth: int) -> Function:
    torch._dynamo.reset()
    compiled: Function = torch.compile(_stack(n, branch, depth), fullgraph=True, dynamic=False)
    return compiled


def _peer(name: str) -> Callable[[int, Callable[[], nn.Module], int], Function]:
    build = next(contender.build for contender in others.CONTENDERS if contender.name == name)
    return lambda n, branch, _depth: build(n, branch())


CONTENDERS = (
    Contender("plain residual, one stream", lambda _n, branch, _depth: layers.Residual(branch())),
    Contender("copy of the streams", lambda _n, _branch, _depth: torch.clone),
    Contender(f"jpmhc HyperStack of {DEPTH}", _stack, DEPTH),
    Contender(
        f"jpmhc HyperStack of {DEPTH}, reads recomputed",
        partial(_stack, recompute_reads=True),
        DEPTH,
        saved_target=0.3,
    ),
    Contender("jpmhc HyperConnection", _stack),
    Contender(f"jpmhc HyperStack of {DEPTH}, reference body", _stack, DEPTH, "reference"),
    Contender(
        "jpmhc, reference body, torch.compile", _compiled, backend="reference", targets=((4, 1.6), (8, 1.5)), slow=True
    ),
    Contender("lucidrains mHCv2", _peer("lucidrains mHCv2"), targets=((4, 6.0), (8, 4.0))),
    Contender("transformers DeepSeek-V4", _peer("transformers DeepSeek-V4"), targets=((4, 3.5), (8, 2.5))),
)
