"""Sinkhorn scaling of one matrix at a time; the steps are those of `jpmhc.kernels.cpu.scaling`."""

from __future__ import annotations

import numpy as np

from jpmhc.kernels.cpu.compile import part, summing, summing_part
from jpmhc.kernels.cpu.tiles import exp
from jpmhc.kernels.sinkhorn import FIRST_SWEEPS

_FAR_FROM_UNDERFLOW = float(np.sqrt(np.finfo(np.float64).tiny))


@summing
def forward(logits, result, eps, tol, max_steps):  # type: ignore[no-untyped-def]
    """Sweep and step; return a mask of the matrices that came near to underflow and are not finished here."""
    tokens, n, m = logits.shape
    p, u, v, weights, again = np.empty((n, m)), np.empty(n), np.empty(m), np.empty((n, n)), np.empty(tokens, np.bool_)
    for t in range(tokens):
        _swept_once(logits, t, p, u, v)
        _scale(p, u, v, FIRST_SWEEPS - 1)
        again[t] = not _far_from_underflow(p)
        if not again[t]:
            _balance(p, weights, u, eps, tol, max_steps)
        _store(p, result, t, 0.0)
    return again


@summing
def sweeps(logits, result, _eps, iterations):  # type: ignore[no-untyped-def]
    """Sweep so many times."""
    tokens, n, m = logits.shape
    p, u, v = np.empty((n, m)), np.empty(n), np.empty(m)
    for t in range(tokens):
        _swept_once(logits, t, p, u, v)
        _scale(p, u, v, iterations - 1)
        _store(p, result, t, 0.0)


@summing
def retraction(x, along, result, eps, root, least, tol, max_steps):  # type: ignore[no-untyped-def]
    """Move, sweep and step; return a mask of what came near to overflow or underflow and is not finished here."""
    tokens, n, m = x.shape
    p, u, v, weights, again = np.empty((n, m)), np.empty(n), np.empty(m), np.empty((n, n)), np.empty(tokens, np.bool_)
    for t in range(tokens):
        far = True
        for i in range(n):
            for j in range(m):
                start, ratio = max(np.float64(x[t, i, j]), least), np.float64(along[t, i, j]) / x[t, i, j]
                if root:
                    bent = _bent(ratio / 2)
                    value = start * bent * bent
                else:
                    value = start * _exponential(ratio)
                far &= _FAR_FROM_UNDERFLOW < value < 1 / _FAR_FROM_UNDERFLOW
                p[i, j] = value
        _scale(p, u, v, FIRST_SWEEPS)
        again[t] = not (far and _far_from_underflow(p))
        if not again[t]:
            _balance(p, weights, u, eps, tol, max_steps)
        _store(p, result, t, least)
    return again


@summing
def potentials(matrix, other, result, eps, weighted, times):  # type: ignore[no-untyped-def]
    """Solve for the potentials W of ``H = P * other`` (`weighted`) or of ``H = other``.

    The result is W, or H from which ``P * W`` has been taken so many times, each time with the W of what is left.
    """
    tokens, n, m = matrix.shape
    p, h, conditional, weights = np.empty((n, m)), np.empty((n, m)), np.empty((n, m)), np.empty((n, n))
    u, row, wanted = np.empty(n), np.empty(n), np.empty(m)
    for t in range(tokens):
        for i in range(n):
            for j in range(m):
                p[i, j] = matrix[t, i, j]
                h[i, j] = other[t, i, j] * (p[i, j] if weighted else 1.0)
        for _ in range(max(times, 1)):
            for j in range(m):
                total, column = 0.0, 0.0
                for i in range(n):
                    total += h[i, j]
                    column += p[i, j]
                wanted[j] = total / column
                for i in range(n):
                    conditional[i, j] = p[i, j] / column
            for i in range(n):
                total, mass = 0.0, 0.0
                for j in range(m):
                    total += h[i, j] - p[i, j] * wanted[j]
                    mass += p[i, j]
                u[i], row[i] = total, mass
            _solve(p, conditional, weights, u, row, eps)
            for j in range(m):
                v = wanted[j]
                for i in range(n):
                    v -= conditional[i, j] * u[i]
                for i in range(n):
                    w = u[i] + v
                    h[i, j] = h[i, j] - p[i, j] * w if times else w
        _store(h, result, t, -np.inf)


@part
def _exponential(x):  # type: ignore[no-untyped-def]
    return exp(x)  # which rounds by a sum: with sums reordered it would be wrong


