"""Products and inverses of matrices in tiles; `rows`, `inner` and `columns` are extents."""

from __future__ import annotations

from jpmhc.kernels.cpu.compile import part
from jpmhc.kernels.cpu.tiles import LANES


@part
def product(a, b, c, rows, inner, columns):  # type: ignore[no-untyped-def]
    """``c = a b``."""
    n, q, m = len(rows), len(inner), len(columns)
    for i in range(n):
        for j in range(m):
            for t in range(LANES):
                total = a[i * q, t] * b[j, t]
                for k in range(1, q):
                    total += a[i * q + k, t] * b[k * m + j, t]
                c[i * m + j, t] = total


@part
def gram(a, b, c, inner, rows, columns):  # type: ignore[no-untyped-def]
    """``c = a^T b``."""
    q, n, m = len(inner), len(rows), len(columns)
    for i in range(n):
        for j in range(m):
            for t in range(LANES):
                total = a[i, t] * b[j, t]
                for k in range(1, q):
                    total += a[k * n + i, t] * b[k * m + j, t]
                c[i * m + j, t] = total


@part
def product_transposed(a, b, c, rows, inner, columns):  # type: ignore[no-untyped-def]
    """``c = a b^T``."""
    n, q, m = len(rows), len(inner), len(columns)
    for i in range(n):
        for j in range(m):
            for t in range(LANES):
                total = a[i * q, t] * b[j * q, t]
                for k in range(1, q):
                    total += a[i * q + k, t] * b[j * q + k, t]
                c[i * m + j, t] = total


@part
def combine(alpha, a, beta, b, c):  # type: ignore[no-untyped-def]
    """``c = alpha a + beta b``."""
    for k in range(a.shape[0]):
        for t in range(LANES):
            c[k, t] = alpha * a[k, t] + beta * b[k, t]


@part
def combine_transposed(alpha, a, beta, c, size):  # type: ignore[no-untyped-def]
    """``c = alpha a + beta a^T``."""
    n = len(size)
    for i in range(n):
        for j in range(n):
            for t in range(LANES):
                c[i * n + j, t] = alpha * a[i * n + j, t] + beta * a[j * n + i, t]


@part
def invert(m, size):  # type: ignore[no-untyped-def]
    """Invert in place by Gauss and Jordan without pivots: for matrices whose symmetric part is positive definite."""
    p = len(size)
    for k in range(p):
        for t in range(LANES):
            m[k * p + k, t] = 1 / m[k * p + k, t]
        for j in range(p):
            if j != k:
                for t in range(LANES):
                    m[k * p + j, t] *= m[k * p + k, t]
        for i in range(p):
            if i != k:
                for j in range(p):
                    if j != k:
                        for t in range(LANES):
                            m[i * p + j, t] -= m[i * p + k, t] * m[k * p + j, t]
                for t in range(LANES):
                    m[i * p + k, t] *= -m[k * p + k, t]


@part
def invert_one_minus_skew(b, result, size):  # type: ignore[no-untyped-def]
    """``(I - B)^-1 = ((1 + s) I + B + B^2 + pf D) / (1 + s + pf^2)`` of a skew B up to 4 x 4, with its dual D.

    Here s is the sum of squares above the diagonal and pf the Pfaffian, 0 below 4 x 4.
    """
    n = len(size)
    one = b.dtype.type(1)
    product(b, b, result, size, size, size)
    for t in range(LANES):
        s = one
        for i in range(n):
            for j in range(i + 1, n):
                s += b[i * n + j, t] * b[i * n + j, t]
        for k in range(n * n):
            result[k, t] += b[k, t]
        for i in range(n):
            result[i * n + i, t] += s
        if n == 4:
            pf = b[1, t] * b[11, t] - b[2, t] * b[7, t] + b[3, t] * b[6, t]
            s += pf * pf
            for i, j, k, turns in ((0, 1, 11, 0), (0, 2, 7, 1), (0, 3, 6, 0), (1, 2, 3, 0), (1, 3, 2, 1), (2, 3, 1, 0)):
                value = -pf * b[k, t] if turns else pf * b[k, t]
                result[i * n + j, t] += value
                result[j * n + i, t] -= value
        s = one / s
        for k in range(n * n):
            result[k, t] *= s


@part
def polish(y, square, result, rows, columns):  # type: ignore[no-untyped-def]
    """``y (3 I - y^T y) / 2``; `square` is scratch."""
    p = len(columns)
    half = y.dtype.type(0.5)
    gram(y, y, square, rows, columns, columns)
    for i in range(p):
        for j in range(p):
            for t in range(LANES):
                square[i * p + j, t] = (3 * half if i == j else half - half) - half * square[i * p + j, t]
    product(y, square, result, rows, columns, columns)
