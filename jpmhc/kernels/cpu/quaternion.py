"""Rotations by two quaternions on a CPU: everything between eight numbers and sixteen happens in a tile."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from jpmhc.kernels import pool
from jpmhc.kernels.bodies import body
from jpmhc.kernels.cpu.compile import compiled, part
from jpmhc.kernels.cpu.tiles import DTYPES, GRAIN, LANES, extent, load, numbers, store
from jpmhc.kernels.shapes import unpaired


@body(DTYPES, unpaired)
def quaternion_forward(pair: Tensor) -> Tensor:
    """Run `_forward` over all tokens."""
    result = pair.new_empty((*pair.shape[:-2], 4, 4))
    source, target = numbers(pair, 8), numbers(result, 16)
    pool.run(_forward, pool.split(len(source), GRAIN), source, target, extent(4))
    return result


@body(DTYPES, unpaired)
def quaternion_adjoint(pair: Tensor, cotangent: Tensor) -> Tensor:
    """Run `_adjoint` over all tokens."""
    result = pair.new_empty(pair.shape)
    arrays = numbers(pair, 8), numbers(cotangent, 16), numbers(result, 8)
    pool.run(_adjoint, pool.split(len(arrays[0]), GRAIN), *arrays)
    return result


@part
def turn(p0, p1, p2, p3, q0, q1, q2, q3, m, size, t):  # type: ignore[no-untyped-def]
    """Write the leading block of the matrix of ``p x q`` to lane t of a tile, made of sixteen products."""
    n = len(size)
    p00, p01, p02, p03 = p0 * q0, p0 * q1, p0 * q2, p0 * q3
    p10, p11, p12, p13 = p1 * q0, p1 * q1, p1 * q2, p1 * q3
    p20, p21, p22, p23 = p2 * q0, p2 * q1, p2 * q2, p2 * q3
    p30, p31, p32, p33 = p3 * q0, p3 * q1, p3 * q2, p3 * q3
    m[0, t] = p00 - p11 - p22 - p33
    if n > 1:
        m[1, t] = p23 - p01 - p10 - p32
        m[n, t] = p10 + p01 + p23 - p32
        m[n + 1, t] = p00 + p33 + p22 - p11
    if n > 2:
        m[2, t] = p31 - p02 - p13 - p20
        m[n + 2, t] = p03 - p12 - p30 - p21
        m[2 * n, t] = p20 + p31 + p02 - p13
        m[2 * n + 1, t] = p30 - p21 - p03 - p12
        m[2 * n + 2, t] = p33 + p00 + p11 - p22
    if n > 3:
        m[3, t] = p12 - p03 - p21 - p30
        m[7, t] = p20 - p13 - p02 - p31
        m[11, t] = p01 - p23 - p32 - p10
        m[12, t] = p30 + p12 + p03 - p21
        m[13, t] = p02 - p31 - p20 - p13
        m[14, t] = p10 - p32 - p23 - p01
        m[15, t] = p22 + p11 + p00 - p33


@part
def _normalise(pair, inverse, scale, factor):  # type: ignore[no-untyped-def]
    """Divide both quaternions by their length; `inverse` becomes its inverse, zero where a quaternion is.

    Scales are stored apart, and the numbers one component at a time: one loop for all would not use vectors.
    """
    one = pair.dtype.type(1)
    zero = one - one
    tiny = pair.dtype.type(np.finfo(pair.dtype).tiny)
    for s in range(2):
        for t in range(LANES):
            a, b, c, d = abs(pair[4 * s, t]), abs(pair[4 * s + 1, t]), abs(pair[4 * s + 2, t]), abs(pair[4 * s + 3, t])
            largest = max(max(a, b), max(c, d))
            # Not by the largest, which may pass over what is not a number. Negative marks a quaternion of zeros.
            none = (a <= tiny) & (b <= tiny) & (c <= tiny) & (d <= tiny)
            scale[t] = -one if none else one / largest
        for t in range(LANES):
            total = zero
            for k in range(4):
                value = pair[4 * s + k, t] * scale[t]
                total += value * value
            factor[t] = one / np.sqrt(one if scale[t] < zero else total)
        for k in range(4):
            alone = zero if k else one
            for t in range(LANES):
                value = pair[4 * s + k, t] * scale[t] * factor[t]
                pair[4 * s + k, t] = alone if scale[t] < zero else value
        for t in range(LANES):
            inverse[s, t] = zero if scale[t] < zero else factor[t] * scale[t]


@compiled
def _forward(pairs, result, size, start, stop):  # type: ignore[no-untyped-def]
    x = np.empty((8, LANES), pairs.dtype)
    inverse = np.empty((2, LANES), pairs.dtype)
    scale, factor = np.empty(LANES, pairs.dtype), np.empty(LANES, pairs.dtype)
    m = np.empty((16, LANES), pairs.dtype)
    for base in range(start, stop, LANES):
        load(pairs, x, base, stop)
        _normalise(x, inverse, scale, factor)
        for t in range(LANES):
            turn(x[0, t], x[1, t], x[2, t], x[3, t], x[4, t], x[5, t], x[6, t], x[7, t], m, size, t)
        store(result, m, base, stop)


@part
def _slopes(p0, p1, p2, p3, q0, q1, q2, q3, g, h, t):  # type: ignore[no-untyped-def]
    """Write the gradients of p and q for lane t: every product of two components stands in four entries of M."""
    g00 = g[0, t] + g[5, t] + g[10, t] + g[15, t]
    g01 = g[4, t] + g[11, t] - g[1, t] - g[14, t]
    g02 = g[8, t] + g[13, t] - g[2, t] - g[7, t]
    g03 = g[6, t] + g[12, t] - g[3, t] - g[9, t]
    g10 = g[4, t] + g[14, t] - g[1, t] - g[11, t]
    g11 = g[10, t] + g[15, t] - g[0, t] - g[5, t]
    g12 = g[3, t] + g[12, t] - g[6, t] - g[9, t]
    g13 = -g[2, t] - g[7, t] - g[8, t] - g[13, t]
    g20 = g[7, t] + g[8, t] - g[2, t] - g[13, t]
    g21 = -g[3, t] - g[6, t] - g[9, t] - g[12, t]
    g22 = g[5, t] + g[15, t] - g[0, t] - g[10, t]
    g23 = g[1, t] + g[4, t] - g[11, t] - g[14, t]
    g30 = g[9, t] + g[12, t] - g[3, t] - g[6, t]
    g31 = g[2, t] + g[8, t] - g[7, t] - g[13, t]
    g32 = -g[1, t] - g[4, t] - g[11, t] - g[14, t]
    g33 = g[5, t] + g[10, t] - g[0, t] - g[15, t]
    h[0, t] = g00 * q0 + g01 * q1 + g02 * q2 + g03 * q3
    h[1, t] = g10 * q0 + g11 * q1 + g12 * q2 + g13 * q3
    h[2, t] = g20 * q0 + g21 * q1 + g22 * q2 + g23 * q3
    h[3, t] = g30 * q0 + g31 * q1 + g32 * q2 + g33 * q3
    h[4, t] = g00 * p0 + g10 * p1 + g20 * p2 + g30 * p3
    h[5, t] = g01 * p0 + g11 * p1 + g21 * p2 + g31 * p3
    h[6, t] = g02 * p0 + g12 * p1 + g22 * p2 + g32 * p3
    h[7, t] = g03 * p0 + g13 * p1 + g23 * p2 + g33 * p3


@compiled
def _adjoint(pairs, cotangent, result, start, stop):  # type: ignore[no-untyped-def]
    x = np.empty((8, LANES), pairs.dtype)
    inverse = np.empty((2, LANES), pairs.dtype)
    scale, factor = np.empty(LANES, pairs.dtype), np.empty(LANES, pairs.dtype)
    g = np.empty((16, LANES), pairs.dtype)
    h = np.empty((8, LANES), pairs.dtype)
    for base in range(start, stop, LANES):
        load(pairs, x, base, stop)
        load(cotangent, g, base, stop)
        _normalise(x, inverse, scale, factor)
        for t in range(LANES):
            _slopes(x[0, t], x[1, t], x[2, t], x[3, t], x[4, t], x[5, t], x[6, t], x[7, t], g, h, t)
        for s in range(2):
            for t in range(LANES):
                inner = h[4 * s, t] * x[4 * s, t]
                for k in range(1, 4):
                    inner += h[4 * s + k, t] * x[4 * s + k, t]
                for k in range(4):
                    h[4 * s + k, t] = (h[4 * s + k, t] - inner * x[4 * s + k, t]) * inverse[s, t]
        store(result, h, base, stop)