@summing_part
def _store(p, result, t, least):  # type: ignore[no-untyped-def]
    for i in range(p.shape[0]):
        for j in range(p.shape[1]):
            result[t, i, j] = least if p[i, j] < least else p[i, j]


@summing_part
def _swept_once(logits, t, p, u, v):  # type: ignore[no-untyped-def]
    """Take a maximum out of every row, then of every column, so that no sum underflows."""
    n, m = p.shape
    for i in range(n):
        top = np.float64(logits[t, i, 0])
        for j in range(1, m):
            top = max(top, np.float64(logits[t, i, j]))
        total = 0.0
        for j in range(m):
            p[i, j] = logits[t, i, j] - top
            total += _exponential(p[i, j])
        u[i] = 1 / total
    v[:] = -np.inf
    for i in range(n):
        for j in range(m):
            v[j] = max(v[j], p[i, j])
    for i in range(n):
        for j in range(m):
            p[i, j] = _exponential(p[i, j] - v[j]) * u[i]
    v[:] = 0
    for i in range(n):
        for j in range(m):
            v[j] += p[i, j]
    _scale_columns(p, v)


@summing_part
def _scale_columns(p, v):  # type: ignore[no-untyped-def]
    """Scale columns whose sums are v; v becomes their scales."""
    n, m = p.shape
    for j in range(m):
        v[j] = n / m / v[j]
    for i in range(n):
        for j in range(m):
            p[i, j] *= v[j]


@summing_part
def _scale(p, u, v, times):  # type: ignore[no-untyped-def]
    """Sweep so many times, rows first."""
    n, m = p.shape
    for _ in range(times):
        v[:] = 0
        for i in range(n):
            total = 0.0
            for j in range(m):
                total += p[i, j]
            total = 1 / total
            for j in range(m):
                p[i, j] *= total
                v[j] += p[i, j]
        _scale_columns(p, v)


@summing_part
def _far_from_underflow(p):  # type: ignore[no-untyped-def]
    far = True
    for i in range(p.shape[0]):
        for j in range(p.shape[1]):
            far &= p[i, j] > _FAR_FROM_UNDERFLOW
    return far


@summing_part
def _bent(away):  # type: ignore[no-untyped-def]
    """Return the function of `jpmhc.kernels.retraction` at ``1 + away``."""
    w, square = 1 + away, away * away
    q = square / (1 + square)
    q *= q
    size = np.sqrt(w * w + q)
    return (w + size) / 2 if w > 0 else q / (2 * (size - w))


@summing_part
def _balance(p, weights, u, eps, tol, max_steps):  # type: ignore[no-untyped-def]
    """Take Newton's steps of the reference; the column sums of p are right."""
    n, m = p.shape
    row = np.ones(n)
    conditional = np.empty((n, m))
    for _ in range(max_steps):
        error = 0.0
        for i in range(n):
            total = 0.0
            for j in range(m):
                total += p[i, j]
                conditional[i, j] = p[i, j] * m / n
            u[i] = 1 - total
            error = max(error, abs(u[i]))
        _solve(p, conditional, weights, u, row, eps)
        low = high = u[0]
        for i in range(1, n):
            low, high = min(low, u[i]), max(high, u[i])
        span = high - low
        length = np.log1p(span) / span if span > 0 else 1.0
        for i in range(n):
            u[i] = _exponential(length * u[i])
        for j in range(m):
            total = 0.0
            for i in range(n):
                p[i, j] *= u[i]
                total += p[i, j]
            for i in range(n):
                p[i, j] *= n / m / total
        # A step of span M < 1 leaves at most M times the error.
        if not min(span, 1.0) * error > tol:
            break


@summing_part
def _solve(p, conditional, weights, u, row, eps):  # type: ignore[no-untyped-def]
    """Replace the right side u by the solution, whose last number is zero; see `kernels.sinkhorn_potentials`."""
    n, m = p.shape
    for i in range(n - 1):
        for k in range(i + 1, n):
            total = 0.0
            for j in range(m):
                total += p[i, j] * conditional[k, j]
            weights[i, k] = total
        weights[i, n - 1] += eps * row[i]
    for k in range(n - 1):
        total = 0.0
        for i in range(k + 1, n):
            total += weights[k, i]
        weights[k, k] = total
        for i in range(k + 1, n - 1):
            factor = weights[k, i] / total
            u[i] += factor * u[k]
            for l in range(i + 1, n):
                weights[i, l] += factor * weights[k, l]
    u[n - 1] = 0
    for back in range(n - 1):
        k = n - 2 - back
        total = u[k]
        for i in range(k + 1, n - 1):
            total += weights[k, i] * u[i]
        u[k] = total / weights[k, k]
