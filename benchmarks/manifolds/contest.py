"""One operation on one batch, by every library that has it: time, distance from the manifold, passes over the data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.timing import fastest, one_thread
from jpmhc.manifolds import Manifold

SHAPES = ((4096, 4, 4), (4096, 8, 8), (64, 64, 64), (1, 512, 512), (16, 256, 32), (1, 4, 4))
DTYPES = (torch.float32, torch.float64)
CLOSE = 0.1

Call = Callable[[], Any]


@dataclass(frozen=True)
class Operation:
    """A map with its contenders, ours first; `error` measures a result, its first part if it is a pair."""

    name: str
    calls: Mapping[str, Call]
    error: Callable[[Tensor], Tensor] | None = None


Operations = Callable[[tuple[int, ...], torch.dtype], Iterable[Operation]]


@dataclass(frozen=True)
class Material:
    """What maps are called with: a point, that along u, a gradient, tangent vectors, a matrix off the manifold."""

    x: Tensor
    y: Tensor
    e: Tensor
    u: Tensor
    v: Tensor
    near: Tensor

    def arrays(self) -> list[np.ndarray]:
        """Point, gradient and tangent vectors for pymanopt, whose classes drop a batch dimension of one."""
        tensors = (self.x, self.e, self.u, self.v)
        return [(t[0] if len(t) == 1 else t).numpy() for t in tensors]


def material(manifold: Manifold, shape: tuple[int, ...], dtype: torch.dtype, length: float = 0.3) -> Material:
    """Random arguments, the tangent vectors of a given length."""
    generator = torch.Generator().manual_seed(0)

    def noise() -> Tensor:
        return torch.randn(shape, dtype=dtype, generator=generator)

    def tangent() -> Tensor:
        vector = manifold.egrad2rgrad(x, noise())
        return length * vector / manifold.norm(x, vector, keepdim=True)

    x = manifold.random(*shape, dtype=dtype, generator=generator)
    u = tangent()
    return Material(x, manifold.retr(x, u), noise(), u, tangent(), x * (1 + 0.05 * noise()))


def run(operations: Operations, shapes: Iterable[tuple[int, ...]], quick: bool) -> dict[str, Any]:
    """Run all operations at all shapes in float32 and float64, on one thread.

    Parameters
    ----------
    operations : callable
        From a shape and a dtype to what there is to compare.
    shapes : iterable of tuple of int
        Batch first.
    quick : bool
        Few rounds, the first shape in float32 alone.

    Returns
    -------
    dict
        JSON-able: ``rows``, each with name (of the operation), shape, dtype, the milliseconds of every library
        (minimum over interleaved rounds, five times as many for ours and geoopt's where they are within 10 %, about
        what a few rounds leave uncertain), ``x_geoopt`` (its time over ours), ``passes`` (our time over that of one
        clone of the batch) and, where the result is a point, ``off`` and ``geoopt_off``, the distances of ours and of
        geoopt's from the manifold.
    """
    rounds = 2 if quick else 9
    shapes = tuple(shapes)[: 1 if quick else None]
    with one_thread(), torch.no_grad():
        rows = [
            _row(operation, shape, dtype, rounds)
            for shape in shapes
            for dtype in DTYPES[: 1 if quick else None]
            for operation in operations(shape, dtype)
        ]
    return {"threads": 1, "rounds": rounds, "rows": rows}


def _row(operation: Operation, shape: tuple[int, ...], dtype: torch.dtype, rounds: int) -> dict[str, Any]:
    batch = torch.empty(shape, dtype=dtype)
    calls = {**operation.calls, "clone": batch.clone}
    best = fastest(calls, rounds)
    if abs(best.get("geoopt", math.inf) / best["jpmhc"] - 1) < CLOSE:
        rivals = {name: operation.calls[name] for name in ("jpmhc", "geoopt")}
        again = fastest(rivals, 5 * rounds)
        best.update({name: min(best[name], again[name]) for name in rivals})
    clone = best.pop("clone")
    row: dict[str, Any] = {
        "name": operation.name,
        "shape": list(shape),
        "dtype": str(dtype).removeprefix("torch."),
        **{name: best.get(name) for name in ("jpmhc", "geoopt", "geotorch", "pymanopt")},
        "x_geoopt": best["geoopt"] / best["jpmhc"] if "geoopt" in best else None,
        "passes": best["jpmhc"] / clone,
        "off": None,
        "geoopt_off": None,
    }
    if operation.error is not None:
        for column, name in (("off", "jpmhc"), ("geoopt_off", "geoopt")):
            if name in operation.calls:
                result = operation.calls[name]()
                point = result[0] if isinstance(result, tuple) else result
                row[column] = operation.error(point.as_subclass(Tensor)).max().item()
    return row
