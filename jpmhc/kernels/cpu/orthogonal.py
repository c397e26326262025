"""Maps of orthonormal columns on a CPU, each from one load of its arguments to one store of its result."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from jpmhc.kernels import orthogonal as reference
from jpmhc.kernels import pool
from jpmhc.kernels.bodies import body
from jpmhc.kernels.cpu.blocks import multiplied
from jpmhc.kernels.cpu.columns import tangent
from jpmhc.kernels.cpu.compile import compiled
from jpmhc.kernels.cpu.products import combine, combine_transposed, gram, invert, invert_one_minus_skew, polish, product
from jpmhc.kernels.cpu.single import columns as single
from jpmhc.kernels.cpu.single import one_by_one
from jpmhc.kernels.cpu.tiles import DTYPES, GRAIN, LANES, extent, few, load, narrow, numbers, store
from jpmhc.kernels.cpu.vectors import WIDTH
from jpmhc.kernels.shapes import LARGEST, unlike

_MANY = 2**22  # multiplications from which blocks in the caches are faster than the library's products
_STEEP = 1e3  # elimination without pivots loses the square of this; the polish makes good what is left


@body(DTYPES, narrow)
def cayley_retraction(x: Tensor, u: Tensor) -> Tensor:
    """Run `_cayley` or the loop for few tokens, and the reference where a step in a tile is steep."""
    if few(x):
        return one_by_one(single.cayley_step, (x, u, x), False, results=2)[0]
    y = x.new_empty(x.shape)
    steep = _run(x, u, x, y, y, False)
    if steep is not None:
        y[steep] = reference.cayley_retraction.__wrapped__(x[steep], u[steep])  # type: ignore[attr-defined]
    return y


@body(DTYPES, narrow)
def cayley_transport(x: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Run `_cayley` or the loop for few tokens, and the reference where a step in a tile is steep."""
    if few(x):
        return one_by_one(single.cayley_step, (x, u, v), True, results=2)[:2]
    y, moved = x.new_empty(x.shape), x.new_empty(x.shape)
    steep = _run(x, u, v, y, moved, True)
    if steep is not None:
        both = reference.cayley_transport.__wrapped__(x[steep], u[steep], v[steep])  # type: ignore[attr-defined]
        y[steep], moved[steep] = both
    return y, moved


def _near(x: Tensor, *others: object) -> str | None:
    """Tell why the products of a point and a vector do not stay in the nearer caches."""
    n, p = x.shape[-2:]
    if not 0 < p <= 128 or n * p > 128 * 128:
        return f"no body for matrices of {n} x {p}, only up to 128 x 128"
    return unlike(x, *others)


def _few(x: Tensor, *_: object) -> str | None:
    n, p = x.shape[-2:]
    if n <= LARGEST:
        return few(x)
    vector = WIDTH // x.element_size()
    if LARGEST < p <= 64 and 4 * (-p % vector) <= p:  # blocks of a vector beyond the edge cost as much as others
        return None if x.numel() * p >= _MANY else f"fewer than {_MANY} multiplications"
    return "products of whole batches are as fast"


@body(DTYPES, _near, _few)
def tangent_part(x: Tensor, e: Tensor, whole: float, straight: float, crossed: float) -> Tensor:
    """Run `_tangent` over all tokens, or `_tangent_in_blocks` where a row is more than a vector or two."""
    n, p = x.shape[-2:]
    if n == p:
        whole, straight = whole + straight, 0.0  # x x^T e is e
    result = e.new_empty(e.shape)
    arrays = [numbers(tensor, n * p) for tensor in (x, e, result)]
    weights = [arrays[0].dtype.type(weight) if weight else None for weight in (straight, crossed, whole)]
    if p <= LARGEST:
        pool.run(_tangent, pool.split(len(arrays[0]), GRAIN), *arrays, extent(p), *weights)
    else:
        shaped = [array.reshape(-1, n, p) for array in arrays]
        pool.run(_tangent_in_blocks, pool.split(len(arrays[0])), *shaped, *weights)
    return result


def _run(x: Tensor, u: Tensor, v: Tensor, y: Tensor, moved: Tensor, transport: bool) -> Tensor | None:
    """Fill y and moved; return a mask of the batch where that needs pivots, or None."""
    n, p = x.shape[-2:]
    arrays = [numbers(tensor, n * p) for tensor in (x, u, v, y, moved)]
    ranges = pool.split(len(arrays[0]), GRAIN)
    if n == p <= 4:
        pool.run(_turn, ranges, *arrays, extent(n), transport)
        return None
    steep = torch.zeros(x.shape[:-2], dtype=torch.bool, device="cpu")
    pool.run(_cayley, ranges, *arrays, steep.view(-1).numpy(), extent(n), extent(p), transport)
    return steep if bool(steep.any()) else None


