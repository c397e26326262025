"""Products of small matrices, many of them side by side, in bodies that serve matrices of any small size.

A tile has the shape (rows, columns, lanes), one matrix a lane. The innermost loop runs over the lanes of rows that are
taken out of the tile first: this is the form in which LLVM uses the processor's vectors without knowing the sizes, so
one compiled version serves all of them (measured: four times faster than indexing the tile inside that loop). Taking a
row out costs as much as 32 lanes of arithmetic, hence the many lanes.
"""

from __future__ import annotations

import numpy as np

from jpmhc.kernels.cpu.compile import compiled

_NUMBERS = 2048  # of a tile: several of them stay in the first two caches


def lanes(count: int, numbers: int) -> int:
    """Return how many of `count` matrices of so many numbers share a tile, a multiple of 16."""
    return 16 * max(1, min(_NUMBERS // (16 * numbers), -(-count // 16)))


@compiled
def load_tile(source, tile, base, stop):  # type: ignore[no-untyped-def]
    """Copy matrices from `base` on, shape (tokens, n, m), to a tile; beyond `stop` the last one is repeated."""
    _, n, m = source.shape
    width = tile.shape[2]
    count = min(width, stop - base)
    for i in range(n):
        for j in range(m):
            row = tile[i, j]
            for t in range(count):
                row[t] = source[base + t, i, j]
            row[count:] = row[count - 1]


@compiled
def store_tile(target, tile, base, stop):  # type: ignore[no-untyped-def]
    """Copy a tile back to the matrices from `base` on, as far as `stop`."""
    _, n, m = target.shape
    count = min(tile.shape[2], stop - base)
    for i in range(n):
        for j in range(m):
            row = tile[i, j]
            for t in range(count):
                target[base + t, i, j] = row[t]


@compiled
def product(a, b, c):  # type: ignore[no-untyped-def]
    """``c = a b``."""
    n, q, _ = a.shape
    for i in range(n):
        for j in range(b.shape[1]):
            target = c[i, j]
            target[:] = 0
            k = 0
            while k + 4 <= q:
                a0, a1, a2, a3 = a[i, k], a[i, k + 1], a[i, k + 2], a[i, k + 3]
                b0, b1, b2, b3 = b[k, j], b[k + 1, j], b[k + 2, j], b[k + 3, j]
                for t in range(target.size):
                    target[t] += a0[t] * b0[t] + a1[t] * b1[t] + a2[t] * b2[t] + a3[t] * b3[t]
                k += 4
            while k < q:
                a0, b0 = a[i, k], b[k, j]
                for t in range(target.size):
                    target[t] += a0[t] * b0[t]
                k += 1


@compiled
def gram(a, b, c):  # type: ignore[no-untyped-def]
    """``c = a^T b``."""
    q, n, _ = a.shape
    for i in range(n):
        for j in range(b.shape[1]):
            target = c[i, j]
            target[:] = 0
            k = 0
            while k + 4 <= q:
                a0, a1, a2, a3 = a[k, i], a[k + 1, i], a[k + 2, i], a[k + 3, i]
                b0, b1, b2, b3 = b[k, j], b[k + 1, j], b[k + 2, j], b[k + 3, j]
                for t in range(target.size):
                    target[t] += a0[t] * b0[t] + a1[t] * b1[t] + a2[t] * b2[t] + a3[t] * b3[t]
                k += 4
            while k < q:
                a0, b0 = a[k, i], b[k, j]
                for t in range(target.size):
                    target[t] += a0[t] * b0[t]
                k += 1


@compiled
def combine(alpha, a, beta, b, c):  # type: ignore[no-untyped-def]
    """``c = alpha a + beta b``."""
    n, m, _ = a.shape
    for i in range(n):
        for j in range(m):
            x, y, z = a[i, j], b[i, j], c[i, j]
            for t in range(z.size):
                z[t] = alpha * x[t] + beta * y[t]


@compiled
def combine_transposed(alpha, a, beta, c):  # type: ignore[no-untyped-def]
    """``c = alpha a + beta a^T``, square."""
    n, _, _ = a.shape
    for i in range(n):
        for j in range(n):
            x, y, z = a[i, j], a[j, i], c[i, j]
            for t in range(z.size):
                z[t] = alpha * x[t] + beta * y[t]


@compiled
def add_to_diagonal(a, value):  # type: ignore[no-untyped-def]
    """Add a multiple of the identity, in place."""
    for i in range(a.shape[0]):
        x = a[i, i]
        for t in range(x.size):
            x[t] += value


@compiled
def invert(m):  # type: ignore[no-untyped-def]
    """Invert in place by Gauss and Jordan without pivots: for matrices whose symmetric part is positive definite."""
    p = m.shape[0]
    for k in range(p):
        pivot = m[k, k]
        for t in range(pivot.size):
            pivot[t] = 1 / pivot[t]
        for j in range(p):
            if j != k:
                row = m[k, j]
                for t in range(row.size):
                    row[t] *= pivot[t]
        for i in range(p):
            if i != k:
                factor = m[i, k]
                for j in range(p):
                    if j != k:
                        row, target = m[k, j], m[i, j]
                        for t in range(target.size):
                            target[t] -= factor[t] * row[t]
                for t in range(factor.size):
                    factor[t] = -factor[t] * pivot[t]


@compiled
def polish(y, square, result):  # type: ignore[no-untyped-def]
    """``y (3 I - y^T y) / 2``; `square` is scratch."""
    gram(y, y, square)
    for i in range(square.shape[0]):
        for j in range(square.shape[0]):
            x = square[i, j]
            for t in range(x.size):
                x[t] *= y.dtype.type(-0.5)
    add_to_diagonal(square, y.dtype.type(1.5))
    product(y, square, result)


@compiled
def largest(m, result):  # type: ignore[no-untyped-def]
    """Largest absolute entry of each matrix; NaN where there is one."""
    n, p, _ = m.shape
    result[:] = 0
    for i in range(n):
        for j in range(p):
            x = m[i, j]
            for t in range(x.size):
                size = abs(x[t])
                result[t] = result[t] if result[t] > size else size


@compiled
def scratch(n, m, width, like):  # type: ignore[no-untyped-def]
    """Return a tile for n x m matrices of the dtype of an array."""
    return np.empty((n, m, width), like.dtype)
