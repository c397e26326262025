"""Sweeps and Newton's steps of Sinkhorn scaling on tiles.

In a sweep the innermost loop runs over the lanes and stores one number that nobody else reads in it, a scale: such a
loop becomes instructions on vectors. One that stores the matrix in it did not, and took five times the time (measured).
"""

from __future__ import annotations

import numpy as np

from jpmhc.kernels.cpu.compile import part
from jpmhc.kernels.cpu.tiles import LANES, exp, log1p_ratio

_HELD = 8  # sweeps of 16 rows after which scales may have grown by 16^16, which float32 still holds


@part
def sweep(p, u, v, rows, columns, times):  # type: ignore[no-untyped-def]
    """Turn logits into the matrix after so many sweeps; `u` and `v`, a number a row and a column, are scratch.

    In the first a maximum is taken out of every row, then of every column, so that no sum underflows.
    """
    n, m = len(rows), len(columns)
    one = p.dtype.type(1)
    for i in range(n):
        for t in range(LANES):
            top = p[i * m, t]
            for j in range(1, m):
                top = max(top, p[i * m + j, t])
            u[i, t] = top
        for j in range(m):
            for t in range(LANES):
                p[i * m + j, t] -= u[i, t]
        for t in range(LANES):
            u[i, t] = 0
        for j in range(m):
            for t in range(LANES):
                u[i, t] += exp(p[i * m + j, t])
        for t in range(LANES):
            u[i, t] = one / u[i, t]
    wanted = p.dtype.type(n / m)
    for j in range(m):
        for t in range(LANES):
            top = p[j, t]
            for i in range(1, n):
                top = max(top, p[i * m + j, t])
            v[j, t] = top
        for i in range(n):
            for t in range(LANES):
                p[i * m + j, t] = exp(p[i * m + j, t] - v[j, t]) * u[i, t]
        for t in range(LANES):
            total = p[j, t]
            for i in range(1, n):
                total += p[i * m + j, t]
            v[j, t] = wanted / total
        for i in range(n):
            for t in range(LANES):
                p[i * m + j, t] *= v[j, t]
    scale(p, u, v, rows, columns, times - 1)


@part
def scale(p, u, v, rows, columns, times):  # type: ignore[no-untyped-def]
    """Sweep so many times, rows first, by scales of rows and columns, which go into the matrix now and then."""
    n, m = len(rows), len(columns)
    one, wanted = p.dtype.type(1), p.dtype.type(n / m)
    while times > 0:
        v[:] = one
        for _ in range(min(times, _HELD)):
            for i in range(n):
                for t in range(LANES):
                    total = p[i * m, t] * v[0, t]
                    for j in range(1, m):
                        total += p[i * m + j, t] * v[j, t]
                    u[i, t] = one / total
            for j in range(m):
                for t in range(LANES):
                    total = p[j, t] * u[0, t]
                    for i in range(1, n):
                        total += p[i * m + j, t] * u[i, t]
                    v[j, t] = wanted / total
        for i in range(n):
            for j in range(m):
                for t in range(LANES):
                    p[i * m + j, t] *= u[i, t] * v[j, t]
        times -= _HELD


@part
def balance(p, weights, u, v, row, active, rows, columns, tol, max_steps):  # type: ignore[no-untyped-def]
    """Take Newton's steps of the reference in the lanes that are active, until all of them are finished.

    `p` holds numbers far from underflow whose column sums are right. `weights`, n^2 numbers a lane, and `u`, `v` and
    `row`, a number a row, a column and a row, are scratch.
    """
    n, m = len(rows), len(columns)
    one = p.dtype.type(1)
    inverse = p.dtype.type(m / n)
    length, error = np.empty(LANES, p.dtype), np.empty(LANES, p.dtype)
    for _ in range(max_steps):
        error[:] = 0
        row[:] = one
        for i in range(n):
            for t in range(LANES):
                total = p[i * m, t]
                for j in range(1, m):
                    total += p[i * m + j, t]
                u[i, t] = one - total
                error[t] = max(error[t], abs(one - total))
        for i in range(n - 1):
            for k in range(i + 1, n):
                for t in range(LANES):
                    total = p[i * m, t] * p[k * m, t]
                    for j in range(1, m):
                        total += p[i * m + j, t] * p[k * m + j, t]
                    weights[i * n + k, t] = total * inverse
        solve(weights, u, row, rows)
        some = False
        for t in range(LANES):
            low = high = u[0, t]
            for i in range(1, n):
                low, high = min(low, u[i, t]), max(high, u[i, t])
            length[t] = high - low
            # A step of span M < 1 leaves at most M times the error.
            error[t] = active[t] if min(high - low, one) * error[t] > tol else one - one
        for t in range(LANES):
            length[t] = active[t] * log1p_ratio(length[t])
        for i in range(n):
            for t in range(LANES):
                u[i, t] = exp(length[t] * u[i, t])
        for j in range(m):
            for t in range(LANES):
                total = p[j, t] * u[0, t]
                for i in range(1, n):
                    total += p[i * m + j, t] * u[i, t]
                v[j, t] = one / (inverse * total) if active[t] > 0 else one
            for i in range(n):
                for t in range(LANES):
                    p[i * m + j, t] *= u[i, t] * v[j, t]
        for t in range(LANES):
            active[t] = error[t]
            some |= error[t] > 0
        if not some:
            break


@part
def solve(weights, u, row, rows):  # type: ignore[no-untyped-def]
    """Replace the right side u by the solution, whose last number is zero; see `kernels.sinkhorn_potentials`.

    The weights of the graph are symmetric, and elimination keeps them so: only those above the diagonal are held, and
    inverse pivots on it.
    """
    n = len(rows)
    one = weights.dtype.type(1)
    ridge = weights.dtype.type(np.finfo(weights.dtype).eps)
    for k in range(n - 1):
        for t in range(LANES):
            weights[k * n + n - 1, t] += ridge * row[k, t]
    for k in range(n - 1):
        for t in range(LANES):
            total = weights[k * n + n - 1, t]
            for i in range(k + 1, n - 1):
                total += weights[k * n + i, t]
            weights[k * n + k, t] = one / total
        for i in range(k + 1, n - 1):
            for t in range(LANES):
                factor = weights[k * n + i, t] * weights[k * n + k, t]
                u[i, t] += factor * u[k, t]
                for l in range(i + 1, n):
                    weights[i * n + l, t] += factor * weights[k * n + l, t]
    for t in range(LANES):
        u[n - 1, t] = 0
    for back in range(n - 1):
        k = n - 2 - back
        for t in range(LANES):
            total = u[k, t]
            for i in range(k + 1, n - 1):
                total += weights[k * n + i, t] * u[i, t]
            u[k, t] = total * weights[k * n + k, t]
