"""Steps of doubly stochastic matrices on a CPU, without a logarithm between the point and the result."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jpmhc.kernels import pool
from jpmhc.kernels.bodies import body
from jpmhc.kernels.cpu.compile import compiled, part, summing
from jpmhc.kernels.cpu.scaling import balance, scale
from jpmhc.kernels.cpu.single import one_by_one
from jpmhc.kernels.cpu.single import scaling as single
from jpmhc.kernels.cpu.sinkhorn import few_numbers
from jpmhc.kernels.cpu.sweeps import swept
from jpmhc.kernels.cpu.tiles import DTYPES, GRAIN, LANES, exp, extent, few, load, numbers, store
from jpmhc.kernels.retraction import birkhoff_retraction as primitive_retraction
from jpmhc.kernels.shapes import LARGEST, oblong, unlike
from jpmhc.kernels.sinkhorn import FIRST_SWEEPS


def _empty(x: Tensor, *others: object) -> str | None:
    return "no body for matrices without entries" if 0 in x.shape[-2:] else oblong(x) or unlike(x, *others)


@body(DTYPES, _empty, few_numbers)
def birkhoff_retraction(x: Tensor, u: Tensor, root: bool, least: float, tol: float, max_steps: int) -> Tensor:
    """Run the loop for few tokens, `_in_tiles` or, over larger matrices, `_moved` and `swept`.

    The reference finishes what needs logarithms.
    """
    *_, n, m = x.shape
    if n <= LARGEST and few(x):
        result, again = one_by_one(single.retraction, (x, u), root, float(least), float(tol), max_steps)
    else:
        result, again = _of_many(x, u, root, least, tol, max_steps)
    if np.count_nonzero(again):
        chosen = torch.from_numpy(again.nonzero()[0])
        reference = primitive_retraction.__wrapped__  # type: ignore[attr-defined]
        some, along = (tensor.detach().reshape(-1, n, m)[chosen] for tensor in (x, u))
        # Alone, none depends on its neighbours: the reference stops larger matrices together, and chooses logarithms.
        count = 1 if n > LARGEST or few(x) else len(chosen)
        apart = zip(some.split(count), along.split(count), strict=True)
        result.view(-1, n, m)[chosen] = torch.cat([reference(*one, root, least, tol, max_steps) for one in apart])
    return result


def _of_many(
    x: Tensor, u: Tensor, root: bool, least: float, tol: float, max_steps: int
) -> tuple[Tensor, NDArray[np.bool_]]:
    """Return the result, and a mask of the matrices that are left to the reference."""
    *_, n, m = x.shape
    result = x.new_empty(x.shape)
    point, vector, target = (numbers(tensor, n * m) for tensor in (x, u, result))
    dtype, tokens = point.dtype.type, len(point)
    again, finished = np.empty(tokens, np.bool_), np.empty(tokens, np.bool_)
    if n > LARGEST:
        kernel = np.empty_like(target)
        ranges, shape = pool.split(tokens), (tokens, n, m)
        pool.run(_moved, ranges, point, vector, kernel, again, root, dtype(least))
        pool.run(
            swept, ranges, kernel.reshape(shape), target.reshape(shape), finished, dtype(0), dtype(least), dtype(tol)
        )
        again |= ~finished
    else:
        options = (extent(n), root, dtype(least), tol, max_steps)
        pool.run(_in_tiles, pool.split(tokens, GRAIN), point, vector, target, again, *options)
    return result, again


@summing
def _moved(x, u, result, again, root, least, start, stop):  # type: ignore[no-untyped-def]
    """Move the numbers of each matrix; `again` marks one in which a number comes near to overflow or underflow."""
    one = x.dtype.type(1)
    low = x.dtype.type(np.sqrt(np.finfo(x.dtype).tiny))
    for token in range(start, stop):
        point, vector, target = x[token], u[token], result[token]
        lost = one - one
        if root:
            for k in range(len(point)):
                value = _bent(point[k], vector[k], least, one)
                target[k] = value
                lost += one - one if low < value < one / low else one
        else:
            for k in range(len(point)):
                value = _exponential(point[k], vector[k], least)
                target[k] = value
                lost += one - one if low < value < one / low else one
        again[token] = lost > 0


@compiled
def _in_tiles(x, along, result, again, size, root, least, tol, max_steps, start, stop):  # type: ignore[no-untyped-def]
    """Move, sweep and step; `again` marks what came near to overflow or underflow and is not finished here."""
    n = len(size)
    p, h = np.empty((n * n, LANES), x.dtype), np.empty((n * n, LANES), x.dtype)
    u, v, row = np.empty((n, LANES), x.dtype), np.empty((n, LANES), x.dtype), np.empty((n, LANES), x.dtype)
    active = np.empty(LANES, x.dtype)
    one = x.dtype.type(1)
    low = x.dtype.type(np.sqrt(np.finfo(x.dtype).tiny))
    for base in range(start, stop, LANES):
        load(x, p, base, stop)
        load(along, h, base, stop)
        active[:] = one
        for k in range(n * n):
            for t in range(LANES):
                value = _bent(p[k, t], h[k, t], least, one) if root else _exponential(p[k, t], h[k, t], least)
                active[t] = active[t] if low < value < one / low else one - one
                p[k, t] = value
        scale(p, u, v, size, size, FIRST_SWEEPS)
        for k in range(n * n):
            for t in range(LANES):
                active[t] = active[t] if p[k, t] > low else one - one
        for t in range(min(LANES, stop - base)):
            again[base + t] = active[t] == 0
        balance(p, h, u, v, row, active, size, size, tol, max_steps)
        for k in range(n * n):
            for t in range(LANES):
                p[k, t] = max(p[k, t], least)
        store(result, p, base, stop)


@part
def _bent(x, u, least, one):  # type: ignore[no-untyped-def]
    """Return x times the square of the function of `jpmhc.kernels.retraction` at ``1 + u / (2 x)``."""
    away = u / (x + x)
    w = one + away
    away *= away
    q = away / (one + away)
    q *= q
    size = np.sqrt(w * w + q)
    numerator = w + size if w > 0 else q
    denominator = one + one if w > 0 else size - w + size - w
    bent = numerator / denominator
    return (least if x < least else x) * bent * bent


@part
def _exponential(x, u, least):  # type: ignore[no-untyped-def]
    return (least if x < least else x) * exp(u / x)
