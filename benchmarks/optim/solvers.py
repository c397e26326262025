"""Iterations and time to the leading eigenspace of a random symmetric matrix, beside geoopt, geotorch and pymanopt."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.extras import require
from benchmarks.timing import one_thread
from jpmhc import manifolds, optim
from jpmhc.manifolds.peer import geoopt

SIZE, RANK, GAP, LIMIT = 100, 5, 1e-8, 400
_INNER = 20  # torch's LBFGS stalls at its first line search where a step is one iteration (measured)

Make = Callable[[list[Tensor]], torch.optim.Optimizer]

GRASSMANN = manifolds.Grassmann()

SOLVERS: dict[str, tuple[geoopt.Manifold, Make]] = {
    "jpmhc trust region": (GRASSMANN, lambda p: optim.RiemannianTrustRegion(p, max_iter=1)),
    "jpmhc conjugate gradient": (GRASSMANN, lambda p: optim.RiemannianConjugateGradient(p, max_iter=1)),
    "geoopt line search": (
        geoopt.EuclideanStiefel(),
        lambda p: geoopt.optim.RiemannianLineSearch(p, line_search_method="wolfe", cg_method="pr"),
    ),
}


@dataclass(frozen=True)
class Problem:
    """A symmetric matrix, its best value, and a start."""

    matrix: Tensor
    best: float
    start: Tensor

    def loss(self, point: Tensor) -> Tensor:
        """Minus the trace of the matrix on the subspace."""
        return -(point * (self.matrix @ point)).sum()

    def gap(self, loss: float) -> float:
        """Relative distance of a loss from the best one."""
        return (self.best + loss) / self.best


def run(quick: bool) -> dict[str, Any]:
    """Find the five leading eigenvectors of 100 x 100 matrices to a relative gap of 1e-8, on one thread.

    Parameters
    ----------
    quick : bool
        One matrix in place of three.

    Returns
    -------
    dict
        JSON-able: ``rows``, each with name, manifold, iterations (at most 400; pymanopt's to its own tolerance),
        closure_calls, ms, gap and seed.
    """
    with one_thread():
        rows = [row for seed in range(1 if quick else 3) for row in _rows(seed)]
    return {"size": SIZE, "rank": RANK, "dtype": "float64", "threads": 1, "rows": rows}


def _rows(seed: int) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(SIZE, SIZE, dtype=torch.float64, generator=generator)
    matrix = (noise + noise.mT) / 2
    best = torch.linalg.eigvalsh(matrix)[-RANK:].sum().item()
    start = torch.linalg.qr(torch.randn(SIZE, RANK, dtype=torch.float64, generator=generator)).Q
    problem = Problem(matrix, best, start)
    rows = [_torch_row(name, *SOLVERS[name], problem) for name in SOLVERS]
    rows += [_geotorch_row(problem)] + [_pymanopt_row(name, problem) for name in ("TrustRegions", "ConjugateGradient")]
    return [{**row, "seed": seed} for row in rows]


def _torch_row(name: str, manifold: geoopt.Manifold, make: Make, problem: Problem) -> dict[str, Any]:
    point = geoopt.ManifoldParameter(problem.start.clone(), manifold=manifold)
    optimizer = make([point])
    # geoopt's line search needs a float; the trust region differentiates the tensor once more.
    number = isinstance(optimizer, geoopt.optim.RiemannianLineSearch)
    return {"name": name, "manifold": manifold.name, **_descend(problem, optimizer, lambda: point, number)}


def _geotorch_row(problem: Problem) -> dict[str, Any]:
    module = torch.nn.Linear(RANK, SIZE, bias=False, dtype=torch.float64)
    require("geotorch", "peers").orthogonal(module, "weight")
    module.weight = problem.start.clone()
    optimizer = torch.optim.LBFGS(module.parameters(), max_iter=_INNER, line_search_fn="strong_wolfe")
    row = _descend(problem, optimizer, lambda: module.weight, number=False, inner=_INNER)
    return {"name": "geotorch orthogonal, torch LBFGS", "manifold": "parametrisation", **row}


def _descend(
    problem: Problem, optimizer: torch.optim.Optimizer, point: Callable[[], Tensor], number: bool, inner: int = 1
) -> dict[str, Any]:
    calls, iterations, gap = 0, 0, float("inf")

    def closure(*_: Any) -> Any:
        nonlocal calls
        calls += 1
        optimizer.zero_grad()
        loss = problem.loss(point())
        loss.backward()
        return loss.item() if number else loss

    begin = time.perf_counter()
    while gap >= GAP and iterations < LIMIT:
        iterations += inner
        optimizer.step(closure)
        with torch.no_grad():
            gap = problem.gap(problem.loss(point()).item())
    ms = (time.perf_counter() - begin) * 1e3
    return {"iterations": iterations, "closure_calls": calls, "ms": ms, "gap": gap}


def _pymanopt_row(name: str, problem: Problem) -> dict[str, Any]:
    """Run with derivatives from its torch backend: calls and time until the gap, iterations to its own tolerance."""
    pymanopt = require("pymanopt", "peers")
    manifold = require("pymanopt.manifolds", "peers").Grassmann(SIZE, RANK)
    optimizers = require("pymanopt.optimizers", "peers")
    gaps, times = [], []

    @pymanopt.function.pytorch(manifold)
    def cost(point: Tensor) -> Tensor:
        loss = problem.loss(point)
        gaps.append(problem.gap(loss.item()))
        times.append(time.perf_counter())
        return loss

    optimizer = getattr(optimizers, name)(verbosity=0, max_iterations=LIMIT)
    begin = time.perf_counter()
    result = optimizer.run(pymanopt.Problem(manifold, cost), initial_point=problem.start.numpy())
    reached = next((i for i, gap in enumerate(gaps) if gap < GAP), len(gaps) - 1)
    return {
        "name": f"pymanopt {name}",
        "manifold": "Grassmann",
        "iterations": result.iterations,
        "closure_calls": reached + 1,
        "ms": (times[reached] - begin) * 1e3,
        "gap": gaps[reached],
    }
