"""Elimination of a chain of layers on a CPU: both sweeps of eight points at a time, real and imaginary parts apart."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from jpmhc.kernels import pool
from jpmhc.kernels.bodies import body
from jpmhc.kernels.cpu.arrays import array_of
from jpmhc.kernels.cpu.compile import compiled, part

LANES = 8
_WORTH = 3  # a law takes hundreds of calls, the reference a millisecond for so many layers, compiling eight seconds


def _few(mixers: Tensor, *_: Tensor) -> str | None:
    # Not by the number of points: a solver calls with all of them and with the last ones.
    return f"fewer than {_WORTH} layers" if len(mixers) < _WORTH else None


@body((torch.float64,), None, _few)
def chain_sweeps(
    mixers: Tensor, read: Tensor, write: Tensor, w: Tensor, s: Tensor, t: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Run `_sweeps` over all points."""
    return _run(_sweeps, sum(read.shape), mixers, read, write, w, s, t)


@body((torch.float64,), None, _few)
def noisy_chain_sweeps(mixers: Tensor, w: Tensor, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Run `_noisy` over all points."""
    L, m = mixers.shape[:2]
    return _run(_noisy, (L + 1) * m, mixers, w, s, t)


def _run(function: Callable[..., None], pivots: int, *given: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    w, s, _ = given[-3:]
    result = (torch.empty_like(w), torch.empty_like(s), torch.empty_like(s), w.new_empty(len(w), pivots, 2))
    arrays = [array_of(tensor) for tensor in given]
    pool.run(function, pool.split(len(w), LANES), *arrays, *(tensor.numpy() for tensor in result))
    return result


@compiled
def _sweeps(mixers, read, write, w, s, t, g, gx, gy, pivots, start, stop):  # type: ignore[no-untyped-def]
    L, m = read.shape
    state = np.empty((2, m, m, LANES))  # C on the way there, K on the way back
    work = np.empty((2, m, m, LANES))
    columns = np.empty((L, 2, m, LANES))
    reads = np.empty((L, 2, LANES))
    inverses = np.empty((L, 2, LANES))  # one over the pivot
    shares = np.empty((L, 2, LANES))  # s over the pivot
    met = np.empty((2, m, LANES))
    rest = np.empty((m, 2, LANES))
    inverse = np.empty((2, LANES))  # one over w
    a = np.empty((2, LANES))
    b = np.empty((2, LANES))
    for base in range(start, stop, LANES):
        count = min(LANES, stop - base)
        _start(w, state, inverse, base, stop, m)
        for l in range(L):
            column = columns[l]
            seen = reads[l]
            over = inverses[l]
            share = shares[l]
            for k in range(LANES):
                point = min(base + k, stop - 1)
                a[0, k], a[1, k] = s[point, l, 0], s[point, l, 1]
                b[0, k], b[1, k] = t[point, l, 0], t[point, l, 1]
                seen[0, k] = 0.0
                seen[1, k] = 0.0
            for c in range(2):
                for i in range(m):
                    for k in range(LANES):
                        total = 0.0
                        for j in range(m):
                            total += read[l, j] * state[c, i, j, k]
                        column[c, i, k] = total
                        seen[c, k] += read[l, i] * total
            for k in range(LANES):
                real = 1.0 - a[0, k] * seen[0, k] + a[1, k] * seen[1, k]
                imaginary = -a[0, k] * seen[1, k] - a[1, k] * seen[0, k]
                size = real * real + imaginary * imaginary
                over[0, k] = real / size
                over[1, k] = -imaginary / size
                share[0, k] = a[0, k] * over[0, k] - a[1, k] * over[1, k]
                share[1, k] = a[0, k] * over[1, k] + a[1, k] * over[0, k]
                a[0, k] = real
                a[1, k] = imaginary
            for k in range(count):
                pivots[base + k, l, 0] = a[0, k]
                pivots[base + k, l, 1] = a[1, k]
            for i in range(m):
                for k in range(LANES):
                    met[0, i, k] = share[0, k] * column[0, i, k] - share[1, k] * column[1, i, k]
                    met[1, i, k] = share[0, k] * column[1, i, k] + share[1, k] * column[0, i, k]
            for i in range(m):
                for j in range(m):
                    for k in range(LANES):
                        state[0, i, j, k] += met[0, i, k] * column[0, j, k] - met[1, i, k] * column[1, j, k]
                        state[1, i, j, k] += met[0, i, k] * column[1, j, k] + met[1, i, k] * column[0, j, k]
            _congruent(mixers[l], state, work, m)
            for i in range(m):
                for j in range(m):
                    square = write[l, i] * write[l, j]
                    for k in range(LANES):
                        state[0, i, j, k] += square * b[0, k]
                        state[1, i, j, k] += square * b[1, k]
        _turn(state, inverse, work, rest, m)
        for k in range(count):
            for i in range(m):
                pivots[base + k, L + i, 0] = rest[i, 0, k]
                pivots[base + k, L + i, 1] = rest[i, 1, k]
        for l in range(L - 1, -1, -1):
            column = columns[l]
            seen = reads[l]
            over = inverses[l]
            share = shares[l]
            for c in range(2):
                for k in range(LANES):
                    a[c, k] = 0.0
                for i in range(m):
                    for j in range(m):
                        square = write[l, i] * write[l, j]
                        for k in range(LANES):
                            a[c, k] += square * state[c, i, j, k]
            for k in range(count):
                gx[base + k, l, 0] = a[0, k]
                gx[base + k, l, 1] = a[1, k]
            _congruent(mixers[l].T, state, work, m)
            for k in range(LANES):
                a[0, k] = 0.0
                a[1, k] = 0.0
            for i in range(m):
                for k in range(LANES):
                    real = 0.0
                    imaginary = 0.0
                    for j in range(m):
                        real += state[0, i, j, k] * column[0, j, k] - state[1, i, j, k] * column[1, j, k]
                        imaginary += state[0, i, j, k] * column[1, j, k] + state[1, i, j, k] * column[0, j, k]
                    met[0, i, k] = real
                    met[1, i, k] = imaginary
                    a[0, k] += column[0, i, k] * real - column[1, i, k] * imaginary
                    a[1, k] += column[0, i, k] * imaginary + column[1, i, k] * real
            for k in range(LANES):
                real = over[0, k]
                imaginary = over[1, k]
                x = seen[0, k] + a[0, k] * real - a[1, k] * imaginary
                y = seen[1, k] + a[0, k] * imaginary + a[1, k] * real
                b[0, k] = x * real - y * imaginary
                b[1, k] = x * imaginary + y * real
            for k in range(count):
                gy[base + k, l, 0] = b[0, k]
                gy[base + k, l, 1] = b[1, k]
            # Half of share (1 + share a), what the read adds to its own square; twice share met to the rest.
            for k in range(LANES):
                real = 1.0 + share[0, k] * a[0, k] - share[1, k] * a[1, k]
                imaginary = share[0, k] * a[1, k] + share[1, k] * a[0, k]
                b[0, k] = 0.5 * (share[0, k] * real - share[1, k] * imaginary)
                b[1, k] = 0.5 * (share[0, k] * imaginary + share[1, k] * real)
            for i in range(m):
                for k in range(LANES):
                    real = share[0, k] * met[0, i, k] - share[1, k] * met[1, i, k]
                    imaginary = share[0, k] * met[1, i, k] + share[1, k] * met[0, i, k]
                    met[0, i, k] = real + b[0, k] * read[l, i]
                    met[1, i, k] = imaginary + b[1, k] * read[l, i]
            for c in range(2):
                for i in range(m):
                    for j in range(m):
                        for k in range(LANES):
                            state[c, i, j, k] += read[l, i] * met[c, j, k] + met[c, i, k] * read[l, j]
        _finish(state, inverse, g, base, count, m)


@compiled
def _noisy(mixers, w, s, t, g, gx, gy, pivots, start, stop):  # type: ignore[no-untyped-def]
    L, m = mixers.shape[0], mixers.shape[1]
    state = np.empty((2, m, m, LANES))  # C on the way there, K on the way back
    work = np.empty((2, m, m, LANES))
    factors = np.empty((L, 2, m, m, LANES))
    seen = np.empty((L, 2, m, m, LANES))
    rest = np.empty((m, 2, LANES))
    inverse = np.empty((2, LANES))  # one over w
    a = np.empty((2, LANES))
    for base in range(start, stop, LANES):
        count = min(LANES, stop - base)
        _start(w, state, inverse, base, stop, m)
        for l in range(L):
            factor = factors[l]
            for k in range(LANES):
                point = min(base + k, stop - 1)
                a[0, k], a[1, k] = s[point, l, 0], s[point, l, 1]
            for i in range(m):
                for j in range(m):
                    for k in range(LANES):
                        one = 1.0 if i == j else 0.0
                        factor[0, i, j, k] = one - a[0, k] * state[0, i, j, k] + a[1, k] * state[1, i, j, k]
                        factor[1, i, j, k] = -a[0, k] * state[1, i, j, k] - a[1, k] * state[0, i, j, k]
            _invert(factor, work, rest, m)
            for k in range(count):
                for i in range(m):
                    pivots[base + k, l * m + i, 0] = rest[i, 0, k]
                    pivots[base + k, l * m + i, 1] = rest[i, 1, k]
            _product(factor, state, work, m)
            _symmetric(work, seen[l], m)
            for c in range(2):
                for i in range(m):
                    for j in range(m):
                        for k in range(LANES):
                            state[c, i, j, k] = seen[l, c, i, j, k]
            _congruent(mixers[l], state, work, m)
            for i in range(m):
                for k in range(LANES):
                    point = min(base + k, stop - 1)
                    state[0, i, i, k] += t[point, l, 0]
                    state[1, i, i, k] += t[point, l, 1]
        _turn(state, inverse, work, rest, m)
        for k in range(count):
            for i in range(m):
                pivots[base + k, L * m + i, 0] = rest[i, 0, k]
                pivots[base + k, L * m + i, 1] = rest[i, 1, k]
        for l in range(L - 1, -1, -1):
            for k in range(count):
                gx[base + k, l, 0] = 0.0
                gx[base + k, l, 1] = 0.0
                gy[base + k, l, 0] = 0.0
                gy[base + k, l, 1] = 0.0
                for c in range(2):
                    for i in range(m):
                        gx[base + k, l, c] += state[c, i, i, k] / m
            _congruent(mixers[l].T, state, work, m)
            _product(seen[l], state, work, m)
            for k in range(count):
                for i in range(m):
                    real = seen[l, 0, i, i, k]
                    imaginary = seen[l, 1, i, i, k]
                    for j in range(m):
                        real += work[0, i, j, k] * seen[l, 0, i, j, k] - work[1, i, j, k] * seen[l, 1, i, j, k]
                        imaginary += work[0, i, j, k] * seen[l, 1, i, j, k] + work[1, i, j, k] * seen[l, 0, i, j, k]
                    gy[base + k, l, 0] += real / m
                    gy[base + k, l, 1] += imaginary / m
            # K = F K F + s F, with the symmetric F = (I - s C)^-1.
            factor = factors[l]
            _product(factor, state, work, m)
            for k in range(LANES):
                point = min(base + k, stop - 1)
                a[0, k], a[1, k] = s[point, l, 0], s[point, l, 1]
            for i in range(m):
                for k in range(LANES):
                    work[0, i, i, k] += a[0, k]
                    work[1, i, i, k] += a[1, k]
            _product(work, factor, state, m)
            _symmetric(state, state, m)
        _finish(state, inverse, g, base, count, m)


@part
def _start(w, state, inverse, base, stop, m):  # type: ignore[no-untyped-def]
    """Fill the lanes' ``1 / w`` and the covariance before all layers; beyond `stop` the last point is repeated."""
    for k in range(LANES):
        point = min(base + k, stop - 1)
        size = w[point, 0] * w[point, 0] + w[point, 1] * w[point, 1]
        inverse[0, k] = w[point, 0] / size
        inverse[1, k] = -w[point, 1] / size
    for i in range(m):
        for j in range(m):
            for k in range(LANES):
                state[0, i, j, k] = inverse[0, k] if i == j else 0.0
                state[1, i, j, k] = inverse[1, k] if i == j else 0.0


@part
def _turn(state, inverse, work, pivots, m):  # type: ignore[no-untyped-def]
    """Replace C behind all layers by ``K = (I - C / w)^-1 / w``, with its pivots."""
    for i in range(m):
        for j in range(m):
            for k in range(LANES):
                x = state[0, i, j, k]
                y = state[1, i, j, k]
                state[0, i, j, k] = (1.0 if i == j else 0.0) - x * inverse[0, k] + y * inverse[1, k]
                state[1, i, j, k] = -x * inverse[1, k] - y * inverse[0, k]
    _invert(state, work, pivots, m)
    for i in range(m):
        for j in range(m):
            for k in range(LANES):
                x = state[0, i, j, k]
                y = state[1, i, j, k]
                state[0, i, j, k] = x * inverse[0, k] - y * inverse[1, k]
                state[1, i, j, k] = x * inverse[1, k] + y * inverse[0, k]


@part
def _finish(state, inverse, g, base, count, m):  # type: ignore[no-untyped-def]
    """Store ``g = (1 + tr K / (m w)) / w``."""
    for k in range(count):
        over = complex(inverse[0, k], inverse[1, k])
        trace = complex(0.0, 0.0)
        for i in range(m):
            trace += complex(state[0, i, i, k], state[1, i, i, k])
        found = (1.0 + trace * over / m) * over
        g[base + k, 0] = found.real
        g[base + k, 1] = found.imag


@part
def _product(left, right, out, m):  # type: ignore[no-untyped-def]
    for i in range(m):
        for j in range(m):
            for k in range(LANES):
                real = 0.0
                imaginary = 0.0
                for h in range(m):
                    real += left[0, i, h, k] * right[0, h, j, k] - left[1, i, h, k] * right[1, h, j, k]
                    imaginary += left[0, i, h, k] * right[1, h, j, k] + left[1, i, h, k] * right[0, h, j, k]
                out[0, i, j, k] = real
                out[1, i, j, k] = imaginary


@part
def _symmetric(matrix, out, m):  # type: ignore[no-untyped-def]
    """Symmetric to round-off only; the recursion amplifies what is not."""
    for c in range(2):
        for i in range(m):
            for j in range(i + 1):
                for k in range(LANES):
                    mean = 0.5 * (matrix[c, i, j, k] + matrix[c, j, i, k])
                    out[c, i, j, k] = mean
                    out[c, j, i, k] = mean


@part
def _congruent(matrix, state, work, m):  # type: ignore[no-untyped-def]
    """Replace a symmetric X by ``A X A^T``."""
    for c in range(2):
        for i in range(m):
            for j in range(m):
                for k in range(LANES):
                    total = 0.0
                    for h in range(m):
                        total += matrix[i, h] * state[c, h, j, k]
                    work[c, i, j, k] = total
        for i in range(m):
            for j in range(i + 1):
                for k in range(LANES):
                    total = 0.0
                    for h in range(m):
                        total += work[c, i, h, k] * matrix[j, h]
                    state[c, i, j, k] = total
                    state[c, j, i, k] = total


@part
def _invert(state, triangle, pivots, m):  # type: ignore[no-untyped-def]
    """Replace a symmetric A by its inverse ``T^T D^-1 T``, with D the pivots of an elimination without exchanges.

    They stay in one half-plane with the numerical range of A, so their logarithms add up. One symmetric form for all
    columns keeps K q exact where A has large and small values, next to an atom; solving for columns loses it.
    """
    for i in range(m):
        for j in range(m):
            for k in range(LANES):
                triangle[0, i, j, k] = 1.0 if i == j else 0.0
                triangle[1, i, j, k] = 0.0
    for p in range(m):
        for k in range(LANES):
            pivots[p, 0, k] = state[0, p, p, k]
            pivots[p, 1, k] = state[1, p, p, k]
        for i in range(p + 1, m):
            for k in range(LANES):
                x = pivots[p, 0, k]
                y = pivots[p, 1, k]
                size = x * x + y * y
                real = (state[0, i, p, k] * x + state[1, i, p, k] * y) / size
                imaginary = (state[1, i, p, k] * x - state[0, i, p, k] * y) / size
                for j in range(p + 1, m):
                    state[0, i, j, k] -= real * state[0, p, j, k] - imaginary * state[1, p, j, k]
                    state[1, i, j, k] -= real * state[1, p, j, k] + imaginary * state[0, p, j, k]
                for j in range(p + 1):
                    triangle[0, i, j, k] -= real * triangle[0, p, j, k] - imaginary * triangle[1, p, j, k]
                    triangle[1, i, j, k] -= real * triangle[1, p, j, k] + imaginary * triangle[0, p, j, k]
    for i in range(m):
        for j in range(i + 1):
            for k in range(LANES):
                state[0, i, j, k] = 0.0
                state[1, i, j, k] = 0.0
            for p in range(i, m):
                for k in range(LANES):
                    x = pivots[p, 0, k]
                    y = pivots[p, 1, k]
                    size = x * x + y * y
                    u = (triangle[0, p, i, k] * x + triangle[1, p, i, k] * y) / size
                    v = (triangle[1, p, i, k] * x - triangle[0, p, i, k] * y) / size
                    state[0, i, j, k] += u * triangle[0, p, j, k] - v * triangle[1, p, j, k]
                    state[1, i, j, k] += u * triangle[1, p, j, k] + v * triangle[0, p, j, k]
            for k in range(LANES):
                state[0, j, i, k] = state[0, i, j, k]
                state[1, j, i, k] = state[1, i, j, k]
