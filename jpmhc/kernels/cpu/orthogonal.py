"""Maps of orthonormal columns on a CPU, each from one load of its arguments to one store of its result."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jpmhc.kernels import orthogonal as reference
from jpmhc.kernels import pool
from jpmhc.kernels.bodies import body
from jpmhc.kernels.cpu.compile import compiled
from jpmhc.kernels.cpu.products import (
    add_to_diagonal,
    combine,
    combine_transposed,
    gram,
    invert,
    lanes,
    largest,
    load_tile,
    polish,
    product,
    scratch,
    store_tile,
)

_DTYPES = (torch.float32, torch.float64)
_GRAIN = 512
_STEEP = 1e3  # elimination without pivots loses the square of this; the polish makes good what is left


def small(x: Tensor, *_: Any) -> str | None:
    """Say why a body for small matrices does not take one: beyond this LAPACK's blocks win (measured)."""
    n, p = x.shape[-2:]
    return None if n * p <= 128 and p <= 8 else f"{n} x {p} is not small"


def arrays(*tensors: Tensor) -> list[np.ndarray]:
    """Return the tensors' numbers with one batch dimension."""
    return [t.detach().reshape(-1, *t.shape[-2:]).contiguous().numpy() for t in tensors]


def _width(x: Tensor) -> int:
    return lanes(math.prod(x.shape[:-2]), x.shape[-2] * x.shape[-1])


@body(_DTYPES, small)
def cayley_retraction(x: Tensor, u: Tensor) -> Tensor:
    """Run `_cayley` over all matrices, and the reference where the step is steep."""
    y = torch.empty(x.shape, dtype=x.dtype)
    steep = _run(x, u, x, y, y, False)
    if steep is not None:
        y[steep] = reference.cayley_retraction.__wrapped__(x[steep], u[steep])  # type: ignore[attr-defined]
    return y


@body(_DTYPES, small)
def cayley_transport(x: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Run `_cayley` over all matrices, and the reference where the step is steep."""
    y, moved = torch.empty(x.shape, dtype=x.dtype), torch.empty(x.shape, dtype=x.dtype)
    steep = _run(x, u, v, y, moved, True)
    if steep is not None:
        both = reference.cayley_transport.__wrapped__(x[steep], u[steep], v[steep])  # type: ignore[attr-defined]
        y[steep], moved[steep] = both
    return y, moved


@body(_DTYPES, small)
def tangent_part(x: Tensor, e: Tensor, whole: float, straight: float, crossed: float) -> Tensor:
    """Run `_tangent` over all matrices."""
    result = torch.empty(e.shape, dtype=e.dtype)
    given = arrays(x, e, result)
    number = given[0].dtype.type
    weights = number(whole), number(straight), number(crossed)
    pool.run(_tangent, pool.split(len(given[0]), _GRAIN), *given, *weights, _width(x))
    return result


def _run(x: Tensor, u: Tensor, v: Tensor, y: Tensor, moved: Tensor, transport: bool) -> Tensor | None:
    """Fill y and moved; return a mask of the batch where that needs pivots, or None."""
    given = arrays(x, u, v, y, moved)
    steep = torch.zeros(x.shape[:-2], dtype=torch.bool)
    pool.run(_cayley, pool.split(len(given[0]), _GRAIN), *given, steep.view(-1).numpy(), transport, _width(x))
    return steep if bool(steep.any()) else None


@compiled
def _cayley(x, u, v, y, moved, steep, transport, width, start, stop):  # type: ignore[no-untyped-def]
    """Compute ``Z = (2 x + N) (I - A/2 + N^T N/4)^-1``, ``y = Z - x`` polished, and ``y C + M - Z N^T M / 2``."""
    _, n, p = x.shape
    one, half, quarter = x.dtype.type(1), x.dtype.type(0.5), x.dtype.type(0.25)
    point, normal, rotated, end = (
        scratch(n, p, width, x),
        scratch(n, p, width, x),
        scratch(n, p, width, x),
        scratch(n, p, width, x),
    )
    spare, vector = scratch(n, p, width, x), scratch(n, p, width, x)
    square, other = scratch(p, p, width, x), scratch(p, p, width, x)
    system = np.empty((p, p, width), np.float64)
    size = np.empty(width, np.float64)
    tall = n > p  # in a square x A + N there is no N
    for base in range(start, stop, width):
        load_tile(x, point, base, stop)
        load_tile(u, normal, base, stop)
        gram(point, normal, square)
        combine_transposed(-quarter, square, quarter, other)
        if tall:
            product(point, square, spare)
            combine(one, normal, -one, spare, normal)
            gram(normal, normal, square)
            combine(one, other, quarter, square, other)
            combine(2 * one, point, one, normal, end)
        else:
            combine(2 * one, point, 0 * one, point, end)
        add_to_diagonal(other, one)
        combine(1.0, other, 0.0, other, system)
        largest(system, size)
        for t in range(min(width, stop - base)):
            steep[base + t] = size[t] > _STEEP
        invert(system)
        combine(1.0, system, 0.0, system, other)
        product(end, other, rotated)
        combine(one, rotated, -one, point, spare)
        polish(spare, square, end)
        store_tile(y, end, base, stop)
        if transport:
            load_tile(v, vector, base, stop)
            gram(point, vector, square)
            combine_transposed(half, square, -half, other)
            if tall:
                product(point, square, spare)
                combine(one, vector, -one, spare, vector)
                gram(normal, vector, square)
                product(rotated, square, spare)
                combine(one, vector, -half, spare, vector)
            product(end, other, spare)
            if tall:
                combine(one, spare, one, vector, spare)
            store_tile(moved, spare, base, stop)


@compiled
def _tangent(x, e, result, whole, straight, crossed, width, start, stop):  # type: ignore[no-untyped-def]
    """``whole e + x (straight S + crossed S^T)`` with ``S = x^T e``."""
    _, n, p = x.shape
    point, vector, part = scratch(n, p, width, x), scratch(n, p, width, x), scratch(n, p, width, x)
    square, mixed = scratch(p, p, width, x), scratch(p, p, width, x)
    for base in range(start, stop, width):
        load_tile(x, point, base, stop)
        load_tile(e, vector, base, stop)
        gram(point, vector, square)
        combine_transposed(straight, square, crossed, mixed)
        product(point, mixed, part)
        combine(whole, vector, x.dtype.type(1), part, part)
        store_tile(result, part, base, stop)
