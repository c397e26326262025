"""SpecialOrthogonal: projection, gradient, two retractions and the transport."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.extras import require
from benchmarks.manifolds.contest import SHAPES, Operation, material
from benchmarks.manifolds.contest import run as contest
from jpmhc.manifolds import SpecialOrthogonal
from jpmhc.manifolds.peer import geoopt


def run(quick: bool) -> dict[str, Any]:
    """Compare at the square shapes; see `contest.run`."""
    return contest(operations, (shape for shape in SHAPES if shape[-1] == shape[-2]), quick)


def operations(shape: tuple[int, ...], dtype: torch.dtype) -> Iterator[Operation]:
    """Every map, with the peers that have it; geoopt has no rotations, and square Stiefel matrices stand in."""
    cayley, exp = SpecialOrthogonal(), SpecialOrthogonal("exp")
    stiefel, exact = geoopt.CanonicalStiefel(), geoopt.EuclideanStiefelExact()
    k, n, _ = shape
    manopt = require("pymanopt.manifolds", "peers").SpecialOrthogonalGroup(n, k=k)
    torch_cayley, torch_exp = (_geotorch(shape, dtype, triv) for triv in ("cayley", "expm"))
    m = material(cayley, shape, dtype)
    x, y, e, u, v, near = m.x, m.y, m.e, m.u, m.v, m.near
    a, g, s, w = m.arrays()
    # pymanopt's tangent vectors are the skew matrices x^T u.
    s, w = (a.swapaxes(-1, -2) @ b for b in (s, w))
    raw = torch.randn(*shape, dtype=dtype) / 10
    error = cayley.point_error
    yield Operation("projx, near", {"jpmhc": lambda: cayley.projx(near), "geoopt": lambda: stiefel.projx(near)}, error)
    yield Operation(
        "gradient",
        {
            "jpmhc": lambda: cayley.egrad2rgrad(x, e),
            "geoopt": lambda: stiefel.egrad2rgrad(x, e),
            "pymanopt": lambda: manopt.euclidean_to_riemannian_gradient(a, g),
        },
    )
    yield Operation(
        "retr cayley",
        {
            "jpmhc": lambda: cayley.retr(x, u),
            "geoopt": lambda: stiefel.retr(x, u),
            "geotorch": lambda: torch_cayley(raw),
            "pymanopt": lambda: manopt.retraction(a, s),
        },
        error,
    )
    yield Operation(
        "retr exp",
        {
            "jpmhc": lambda: exp.retr(x, u),
            "geoopt": lambda: exact.retr(x, u),
            "geotorch": lambda: torch_exp(raw),
            "pymanopt": lambda: manopt.exp(a, s),
        },
        error,
    )
    yield Operation("transp", {"jpmhc": lambda: cayley.transp(x, y, v)})
    yield Operation(
        "retr_transp cayley",
        {"jpmhc": lambda: cayley.retr_transp(x, u, v), "geoopt": lambda: stiefel.retr_transp(x, u, v)},
        error,
    )


def _geotorch(shape: tuple[int, ...], dtype: torch.dtype, triv: str) -> Any:
    return require("geotorch", "peers").SO(torch.Size(shape), triv=triv).to(dtype)
