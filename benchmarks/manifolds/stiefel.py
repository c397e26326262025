"""Stiefel: projection, gradients, four retractions and their transports."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.extras import require
from benchmarks.manifolds.contest import SHAPES, Operation, material
from benchmarks.manifolds.contest import run as contest
from jpmhc.manifolds import Stiefel
from jpmhc.manifolds.peer import geoopt


def run(quick: bool) -> dict[str, Any]:
    """Compare at all shapes; see `contest.run`."""
    return contest(operations, SHAPES, quick)


def operations(shape: tuple[int, ...], dtype: torch.dtype) -> Iterator[Operation]:
    """Every map, with the peers that have it.

    geoopt's Cayley retraction moves twice as far as it should on square matrices and its ``Exact`` class is the only
    one with an exponential map; geotorch has maps from skew matrices at a fixed base point instead of retractions.
    """
    ours = {name: Stiefel("canonical", name) for name in ("cayley", "exp")}
    ours |= {name: Stiefel("euclidean", name) for name in ("qr", "polar")}
    canonical, euclidean, exact = geoopt.CanonicalStiefel(), geoopt.EuclideanStiefel(), geoopt.EuclideanStiefelExact()
    exponential = Stiefel("euclidean", "exp")
    m = material(ours["cayley"], shape, dtype)
    error = ours["cayley"].point_error
    x, y, e, u, v, near = m.x, m.y, m.e, m.u, m.v, m.near
    manopt = {name: _pymanopt(shape, name) for name in ("qr", "polar")}
    a, g, s, w = m.arrays()
    skew_raw = torch.randn(*shape, dtype=dtype) / 10
    cayley, expm = (_geotorch(shape, dtype, triv) for triv in ("cayley", "expm"))
    yield Operation(
        "projx, near", {"jpmhc": lambda: ours["qr"].projx(near), "geoopt": lambda: euclidean.projx(near)}, error
    )
    yield Operation(
        "projx, normal entries", {"jpmhc": lambda: ours["qr"].projx(e), "geoopt": lambda: euclidean.projx(e)}, error
    )
    yield Operation(
        "gradient, canonical",
        {"jpmhc": lambda: ours["cayley"].egrad2rgrad(x, e), "geoopt": lambda: canonical.egrad2rgrad(x, e)},
    )
    yield Operation(
        "gradient, euclidean",
        {
            "jpmhc": lambda: ours["qr"].egrad2rgrad(x, e),
            "geoopt": lambda: euclidean.egrad2rgrad(x, e),
            "pymanopt": lambda: manopt["qr"].euclidean_to_riemannian_gradient(a, g),
        },
    )
    yield Operation(
        "retr cayley",
        {
            "jpmhc": lambda: ours["cayley"].retr(x, u),
            "geoopt": lambda: canonical.retr(x, u),
            "geotorch": lambda: cayley(skew_raw),
        },
        error,
    )
    yield Operation(
        "retr qr",
        {
            "jpmhc": lambda: ours["qr"].retr(x, u),
            "geoopt": lambda: euclidean.retr(x, u),
            "pymanopt": lambda: manopt["qr"].retraction(a, s),
        },
        error,
    )
    yield Operation(
        "retr polar",
        {"jpmhc": lambda: ours["polar"].retr(x, u), "pymanopt": lambda: manopt["polar"].retraction(a, s)},
        error,
    )
    yield Operation(
        "retr exp",
        {
            "jpmhc": lambda: exponential.retr(x, u),
            "geoopt": lambda: exact.retr(x, u),
            "geotorch": lambda: expm(skew_raw),
            "pymanopt": lambda: manopt["qr"].exp(a, s),
        },
        error,
    )
    yield Operation(
        "transp",
        {
            "jpmhc": lambda: ours["qr"].transp(x, y, v),
            "geoopt": lambda: euclidean.transp(x, y, v),
            "pymanopt": lambda: manopt["qr"].transport(a, a, w),
        },
    )
    yield Operation(
        "retr_transp cayley",
        {"jpmhc": lambda: ours["cayley"].retr_transp(x, u, v), "geoopt": lambda: canonical.retr_transp(x, u, v)},
        error,
    )
    yield Operation(
        "retr_transp qr",
        {"jpmhc": lambda: ours["qr"].retr_transp(x, u, v), "geoopt": lambda: euclidean.retr_transp(x, u, v)},
        error,
    )
    yield Operation("retr_transp polar", {"jpmhc": lambda: ours["polar"].retr_transp(x, u, v)}, error)
    yield Operation(
        "retr_transp exp",
        {"jpmhc": lambda: exponential.retr_transp(x, u, v), "geoopt": lambda: exact.retr_transp(x, u, v)},
        error,
    )


def _pymanopt(shape: tuple[int, ...], retraction: str) -> Any:
    manifolds = require("pymanopt.manifolds", "peers")
    k, n, p = shape
    return manifolds.Stiefel(n, p, k=k, retraction=retraction)


def _geotorch(shape: tuple[int, ...], dtype: torch.dtype, triv: str) -> Any:
    return require("geotorch", "peers").Stiefel(torch.Size(shape), triv=triv).to(dtype)
