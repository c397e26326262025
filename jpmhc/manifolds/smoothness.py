"""Derivatives at zero vectors and equal points, where formulas divide zero by zero, against finite differences."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from jpmhc.manifolds.peer import geoopt
from jpmhc.manifolds.report import Law

_STEP = 2e-4  # of unit vectors: near the corner of a simplex relative steps are a hundred times longer
_CLOSE = 1e-5
_FINITE = 1e12


def smoothness(manifold: geoopt.Manifold, x: Tensor, v: Tensor, w: Tensor) -> Iterator[Law]:
    """Measure the derivatives of the maps that a manifold has.

    Parameters
    ----------
    manifold : geoopt.Manifold
        Any.
    x, v, w : Tensor, shape (batch, *shape)
        Points and two tangent vectors of unit length at each, float64.

    Yields
    ------
    Law
        Of a map the largest error of a first derivative along v, in both modes, and of a second along v and w, of a
        random function of its result, relative to them where they are above one.
    """
    maps: dict[str, Callable[[Tensor], Tensor]] = {
        "retr is twice differentiable at zero": lambda u: manifold.retr(x, u),
        "expmap is twice differentiable at zero": lambda u: manifold.expmap(x, u),
        "logmap is twice differentiable at equal points": lambda u: manifold.logmap(x, manifold.retr(x, u)),
        "dist2 is twice differentiable at equal points": lambda u: manifold.dist2(x, manifold.retr(x, u)),
    }
    zero = torch.zeros_like(x)
    for name, map_ in maps.items():
        if _offers(map_, zero):
            yield Law(name, _error(map_, zero, v, w), _CLOSE)
    if _offers(lambda y: manifold.dist(x, y), x):
        gradient = torch.func.grad(lambda y: manifold.dist(x, y).sum())(x)
        yield Law("dist has a finite gradient at equal points", float(gradient.abs().max()), _FINITE)


def _offers(map_: Callable[[Tensor], Tensor], at: Tensor) -> bool:
    try:
        map_(at)
    except NotImplementedError:
        return False
    return True


def _error(map_: Callable[[Tensor], Tensor], zero: Tensor, v: Tensor, w: Tensor) -> float:
    weights = torch.randn(map_(zero).shape, dtype=zero.dtype)

    def loss(u: Tensor) -> Tensor:
        value = map_(u)
        return (weights * (torch.sin(2 * value) + value * value)).sum()

    gradient = torch.func.grad(loss)

    def rate(u: Tensor) -> Tensor:
        return (gradient(u) * w).sum()

    entries, bends, *_ = torch.func.jvp(gradient, (zero,), (v,))
    first = torch.func.jvp(loss, (zero,), (v,))[1]
    if not (entries.isfinite().all() and bends.isfinite().all()):
        return math.nan
    truth = _difference(loss, v)
    pairs = ((first, truth), ((entries * v).sum(), truth), ((bends * w).sum(), _difference(rate, v)))
    errors = [float((found - true).abs() / true.abs().clamp_min(1.0)) for found, true in pairs]
    return max(errors) if all(map(math.isfinite, errors)) else math.nan


def _difference(function: Callable[[Tensor], Tensor], v: Tensor) -> Tensor:
    """Return the derivative at zero along v, to fourth order in the step."""
    coarse, fine = ((function(h * v) - function(-h * v)) / (2 * h) for h in (_STEP, _STEP / 2))
    return (4 * fine - coarse) / 3
