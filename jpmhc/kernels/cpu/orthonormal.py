"""Orthonormal columns on a CPU: Gram and Schmidt's projections, each made twice, in a tile."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from jpmhc.kernels import pool
from jpmhc.kernels.bodies import body
from jpmhc.kernels.cpu.compile import compiled
from jpmhc.kernels.cpu.products import polish
from jpmhc.kernels.cpu.single import columns, one_by_one
from jpmhc.kernels.cpu.single.columns import KEPT
from jpmhc.kernels.cpu.tiles import DTYPES, GRAIN, LANES, extent, few, load, narrow, numbers, store
from jpmhc.kernels.orthonormal import plain_orthonormalise


@body(DTYPES, narrow)
def orthonormalise(matrix: Tensor) -> Tensor:
    """Run `_gram_schmidt` or the loop for few tokens.

    The reference does what has dependent columns or squares out of range.
    """
    n, p = matrix.shape[-2:]
    if few(matrix):
        result, hard = one_by_one(columns.orthonormalise, (matrix,))
    else:
        result = matrix.new_empty(matrix.shape)
        arrays = [numbers(tensor, n * p) for tensor in (matrix, result)]
        hard = np.zeros(len(arrays[0]), np.bool_)
        info, dtype = torch.finfo(matrix.dtype), arrays[0].dtype.type
        options = dtype(KEPT * info.eps**2), dtype(info.tiny / info.eps)
        ranges = pool.split(len(arrays[0]), GRAIN)
        pool.run(_gram_schmidt, ranges, *arrays, hard, extent(n), extent(p), *options)
    if np.count_nonzero(hard):
        chosen = torch.from_numpy(hard).view(matrix.shape[:-2])
        result[chosen] = plain_orthonormalise(matrix.detach()[chosen])
    return result


@compiled
def _gram_schmidt(matrix, result, hard, rows, columns, kept, least, start, stop):  # type: ignore[no-untyped-def]
    n, p = len(rows), len(columns)
    x, spare = np.empty((n * p, LANES), matrix.dtype), np.empty((n * p, LANES), matrix.dtype)
    column = np.empty((n, LANES), matrix.dtype)
    square = np.empty((p * p, LANES), matrix.dtype)
    before, bad = np.empty(LANES, matrix.dtype), np.empty(LANES, np.bool_)
    zero, one = matrix.dtype.type(0), matrix.dtype.type(1)
    for base in range(start, stop, LANES):
        load(matrix, x, base, stop)
        bad[:] = False
        for j in range(p):
            for t in range(LANES):
                total = zero
                for k in range(n):
                    column[k, t] = x[k * p + j, t]
                    total += x[k * p + j, t] * x[k * p + j, t]
                before[t] = total
            for _ in range(2):
                for i in range(j):
                    for t in range(LANES):
                        total = zero
                        for k in range(n):
                            total += x[k * p + i, t] * column[k, t]
                        for k in range(n):
                            column[k, t] -= total * x[k * p + i, t]
            for t in range(LANES):
                total = zero
                for k in range(n):
                    total += column[k, t] * column[k, t]
                bad[t] |= not total > max(kept * before[t], least)
                total = one / np.sqrt(total)
                bad[t] |= not total < np.inf
                for k in range(n):
                    x[k * p + j, t] = column[k, t] * total
        polish(x, square, spare, rows, columns)
        store(result, spare, base, stop)
        for t in range(min(LANES, stop - base)):
            hard[base + t] = bad[t]
