"""Iterations and time to the leading eigenspace of a random symmetric matrix, beside geoopt's line search."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from jpmhc import manifolds, optim
from jpmhc.manifolds.peer import geoopt

SIZE, RANK, GAP, LIMIT = 100, 5, 1e-8, 400

Make = Callable[[list[Tensor]], torch.optim.Optimizer]

SOLVERS: dict[str, tuple[geoopt.Manifold, Make]] = {
    "jpmhc trust region": (manifolds.Grassmann(), lambda p: optim.RiemannianTrustRegion(p, max_iter=1)),
    "jpmhc conjugate gradient": (manifolds.Grassmann(), lambda p: optim.RiemannianConjugateGradient(p, max_iter=1)),
    "geoopt line search": (
        geoopt.EuclideanStiefel(),
        lambda p: geoopt.optim.RiemannianLineSearch(p, line_search_method="wolfe", cg_method="pr"),
    ),
}


def run(quick: bool) -> dict[str, Any]:
    """Find the five leading eigenvectors of 100 x 100 matrices to a relative gap of 1e-8, on one thread.

    Parameters
    ----------
    quick : bool
        One matrix in place of three.

    Returns
    -------
    dict
        JSON-able: ``rows``, each with name, manifold, seed, iterations (at most 400), closure_calls, ms and gap.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rows = [_row(name, *SOLVERS[name], seed) for seed in range(1 if quick else 3) for name in SOLVERS]
    finally:
        torch.set_num_threads(threads)
    return {"size": SIZE, "rank": RANK, "dtype": "float64", "threads": 1, "rows": rows}


def _row(name: str, manifold: geoopt.Manifold, make: Make, seed: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(SIZE, SIZE, dtype=torch.float64, generator=generator)
    matrix = (noise + noise.mT) / 2
    best = torch.linalg.eigvalsh(matrix)[-RANK:].sum().item()
    start = torch.linalg.qr(torch.randn(SIZE, RANK, dtype=torch.float64, generator=generator)).Q
    point = geoopt.ManifoldParameter(start, manifold=manifold)
    optimizer = make([point])
    calls, iterations, gap = 0, 0, float("inf")

    def closure(*_: Any) -> Any:
        nonlocal calls
        calls += 1
        optimizer.zero_grad()
        loss = -(point * (matrix @ point)).sum()
        loss.backward()
        # geoopt's line search needs a float; the trust region differentiates the tensor once more.
        return loss.item() if isinstance(optimizer, geoopt.optim.RiemannianLineSearch) else loss

    begin = time.perf_counter()
    while gap >= GAP and iterations < LIMIT:
        iterations += 1
        optimizer.step(closure)
        with torch.no_grad():
            gap = (best - (point * (matrix @ point)).sum().item()) / best
    ms = (time.perf_counter() - begin) * 1e3
    return {
        "name": name,
        "manifold": manifold.name,
        "seed": seed,
        "iterations": iterations,
        "closure_calls": calls,
        "ms": ms,
        "gap": gap,
    }
