"""Cayley transform on a CPU: a product of two quaternions or an inverse, and the products of the adjoint, in a tile."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from jpmhc.kernels import cayley as reference
from jpmhc.kernels import pool
from jpmhc.kernels.bodies import body
from jpmhc.kernels.cpu.compile import compiled, part
from jpmhc.kernels.cpu.products import combine_transposed, gram, invert, polish, product_transposed
from jpmhc.kernels.cpu.quaternion import turn
from jpmhc.kernels.cpu.single import columns as single
from jpmhc.kernels.cpu.single import one_by_one
from jpmhc.kernels.cpu.tiles import DTYPES, GRAIN, LANES, extent, few, load, numbers, store
from jpmhc.kernels.shapes import small_square

# Entries from which on elimination without pivots, which loses their square, is left to the reference.
_STEEP = {torch.float32: 3e4, torch.float64: 1e3}


@body(DTYPES, small_square)
def cayley_forward(raw: Tensor, step: float) -> Tensor:
    """Run `_turned`, `_inverted` or the loop for few tokens, and after the last two the reference for large entries."""
    n = raw.shape[-1]
    limit = _STEEP[raw.dtype]
    if few(raw):
        result, steep = one_by_one(single.cayley, (raw,), float(step) / 2, limit)
    else:
        result = raw.new_empty(raw.shape)
        source, target = numbers(raw, n * n), numbers(result, n * n)
        ranges, half_step = pool.split(len(source), GRAIN), source.dtype.type(step / 2)
        if n <= 4:
            pool.run(_turned, ranges, source, target, extent(n), half_step)
            return result
        steep = np.zeros(len(source), np.bool_)
        pool.run(_inverted, ranges, source, target, steep, limit, extent(n), half_step)
    if np.count_nonzero(steep):  # a fifth of the time of any()
        chosen = torch.from_numpy(steep).view(raw.shape[:-2])
        result[chosen] = reference.cayley_forward.__wrapped__(raw.detach()[chosen], step)  # type: ignore[attr-defined]
    return result


@body(DTYPES, small_square)
def cayley_adjoint(rotation: Tensor, cotangent: Tensor, step: float) -> Tensor:
    """Run `_adjoint` over all tokens, or the loop for few."""
    if few(rotation):
        return one_by_one(single.cayley_adjoint, (rotation, cotangent), float(step) / 4)[0]
    n = rotation.shape[-1]
    result = rotation.new_empty(rotation.shape)
    arrays = [numbers(tensor, n * n) for tensor in (rotation, cotangent, result)]
    function = _adjoint4 if n == 4 else _adjoint
    pool.run(function, pool.split(len(arrays[0]), GRAIN), *arrays, extent(n), arrays[0].dtype.type(step / 4))
    return result


@part
def _skew(raw, i, j, size, t):  # type: ignore[no-untyped-def]
    n = len(size)
    return raw[i * n + j, t] - raw[j * n + i, t] if j < n else raw[0, t] - raw[0, t]


# A skew matrix of four dimensions acts like x -> a x + x c with pure quaternions a and c, whose squares differ by its
# Pfaffian pf. The two parts commute, so the Cayley transform is x -> p x q with p along (1 - pf) + 2 a and q along
# (1 + pf) + 2 c. Made of two unit quaternions it is orthogonal to round-off; fewer dimensions are its leading block.
@compiled
def _turned(raw, result, size, half_step, start, stop):  # type: ignore[no-untyped-def]
    n = len(size)
    m = np.empty((n * n, LANES), raw.dtype)
    one = raw.dtype.type(1)
    for base in range(start, stop, LANES):
        load(raw, m, base, stop)
        for t in range(LANES):
            b01, b23 = half_step * _skew(m, 0, 1, size, t), half_step * _skew(m, 2, 3, size, t)
            b02, b13 = half_step * _skew(m, 0, 2, size, t), half_step * _skew(m, 1, 3, size, t)
            b03, b12 = half_step * _skew(m, 0, 3, size, t), half_step * _skew(m, 1, 2, size, t)
            pf = b01 * b23 - b02 * b13 + b03 * b12
            p0, p1, p2, p3 = one - pf, -b01 - b23, b13 - b02, -b03 - b12
            q0, q1, q2, q3 = one + pf, b23 - b01, -b02 - b13, b12 - b03
            p_square = p0 * p0 + p1 * p1 + p2 * p2 + p3 * p3
            q_square = q0 * q0 + q1 * q1 + q2 * q2 + q3 * q3
            scale = one / (np.sqrt(p_square) * np.sqrt(q_square))
            turn(p0 * scale, p1 * scale, p2 * scale, p3 * scale, q0, q1, q2, q3, m, size, t)
        store(result, m, base, stop)


@compiled
def _inverted(raw, result, steep, limit, size, half_step, start, stop):  # type: ignore[no-untyped-def]
    """``2 (I - B)^-1 - I``, the inverse in float64, and then polished where that is not more than was asked for."""
    n = len(size)
    m = np.empty((n * n, LANES), raw.dtype)
    system = np.empty((n * n, LANES), np.float64)
    square, spare = np.empty((n * n, LANES), raw.dtype), np.empty((n * n, LANES), raw.dtype)
    largest = np.empty(LANES, np.float64)
    half_step = np.float64(half_step)
    for base in range(start, stop, LANES):
        load(raw, m, base, stop)
        largest[:] = 0
        for i in range(n):
            for j in range(n):
                for t in range(LANES):
                    value = half_step * (np.float64(m[j * n + i, t]) - np.float64(m[i * n + j, t]))
                    largest[t] = max(largest[t], abs(value))
                    system[i * n + j, t] = value + (1.0 if i == j else 0.0)
        for t in range(min(LANES, stop - base)):
            steep[base + t] = not largest[t] <= limit
        invert(system, size)
        for i in range(n):
            for j in range(n):
                for t in range(LANES):
                    m[i * n + j, t] = 2.0 * system[i * n + j, t] - (1.0 if i == j else 0.0)
        if raw.itemsize == 8:
            polish(m, square, spare, size, size)
            store(result, spare, base, stop)
        else:
            store(result, m, base, stop)


@compiled
def _adjoint(rotation, cotangent, result, size, quarter_step, start, stop):  # type: ignore[no-untyped-def]
    """``H - H^T`` with ``H = step E G E / 4`` and ``E = Q^T + I``."""
    n = len(size)
    q = np.empty((n * n, LANES), rotation.dtype)
    g = np.empty((n * n, LANES), rotation.dtype)
    h = np.empty((n * n, LANES), rotation.dtype)
    one = rotation.dtype.type(1)
    for base in range(start, stop, LANES):
        load(rotation, q, base, stop)
        load(cotangent, g, base, stop)
        for i in range(n):
            for t in range(LANES):
                q[i * n + i, t] += one
        gram(q, g, h, size, size, size)
        product_transposed(h, q, g, size, size, size)
        combine_transposed(quarter_step, g, -quarter_step, h, size)
        store(result, h, base, stop)


@part
def _row(a, b, c, d, g, t):  # type: ignore[no-untyped-def]
    """Return a row of four numbers times a matrix."""
    return (
        a * g[0, t] + b * g[4, t] + c * g[8, t] + d * g[12, t],
        a * g[1, t] + b * g[5, t] + c * g[9, t] + d * g[13, t],
        a * g[2, t] + b * g[6, t] + c * g[10, t] + d * g[14, t],
        a * g[3, t] + b * g[7, t] + c * g[11, t] + d * g[15, t],
    )


@part
def _entry(h, q, k, t):  # type: ignore[no-untyped-def]
    """Return the product of a row with row k of Q + I."""
    i = 4 * k
    return h[0] * q[i, t] + h[1] * q[i + 1, t] + h[2] * q[i + 2, t] + h[3] * q[i + 3, t] + h[k]


@compiled
def _adjoint4(rotation, cotangent, result, _size, quarter_step, start, stop):  # type: ignore[no-untyped-def]
    """`_adjoint` of a 4 x 4 matrix in registers: the entries of E G E that count are twelve."""
    q = np.empty((16, LANES), rotation.dtype)
    g = np.empty((16, LANES), rotation.dtype)
    r = np.zeros((16, LANES), rotation.dtype)
    one = rotation.dtype.type(1)
    for base in range(start, stop, LANES):
        load(rotation, q, base, stop)
        load(cotangent, g, base, stop)
        for t in range(LANES):
            h0 = _row(q[0, t] + one, q[4, t], q[8, t], q[12, t], g, t)
            h1 = _row(q[1, t], q[5, t] + one, q[9, t], q[13, t], g, t)
            h2 = _row(q[2, t], q[6, t], q[10, t] + one, q[14, t], g, t)
            h3 = _row(q[3, t], q[7, t], q[11, t], q[15, t] + one, g, t)
            r[1, t] = quarter_step * (_entry(h0, q, 1, t) - _entry(h1, q, 0, t))
            r[2, t] = quarter_step * (_entry(h0, q, 2, t) - _entry(h2, q, 0, t))
            r[3, t] = quarter_step * (_entry(h0, q, 3, t) - _entry(h3, q, 0, t))
            r[6, t] = quarter_step * (_entry(h1, q, 2, t) - _entry(h2, q, 1, t))
            r[7, t] = quarter_step * (_entry(h1, q, 3, t) - _entry(h3, q, 1, t))
            r[11, t] = quarter_step * (_entry(h2, q, 3, t) - _entry(h3, q, 2, t))
            r[4, t], r[8, t], r[9, t] = -r[1, t], -r[2, t], -r[6, t]
            r[12, t], r[13, t], r[14, t] = -r[3, t], -r[7, t], -r[11, t]
        store(result, r, base, stop)
