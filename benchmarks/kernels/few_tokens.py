"""What one sublayer costs over its branch where tokens come one by one, as in generation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.kernels.sublayer import CONTENDERS, WIDTH, Contender
from benchmarks.timing import fastest, one_thread
from jpmhc import kernels

_LEFT_OUT = ("copy of the streams", "reads recomputed", "4, reference body")


def run(quick: bool) -> dict[str, Any]:
    """Time the forward pass without a gradient on one thread in float32, n = 4 and width 512, the branch a matrix.

    Parameters
    ----------
    quick : bool
        Two rounds, one token alone, nothing compiled by ``torch.compile``.

    Returns
    -------
    dict
        JSON-able: ``rows``, each with name, tokens, ms (a sublayer's), over_branch_ms (less the plain residual's) and
        ratio (of over_branch_ms to that of ours, the second row of a number of tokens). The first row is the plain
        residual on one stream.
    """
    with one_thread(), torch.no_grad():
        rows = [row for tokens in ((1,) if quick else (1, 16, 128)) for row in _rows(tokens, quick)]
    return {"name": "few tokens", "width": WIDTH, "streams": 4, "dtype": "float32", "threads": 1, "rows": rows}


def _rows(tokens: int, quick: bool) -> list[dict[str, Any]]:
    torch.manual_seed(0)
    x = torch.randn(tokens, 4, WIDTH)
    rows, calls = [], {}
    chosen = [c for c in CONTENDERS if not any(part in c.name for part in _LEFT_OUT) and not (quick and c.slow)]
    ours = chosen[1]
    chosen.insert(2, replace(ours, name=f"{ours.name}, compiled bodies", backend="numba"))
    for contender in chosen:
        row: dict[str, Any] = {"name": contender.name, "tokens": tokens}
        rows.append(row)
        given = x[:, 0] if contender is CONTENDERS[0] else x
        try:
            call = _call(contender.build(4, _branch, contender.depth), given, contender)
            call()
        except Exception as error:  # a peer's fault is a result here, whatever it raises
            row["error"] = f"{type(error).__name__}: {error}".splitlines()[0]
            continue
        calls[contender.name] = call
    times = fastest(calls, 2 if quick else 20)
    for row, contender in zip(rows, chosen, strict=True):
        if contender.name in times:
            row["ms"] = times[contender.name] / contender.depth
    measured = [row for row in rows if "ms" in row]
    for row in measured[1:]:
        row["over_branch_ms"] = row["ms"] - measured[0]["ms"]
        row["ratio"] = row["over_branch_ms"] / measured[1]["over_branch_ms"]
    return rows


def _branch() -> nn.Module:
    return nn.Linear(WIDTH, WIDTH, bias=False)


def _call(function: Callable[[Tensor], Tensor], x: Tensor, contender: Contender) -> Callable[[], None]:
    def call() -> None:
        with kernels.backend(contender.backend):
            function(x)

    return call
