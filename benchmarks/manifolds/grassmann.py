"""Grassmann: projection, gradient, three retractions and their transports; geoopt has none to compare with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.extras import require
from benchmarks.manifolds.contest import Operation, material
from benchmarks.manifolds.contest import run as contest
from jpmhc.manifolds import Grassmann

SHAPES = ((4096, 4, 2), (4096, 8, 4), (64, 64, 16), (16, 256, 32))


def run(quick: bool) -> dict[str, Any]:
    """Compare at shapes where a subspace is a proper one; see `contest.run`."""
    return contest(operations, SHAPES, quick)


def operations(shape: tuple[int, ...], dtype: torch.dtype) -> Iterator[Operation]:
    """Every map, with pymanopt's where it has one; geotorch has a map from n x n matrices."""
    polar, qr, exp = Grassmann(), Grassmann("qr"), Grassmann("exp")
    k, n, p = shape
    manopt = require("pymanopt.manifolds", "peers").Grassmann(n, p, k=k)
    m = material(polar, shape, dtype)
    x, y, e, u, v, near = m.x, m.y, m.e, m.u, m.v, m.near
    a, g, s, w = m.arrays()
    raw = torch.randn(*shape, dtype=dtype) / 10
    expm = require("geotorch", "peers").Grassmannian(torch.Size(shape)).to(dtype)
    error = polar.point_error
    yield Operation("projx, near", {"jpmhc": lambda: polar.projx(near)}, error)
    yield Operation(
        "gradient",
        {
            "jpmhc": lambda: polar.egrad2rgrad(x, e),
            "pymanopt": lambda: manopt.euclidean_to_riemannian_gradient(a, g),
        },
    )
    yield Operation(
        "retr polar", {"jpmhc": lambda: polar.retr(x, u), "pymanopt": lambda: manopt.retraction(a, s)}, error
    )
    yield Operation("retr qr", {"jpmhc": lambda: qr.retr(x, u)}, error)
    yield Operation(
        "retr exp",
        {"jpmhc": lambda: exp.retr(x, u), "geotorch": lambda: expm(raw), "pymanopt": lambda: manopt.exp(a, s)},
        error,
    )
    yield Operation("transp", {"jpmhc": lambda: polar.transp(x, y, v), "pymanopt": lambda: manopt.transport(a, a, w)})
    yield Operation("retr_transp polar", {"jpmhc": lambda: polar.retr_transp(x, u, v)}, error)
    yield Operation("retr_transp exp", {"jpmhc": lambda: exp.retr_transp(x, u, v)}, error)
