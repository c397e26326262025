"""Polar factor on a CPU: a few products near an orthonormal matrix, Jacobi's rotations of columns elsewhere."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from jpmhc.kernels import polar as reference
from jpmhc.kernels import pool
from jpmhc.kernels.bodies import body
from jpmhc.kernels.cpu.compile import compiled, part
from jpmhc.kernels.cpu.elimination import fits, little
from jpmhc.kernels.cpu.pivots import eliminate, matrix_space, pivot_space
from jpmhc.kernels.cpu.products import gram, polish, product
from jpmhc.kernels.cpu.rows import dot, weighted
from jpmhc.kernels.cpu.single import columns, one_by_one
from jpmhc.kernels.cpu.single.columns import JACOBI_SWEEPS
from jpmhc.kernels.cpu.tiles import DTYPES, GRAIN, LANES, extent, few, load, narrow, numbers, store
from jpmhc.kernels.cpu.transpose import BLOCK, transpose
from jpmhc.kernels.polar import CUBIC_STEPS, NEAR, NEWTON_STEPS


@body(DTYPES, narrow)
def polar_forward(matrix: Tensor) -> Tensor:
    """Run `_polar` over all tokens, or over few ones the loop for any size."""
    if few(matrix):
        result, hard = one_by_one(columns.polar, (matrix,))
        if np.count_nonzero(hard):
            chosen = torch.from_numpy(hard).view(matrix.shape[:-2])
            result[chosen] = reference.polar_forward.__wrapped__(  # type: ignore[attr-defined]
                matrix.detach()[chosen]
            )
        return result
    n, p = matrix.shape[-2:]
    result = matrix.new_empty(matrix.shape)
    arrays = [numbers(tensor, n * p) for tensor in (matrix, result)]
    dtype = arrays[0].dtype.type
    options = dtype(NEAR**2), dtype(torch.finfo(matrix.dtype).eps)
    pool.run(_polar, pool.split(len(arrays[0]), GRAIN), *arrays, extent(n), extent(p), *options)
    return result


@compiled
def _polar(matrix, result, rows, columns, near, eps, start, stop):  # type: ignore[no-untyped-def]
    """Choose for every matrix by its own distance from orthonormal, so that it does not depend on its neighbours."""
    n, p = len(rows), len(columns)
    x, spare = np.empty((n * p, LANES), matrix.dtype), np.empty((n * p, LANES), matrix.dtype)
    square, other = np.empty((p * p, LANES), matrix.dtype), np.empty((p * p, LANES), matrix.dtype)
    active, close = np.empty(LANES, np.bool_), np.empty(LANES, np.bool_)
    zero, one = matrix.dtype.type(0), matrix.dtype.type(1)
    for base in range(start, stop, LANES):
        load(matrix, x, base, stop)
        _defect(x, square, rows, columns)
        all_close = True
        for t in range(LANES):
            close[t] = _size(square, columns, t) < near
            all_close &= close[t]
        if not all_close:
            for k in range(n * p):
                for t in range(LANES):
                    spare[k, t] = x[k, t]
            _by_rotations(spare, square, other, rows, columns, eps)
            for k in range(n * p):
                for t in range(LANES):
                    x[k, t] = x[k, t] if close[t] else spare[k, t]
            _defect(x, square, rows, columns)
        for _ in range(CUBIC_STEPS):
            some = False
            for t in range(LANES):
                active[t] = _size(square, columns, t) > eps
                some |= active[t]
            if not some:
                break
            # x (I - D / 2 + 3/8 D^2) with D = x^T x - I, and x itself where it is finished.
            product(square, square, other, columns, columns, columns)
            for i in range(p):
                for j in range(p):
                    for t in range(LANES):
                        step = one * 3 / 8 * other[i * p + j, t] - one / 2 * square[i * p + j, t]
                        other[i * p + j, t] = (step if active[t] else zero) + (one if i == j else zero)
            product(x, other, spare, rows, columns, columns)
            for k in range(n * p):
                for t in range(LANES):
                    x[k, t] = spare[k, t]
            _defect(x, square, rows, columns)
        polish(x, square, spare, rows, columns)
        store(result, spare, base, stop)


@part
def _defect(x, square, rows, columns):  # type: ignore[no-untyped-def]
    """``square = x^T x - I``."""
    p = len(columns)
    gram(x, x, square, rows, columns, columns)
    for i in range(p):
        for t in range(LANES):
            square[i * p + i, t] -= 1


@part
def _size(square, columns, t):  # type: ignore[no-untyped-def]
    """Squared Frobenius norm."""
    total = square[0, t] * square[0, t]
    for k in range(1, len(columns) * len(columns)):
        total += square[k, t] * square[k, t]
    return total


@part
def _by_rotations(x, v, inverse, rows, columns, eps):  # type: ignore[no-untyped-def]
    """Replace x by its polar factor: rotate columns until they are orthogonal, normalise them, rotate back.

    One-sided Jacobi (Hestenes, 1958): all singular values come out, small ones to their own relative precision.
    """
    n, p = len(rows), len(columns)
    zero, one = x.dtype.type(0), x.dtype.type(1)
    scale = inverse[0]
    for t in range(LANES):
        top = abs(x[0, t])
        for k in range(1, n * p):
            top = max(top, abs(x[k, t]))
        scale[t] = one / top
    for k in range(n * p):
        for t in range(LANES):
            x[k, t] *= scale[t]
    for i in range(p):
        for j in range(p):
            for t in range(LANES):
                v[i * p + j, t] = one if i == j else zero
    for _ in range(JACOBI_SWEEPS):
        some = False
        for i in range(p - 1):
            for j in range(i + 1, p):
                for t in range(LANES):
                    alpha, beta, gamma = x[i, t] * x[i, t], x[j, t] * x[j, t], x[i, t] * x[j, t]
                    for k in range(1, n):
                        a, b = x[k * p + i, t], x[k * p + j, t]
                        alpha += a * a
                        beta += b * b
                        gamma += a * b
                    turns = not gamma * gamma <= 4 * eps * eps * alpha * beta
                    some |= turns
                    zeta = (beta - alpha) / (2 * (gamma if turns else one))
                    tangent = one / (abs(zeta) + np.sqrt(one + zeta * zeta))
                    tangent = (-tangent if zeta < 0 else tangent) if turns else zero
                    c = one / np.sqrt(one + tangent * tangent)
                    s = c * tangent
                    for k in range(n):
                        a, b = x[k * p + i, t], x[k * p + j, t]
                        x[k * p + i, t] = c * a - s * b
                        x[k * p + j, t] = s * a + c * b
                    for k in range(p):
                        a, b = v[k * p + i, t], v[k * p + j, t]
                        v[k * p + i, t] = c * a - s * b
                        v[k * p + j, t] = s * a + c * b
        if not some:
            break
    for j in range(p):
        for t in range(LANES):
            total = x[j, t] * x[j, t]
            for k in range(1, n):
                total += x[k * p + j, t] * x[k * p + j, t]
            total = one / np.sqrt(total)
            for k in range(n):
                x[k * p + j, t] *= total
    # x v^T, a row at a time.
    for k in range(n):
        for j in range(p):
            for t in range(LANES):
                total = x[k * p, t] * v[j * p, t]
                for i in range(1, p):
                    total += x[k * p + i, t] * v[j * p + i, t]
                inverse[j, t] = total
        for j in range(p):
            for t in range(LANES):
                x[k * p + j, t] = inverse[j, t]


@body(DTYPES, fits, little)
def newton_polar(matrix: Tensor) -> Tensor:
    """Run `_newton` over all matrices."""
    n = matrix.shape[-1]
    result = matrix.new_empty(matrix.shape)
    arrays = [numbers(tensor, n * n).reshape(-1, n, n) for tensor in (matrix, result)]
    pool.run(_newton, pool.split(len(arrays[0])), *arrays, arrays[0].dtype.type(torch.finfo(matrix.dtype).eps ** 0.5))
    return result


@compiled
def _newton(matrix, result, near, start, stop):  # type: ignore[no-untyped-def]
    n, one, half = matrix.shape[-1], matrix.dtype.type(1), matrix.dtype.type(0.5)
    x, work, turned = matrix_space(matrix[0]), matrix_space(matrix[0]), matrix_space(matrix[0])
    space = pivot_space(work)
    for token in range(start, stop):
        top = one - one
        for i in range(n):
            for j in range(n):
                top = max(top, abs(matrix[token, i, j]))
        for i in range(n):
            weighted(x[i, :n], (matrix[token, i],), (one / top,))
            x[i, n:] = 0
        for _ in range(NEWTON_STEPS):
            size, other = 0.0, 0.0
            for i in range(n):
                weighted(work[i], (x[i],), (None,))
                size += np.float64(dot(x[i], x[i]))
            place = eliminate(work, n, space)
            for i in range(n):
                other += np.float64(dot(work[i], work[i]))
            for i in range(0, work.shape[0], BLOCK):
                for j in range(0, work.shape[0], BLOCK):
                    transpose(work, i, j, turned, j, i)
            scale = matrix.dtype.type(np.sqrt(np.sqrt(other / size)))
            size = 0.0
            for j in range(n):
                row = x[place[j]]
                weighted(row, (row, turned[j]), (half * scale, half / scale))
                size += np.float64(dot(row, row))
            # Singular values are above 1 now, and the sum of their squares is as close to n as they are to 1.
            if size - n < near:
                break
        for i in range(n):
            weighted(result[token, i], (x[i, :n],), (None,))
