"""The cost of one sublayer over its branch: time, and what is kept for backward."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.memory import peak_mib, pinned_allocator, saved_mib
from benchmarks.timing import one_thread
from jpmhc import kernels, layers

TOKENS, WIDTH, SEVERAL = 4096, 512, 4

Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Contender:
    """A layer around a branch; ``build(streams, branch)`` returns a function of streams (tokens, n, d).

    ``sublayers`` of them are run one after the other, and numbers are those of one; ``backend`` is the setting of
    `jpmhc.kernels.backend` that it runs under.
    """

    name: str
    build: Callable[[int, nn.Module], Function]
    in_quick: bool = True
    sublayers: int = 1
    backend: str = "auto"


def run(quick: bool) -> dict[str, Any]:
    """Time all contenders on one thread, in float32: 4,096 tokens of width 512, the branch a 512 x 512 matrix.

    Parameters
    ----------
    quick : bool
        Fewer rounds, n = 4 alone, without the slowest contenders.

    Returns
    -------
    dict
        JSON-able: ``rows``, each with name, streams, ms (CPU time forward and backward, minimum over interleaved
        rounds), over_branch_ms (without the plain residual's time), ratio (of over_branch_ms to that of the fastest
        peer that mixes), saved_mib (kept for backward beyond streams and parameters), peak_mib (held at once by a
        forward and a backward to the streams, beyond streams and parameters), and both in units of the streams
        (saved_streams, peak_streams). Of several sublayers in a row all but the peak are one's share, and streams
        between them do not count as saved. The first row of a size is the plain residual on one stream, the second one
        copy of the streams: no layer can be faster. A contender that does not run has an ``error`` in place of numbers.
    """
    rounds = 3 if quick else 5
    with one_thread(), pinned_allocator():
        rows = [row for n in ((4,) if quick else (4, 8)) for row in _rows(n, rounds, quick)]
    return {"tokens": TOKENS, "width": WIDTH, "dtype": "float32", "threads": 1, "rounds": rounds, "rows": rows}


def _rows(n: int, rounds: int, quick: bool) -> list[dict[str, Any]]:
    torch.manual_seed(0)
    x = torch.randn(TOKENS, n, WIDTH)
    cotangent = torch.randn(TOKENS, n, WIDTH)
    leaf, single = x.requires_grad_(), (x[:, 0].detach().clone().requires_grad_(), cotangent[:, 0])
    size = x.numel() * 4 / 2**20
    rows: list[dict[str, Any]] = []
    calls = []
    for contender in CONTENDERS:
        if quick and not contender.in_quick:
            continue
        row: dict[str, Any] = {"name": contender.name, "streams": n}
        branch = nn.Linear(WIDTH, WIDTH, bias=False)
        try:
            function = contender.build(n, branch)
            streams, gradient = single if contender is FLOORS[0] else (leaf, cotangent)
            with kernels.backend(contender.backend):
                _pass(function, streams, gradient)  # compiles, where there is something to compile
                kept = saved_mib(function, streams, *branch.parameters())
                row["peak_mib"] = peak_mib(function, streams, gradient)
            between = (contender.sublayers - 1) * size
            row["saved_mib"] = (kept - between) / contender.sublayers
        except ValueError as error:
            if "streams" in str(error):  # a mixer that does not exist for this n
                continue
            raise
        except Exception as error:  # a peer's fault is a result here, whatever it raises
            rows.append({**row, "error": f"{type(error).__name__}: {error}".splitlines()[0]})
            continue
        row["saved_streams"] = row["saved_mib"] / size
        row["peak_streams"] = row["peak_mib"] / size
        rows.append(row)
        calls.append((row, contender, function, streams, gradient))
    for _ in range(rounds):
        for row, contender, function, streams, gradient in calls:
            with kernels.backend(contender.backend):
                started = time.process_time()
                _pass(function, streams, gradient)
                spent = 1e3 * (time.process_time() - started) / contender.sublayers
            row["ms"] = min(row.get("ms", float("inf")), spent)
    floor = calls[0][0]["ms"]
    compared = [row for row, *_ in calls[len(FLOORS) :]]
    for row in compared:
        row["over_branch_ms"] = row["ms"] - floor
    peers = [row["over_branch_ms"] for row in compared if row["name"] in MIXING_PEERS]
    for row in compared:
        row["ratio"] = row["over_branch_ms"] / min(peers) if peers else None
    return rows


def _pass(function: Function, streams: Tensor, cotangent: Tensor) -> None:
    streams.grad = None
    function(streams).backward(cotangent)


def _ours(mixer: str) -> Callable[[int, nn.Module], Function]:
    return lambda n, branch: layers.HyperConnection(WIDTH, branch, streams=n, mixer=mixer)


def _compiled(mixer: str) -> Callable[[int, nn.Module], Function]:
    def build(n: int, branch: nn.Module) -> Function:
        torch._dynamo.reset()
        return torch.compile(layers.HyperConnection(WIDTH, branch, streams=n, mixer=mixer), fullgraph=True)

    return build


def _several(mixer: str, stacked: bool) -> Callable[[int, nn.Module], Function]:
    def build(n: int, branch: nn.Module) -> Function:
        made = [
            layers.HyperConnection(WIDTH, branch, streams=n, mixer=mixer, layer_index=index) for index in range(SEVERAL)
        ]
        return layers.HyperStack(made) if stacked else nn.Sequential(*made)

    return build


def _lucidrains_hc(n: int, branch: nn.Module) -> Function:
    from hyper_connections.hyper_connections import HyperConnections

    layer = HyperConnections(n, dim=WIDTH, branch=branch, layer_index=0)
    # Its streams stand in the batch, one sequence after the other.
    return lambda x: layer(x.transpose(0, 1)).transpose(0, 1)


def _lucidrains_mhc_v1(n: int, branch: nn.Module) -> Function:
    from hyper_connections.manifold_constrained_hyper_connections import ManifoldConstrainedHyperConnections

    layer = ManifoldConstrainedHyperConnections(n, dim=WIDTH, branch=branch, layer_index=0)
    return lambda x: layer(x.transpose(0, 1)).transpose(0, 1)


def _lucidrains_mhc(n: int, branch: nn.Module) -> Function:
    from hyper_connections.mHCv2 import ManifoldConstrainedHyperConnections

    layer = ManifoldConstrainedHyperConnections(n, dim=WIDTH, branch=branch, layer_index=0)
    return lambda x: layer(x.unsqueeze(0)).squeeze(0)


def _transformers(name: str) -> Callable[[int, nn.Module], Function]:
    class Config:
        hc_sinkhorn_iters, hc_eps, rms_norm_eps, hc_magnitude = 20, 1e-6, 1e-6, 2.0

    def build(n: int, branch: nn.Module) -> Function:
        from transformers.models.deepseek_v4.modeling_deepseek_v4 import DeepseekV4HyperConnection
        from transformers.models.hy_v4.modeling_hy_v4 import HYV4HyperConnection

        config: Any = Config()
        config.hc_mult, config.hidden_size = n, WIDTH
        layer = DeepseekV4HyperConnection(config) if name == "deepseek" else HYV4HyperConnection(config)
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.normal_(std=0.02)

        def forward(x: Tensor) -> Tensor:
            post, *comb, u = layer(x.unsqueeze(0))
            kept = comb[0].mT @ x.unsqueeze(0) if comb else x.unsqueeze(0)
            return (post.unsqueeze(-1) * branch(u).unsqueeze(-2) + kept).squeeze(0)

        return forward

    return build


FLOORS = (
    Contender("plain residual, one stream", lambda n, branch: layers.Residual(branch)),
    Contender("copy of the streams", lambda n, branch: torch.clone),
)
MIXING_PEERS = ("lucidrains HyperConnections", "lucidrains mHC", "lucidrains mHCv2", "transformers DeepSeek-V4")
CONTENDERS = (
    *FLOORS,
    *(Contender(f"jpmhc {info.name}", _ours(info.name)) for info in layers.mixers()),
    *(
        contender
        for name in ("sinkhorn", "cayley")
        for contender in (
            Contender(f"jpmhc {name}, HyperStack of {SEVERAL}", _several(name, True), sublayers=SEVERAL),
            Contender(f"jpmhc {name}, reference", _ours(name), backend="reference"),
            Contender(f"jpmhc {name}, reference compiled", _compiled(name), in_quick=False, backend="reference"),
        )
    ),
    Contender(f"jpmhc cayley, {SEVERAL} in a row", _several("cayley", False), sublayers=SEVERAL),
    Contender("jpmhc cayley, compiled", _compiled("cayley"), in_quick=False),
    Contender("lucidrains HyperConnections", _lucidrains_hc),
    Contender("lucidrains mHC", _lucidrains_mhc_v1),
    Contender("lucidrains mHCv2", _lucidrains_mhc),
    Contender("transformers DeepSeek-V4", _transformers("deepseek")),
    Contender("transformers HY-V4 (no mixer)", _transformers("hunyuan")),
)
