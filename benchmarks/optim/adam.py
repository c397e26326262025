"""A RiemannianAdam step over two hundred small parameters: ours, geoopt's, and the same numbers in one parameter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.extras import require
from benchmarks.timing import fastest, one_thread
from jpmhc import manifolds, optim
from jpmhc.manifolds.peer import geoopt


@dataclass(frozen=True)
class Case:
    """One manifold in both libraries, and what the parameters on it look like."""

    name: str
    ours: geoopt.Manifold
    theirs: geoopt.Manifold
    shape: tuple[int, ...] = (4, 4)
    dtype: torch.dtype = torch.float32


COUNT = 200
FEW = (1, 4, 16, 64)
CASES = (
    Case("stiefel canonical", manifolds.Stiefel(), geoopt.CanonicalStiefel()),
    Case("stiefel euclidean", manifolds.Stiefel("euclidean", "qr"), geoopt.EuclideanStiefel()),
    Case("birkhoff", manifolds.Birkhoff(), geoopt.BirkhoffPolytope()),
    Case("stiefel canonical", manifolds.Stiefel(), geoopt.CanonicalStiefel(), dtype=torch.float64),
    Case("birkhoff", manifolds.Birkhoff(), geoopt.BirkhoffPolytope(), dtype=torch.float64),
    Case("stiefel canonical", manifolds.Stiefel(), geoopt.CanonicalStiefel(), shape=(16, 8)),
)


def run(quick: bool) -> dict[str, Any]:
    """Time one step of every contender on one thread, and compare separate with stacked parameters.

    Parameters
    ----------
    quick : bool
        Few rounds, and the first case alone.

    Returns
    -------
    dict
        JSON-able: ``rows``, each with name, manifold, shape, dtype, ms (minimum over interleaved rounds), speedup (time
        of geoopt over 200 parameters over that of the row), passes (over the time to clone the data once), and for ours
        ``separate_minus_stacked`` and ``off_manifold`` (largest entries after 20 steps).
    """
    rounds = 3 if quick else 25
    with one_thread():
        rows = [row for case in CASES[: 1 if quick else None] for row in _rows(case, rounds)]
    return {"parameters": COUNT, "threads": 1, "rounds": rounds, "rows": rows}


def few(quick: bool) -> dict[str, Any]:
    """Time a step over few parameters beside geoopt's.

    Returns
    -------
    dict
        JSON-able: ``rows`` with name, manifold, parameters, ms and speedup (time of geoopt over that of the row).
    """
    rounds = 3 if quick else 15
    with one_thread():
        rows = [
            row
            for case in CASES[: 1 if quick else 3]
            for count in FEW[: 1 if quick else None]
            for row in _few_rows(case, count, rounds)
        ]
    return {"threads": 1, "rounds": rounds, "rows": rows}


def _few_rows(case: Case, count: int, rounds: int) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    points = case.ours.random(count, *case.shape, dtype=case.dtype, generator=generator).as_subclass(Tensor)
    slopes = torch.randn(points.shape, dtype=case.dtype, generator=generator)
    ours = optim.RiemannianAdam(_parameters(points, slopes, case.ours), lr=0.01)
    theirs = geoopt.optim.RiemannianAdam(_parameters(points, slopes, case.theirs), lr=0.01)
    best = fastest({"jpmhc": ours.step, "geoopt": theirs.step}, rounds)
    shared = {"manifold": case.name, "shape": list(case.shape), "parameters": count}
    return [{"name": name, **shared, "ms": ms, "speedup": best["geoopt"] / ms} for name, ms in best.items()]


def _parameters(points: Tensor, slopes: Tensor, manifold: geoopt.Manifold | None) -> list[Tensor]:
    """Make a parameter with a gradient of every entry."""
    made = []
    for value, slope in zip(points, slopes, strict=True):
        value = value.clone()
        made.append(torch.nn.Parameter(value) if manifold is None else geoopt.ManifoldParameter(value, manifold))
        made[-1].grad = slope.clone()
    return made


def _rows(case: Case, rounds: int) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    points = case.ours.random(COUNT, *case.shape, dtype=case.dtype, generator=generator).as_subclass(Tensor)
    slopes = torch.randn(points.shape, dtype=case.dtype, generator=generator)

    def parameters(manifold: geoopt.Manifold | None, separate: bool) -> list[Tensor]:
        given = (points, slopes) if separate else (points.unsqueeze(0), slopes.unsqueeze(0))
        return _parameters(*given, manifold)

    many, one = parameters(case.ours, True), parameters(case.ours, False)
    separate, stacked = (optim.RiemannianAdam(p, lr=0.01) for p in (many, one))
    for _ in range(20):
        separate.step()
        stacked.step()
    result = torch.stack([p.detach() for p in many])
    errors = {
        "separate_minus_stacked": (result - one[0].detach()).abs().max().item(),
        "off_manifold": case.ours.point_error(result).max().item(),
    }
    contenders: dict[str, Callable[[], object]] = {
        "geoopt": geoopt.optim.RiemannianAdam(parameters(case.theirs, True), lr=0.01).step,
        "geoopt, stacked": geoopt.optim.RiemannianAdam(parameters(case.theirs, False), lr=0.01).step,
        "jpmhc": separate.step,
        "jpmhc, stacked": stacked.step,
        "geotorch cayley, forward and backward too": _geotorch_step(points, slopes),
        "torch AdamW, no manifold": torch.optim.AdamW(parameters(None, True), foreach=True).step,
        "clone": points.clone,
    }
    best = fastest(contenders, rounds, at_least=0.02)
    shared = {"manifold": case.name, "shape": list(case.shape), "dtype": str(case.dtype).removeprefix("torch.")}
    return [
        {
            "name": name,
            **shared,
            "ms": ms,
            "speedup": best["geoopt"] / ms,
            "passes": ms / best["clone"],
            **(errors if name == "jpmhc" else {}),
        }
        for name, ms in best.items()
    ]


def _geotorch_step(points: Tensor, slopes: Tensor) -> Callable[[], object]:
    """Step of torch's Adam on geotorch's parametrisation; its maps run in forward and backward, so those count.

    Birkhoff matrices have none; orthogonal ones of that shape stand in.
    """
    geotorch = require("geotorch", "peers")
    modules = [torch.nn.Linear(*points.shape[:0:-1], bias=False, dtype=points.dtype) for _ in points]
    for module in modules:
        geotorch.orthogonal(module, "weight", triv="cayley")
    optimizer = torch.optim.Adam([p for module in modules for p in module.parameters()], lr=0.01)

    def step() -> None:
        optimizer.zero_grad()
        torch.autograd.backward([module.weight for module in modules], list(slopes.unbind()))
        optimizer.step()

    return step
