"""Birkhoff: projection, gradient, two retractions and the transport, beside geoopt's, the only other library's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.manifolds.contest import SHAPES, Operation, material
from benchmarks.manifolds.contest import run as contest
from jpmhc.manifolds import Birkhoff
from jpmhc.manifolds.peer import geoopt


def run(quick: bool) -> dict[str, Any]:
    """Compare at the square shapes; see `contest.run`."""
    return contest(operations, (shape for shape in SHAPES if shape[-1] == shape[-2]), quick)


def operations(shape: tuple[int, ...], dtype: torch.dtype) -> Iterator[Operation]:
    """Every map beside that of the same name: geoopt's gradient is 1/n of its metric's, its transport shrinks."""
    root, sinkhorn, theirs = Birkhoff(), Birkhoff("sinkhorn"), geoopt.BirkhoffPolytope()
    m = material(root, shape, dtype)
    x, y, e, u, v = m.x, m.y, m.e, m.u, m.v
    near = x * (1 + 0.05 * e.abs())
    error = root.point_error
    yield Operation("projx, near", {"jpmhc": lambda: root.projx(near), "geoopt": lambda: theirs.projx(near)}, error)
    yield Operation(
        "projx, exponential entries",
        {"jpmhc": lambda: root.projx(e.exp()), "geoopt": lambda: theirs.projx(e.exp())},
        error,
    )
    yield Operation("proju", {"jpmhc": lambda: root.proju(x, e), "geoopt": lambda: theirs.proju(x, e)})
    yield Operation("gradient", {"jpmhc": lambda: root.egrad2rgrad(x, e), "geoopt": lambda: theirs.egrad2rgrad(x, e)})
    yield Operation("retr root", {"jpmhc": lambda: root.retr(x, u)}, error)
    yield Operation("retr sinkhorn", {"jpmhc": lambda: sinkhorn.retr(x, u), "geoopt": lambda: theirs.retr(x, u)}, error)
    yield Operation("transp", {"jpmhc": lambda: root.transp(x, y, v), "geoopt": lambda: theirs.transp(x, y, v)})
    yield Operation(
        "retr_transp sinkhorn",
        {"jpmhc": lambda: sinkhorn.retr_transp(x, u, v), "geoopt": lambda: theirs.retr_transp(x, u, v)},
        error,
    )