@compiled
def _cayley(x, u, v, y, moved, steep, rows, columns, transport, start, stop):  # type: ignore[no-untyped-def]
    """Compute ``Z = (2 x + N) (I - A/2 + N^T N/4)^-1``, ``y = Z - x`` polished, and ``y C + M - Z N^T M / 2``."""
    n, p = len(rows), len(columns)
    one, half, quarter = x.dtype.type(1), x.dtype.type(0.5), x.dtype.type(0.25)
    point, normal = np.empty((n * p, LANES), x.dtype), np.empty((n * p, LANES), x.dtype)
    rotated, end = np.empty((n * p, LANES), x.dtype), np.empty((n * p, LANES), x.dtype)
    spare, vector = np.empty((n * p, LANES), x.dtype), np.empty((n * p, LANES), x.dtype)
    square, other = np.empty((p * p, LANES), x.dtype), np.empty((p * p, LANES), x.dtype)
    system = np.empty((p * p, LANES), np.float64)
    size = np.empty(LANES, np.float64)
    tall = n > p  # in a square x A + N there is no N
    for base in range(start, stop, LANES):
        load(x, point, base, stop)
        load(u, normal, base, stop)
        gram(point, normal, square, rows, columns, columns)
        combine_transposed(-quarter, square, quarter, other, columns)
        if tall:
            product(point, square, spare, rows, columns, columns)
            combine(one, normal, -one, spare, normal)
            gram(normal, normal, square, rows, columns, columns)
            combine(one, other, quarter, square, other)
        size[:] = 0
        for i in range(p):
            for j in range(p):
                for t in range(LANES):
                    value = np.float64(other[i * p + j, t])
                    size[t] = max(size[t], abs(value))
                    system[i * p + j, t] = value + (1.0 if i == j else 0.0)
        for t in range(min(LANES, stop - base)):
            steep[base + t] = size[t] > _STEEP
        invert(system, columns)
        for k in range(p * p):
            for t in range(LANES):
                other[k, t] = system[k, t]
        combine(2 * one, point, one if tall else one - one, normal, end)
        product(end, other, rotated, rows, columns, columns)
        combine(one, rotated, -one, point, spare)
        polish(spare, square, end, rows, columns)
        store(y, end, base, stop)
        if transport:
            load(v, vector, base, stop)
            gram(point, vector, square, rows, columns, columns)
            combine_transposed(half, square, -half, other, columns)
            if tall:
                product(point, square, spare, rows, columns, columns)
                combine(one, vector, -one, spare, vector)
                gram(normal, vector, square, rows, columns, columns)
                product(rotated, square, spare, rows, columns, columns)
                combine(one, vector, -half, spare, vector)
            product(end, other, spare, rows, columns, columns)
            if tall:
                combine(one, spare, one, vector, spare)
            store(moved, spare, base, stop)


@compiled
def _turn(x, u, v, y, moved, size, transport, start, stop):  # type: ignore[no-untyped-def]
    """Compute ``y = x (2 (I - A/2)^-1 - I)`` polished and ``y C``, of square matrices up to 4 x 4, in closed form."""
    n = len(size)
    point, vector = np.empty((n * n, LANES), x.dtype), np.empty((n * n, LANES), x.dtype)
    square, half = np.empty((n * n, LANES), x.dtype), np.empty((n * n, LANES), x.dtype)
    one = x.dtype.type(1)
    quarter = one / 4
    for base in range(start, stop, LANES):
        load(x, point, base, stop)
        load(u, vector, base, stop)
        gram(point, vector, square, size, size, size)
        combine_transposed(quarter, square, -quarter, half, size)
        invert_one_minus_skew(half, square, size)
        for i in range(n):
            for j in range(n):
                for t in range(LANES):
                    square[i * n + j, t] = 2 * square[i * n + j, t] - (one if i == j else one - one)
        product(point, square, vector, size, size, size)
        polish(vector, square, half, size, size)
        store(y, half, base, stop)
        if transport:
            load(v, vector, base, stop)
            gram(point, vector, square, size, size, size)
            combine_transposed(one / 2, square, -one / 2, vector, size)
            product(half, vector, square, size, size, size)
            store(moved, square, base, stop)


@compiled
def _tangent(x, e, result, columns, straight, crossed, whole, start, stop):  # type: ignore[no-untyped-def]
    for token in range(start, stop):
        tangent(x, e, result, token, columns, straight, crossed, whole)


@compiled
def _tangent_in_blocks(x, e, result, straight, crossed, whole, start, stop):  # type: ignore[no-untyped-def]
    p = x.shape[-1]
    one, zero = x.dtype.type(1), x.dtype.type(0)
    square, mixed = np.empty((p, p), x.dtype), np.empty((p, p), x.dtype)
    for token in range(start, stop):
        point, vector = x[token], e[token]
        if straight is None:
            multiplied(mixed, zero if crossed is None else crossed, vector.T, point, zero, None)
        elif crossed is None:
            multiplied(mixed, straight, point.T, vector, zero, None)
        else:
            multiplied(square, one, point.T, vector, zero, None)
            for i in range(p):
                for j in range(i + 1):
                    mixed[i, j] = straight * square[i, j] + crossed * square[j, i]
                    mixed[j, i] = straight * square[j, i] + crossed * square[i, j]
        if whole is None:
            multiplied(result[token], one, point, mixed, zero, None)
        else:
            multiplied(result[token], one, point, mixed, whole, vector)
