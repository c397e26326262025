"""Rotations by two quaternions on a CPU: everything between eight numbers and sixteen happens in a tile."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from jpmhc.kernels import pool
from jpmhc.kernels.bodies import body
from jpmhc.kernels.cpu.compile import compiled, part
from jpmhc.kernels.cpu.tiles import DTYPES, GRAIN, LANES, few, load, numbers, store
from jpmhc.kernels.quaternion import COMPONENT, LEFT, RIGHT


@body(DTYPES, spares=few)
def quaternion_forward(pair: Tensor) -> Tensor:
    """Run `_forward` over all tokens."""
    result = torch.empty((*pair.shape[:-2], 4, 4), dtype=pair.dtype)
    source, target = numbers(pair, 8), numbers(result, 16)
    pool.run(_forward, pool.split(len(source), GRAIN), source, target)
    return result


@body(DTYPES, spares=few)
def quaternion_adjoint(pair: Tensor, cotangent: Tensor) -> Tensor:
    """Run `_adjoint` over all tokens."""
    result = torch.empty(pair.shape, dtype=pair.dtype)
    arrays = numbers(pair, 8), numbers(cotangent, 16), numbers(result, 8)
    pool.run(_adjoint, pool.split(len(arrays[0]), GRAIN), *arrays)
    return result


@part
def _normalise(pair, inverse):  # type: ignore[no-untyped-def]
    """Divide both quaternions by their length; `inverse` becomes its inverse, zero where a quaternion is."""
    one = pair.dtype.type(1)
    tiny = pair.dtype.type(np.finfo(pair.dtype).tiny)
    for s in range(2):
        for t in range(LANES):
            largest = abs(pair[4 * s, t])
            for k in range(1, 4):
                largest = max(largest, abs(pair[4 * s + k, t]))
            usable = largest > tiny
            scale = one / (largest if usable else one)
            total = one - one
            for k in range(4):
                value = pair[4 * s + k, t] * scale if usable else one - one
                pair[4 * s + k, t] = value
                total += value * value
            if not usable:
                pair[4 * s, t] = one
                total = one
            factor = one / np.sqrt(total)
            for k in range(4):
                pair[4 * s + k, t] *= factor
            inverse[s, t] = factor * scale if usable else one - one


@compiled
def _forward(pairs, result, start, stop):  # type: ignore[no-untyped-def]
    pair = np.empty((8, LANES), pairs.dtype)
    inverse = np.empty((2, LANES), pairs.dtype)
    m = np.empty((16, LANES), pairs.dtype)
    for base in range(start, stop, LANES):
        load(pairs, pair, base, stop)
        _normalise(pair, inverse)
        for i in range(4):
            for j in range(4):
                for t in range(LANES):
                    total = pair[0, t] - pair[0, t]
                    for k in range(4):
                        total += LEFT[i][k] * RIGHT[k][j] * pair[COMPONENT[i][k], t] * pair[4 + COMPONENT[k][j], t]
                    m[4 * i + j, t] = total
        store(result, m, base, stop)


@compiled
def _adjoint(pairs, cotangent, result, start, stop):  # type: ignore[no-untyped-def]
    pair = np.empty((8, LANES), pairs.dtype)
    inverse = np.empty((2, LANES), pairs.dtype)
    g = np.empty((16, LANES), pairs.dtype)
    slope = np.empty((8, LANES), pairs.dtype)
    for base in range(start, stop, LANES):
        load(pairs, pair, base, stop)
        load(cotangent, g, base, stop)
        _normalise(pair, inverse)
        slope[:] = 0
        for i in range(4):
            for k in range(4):
                for t in range(LANES):
                    first = pair[0, t] - pair[0, t]
                    second = first
                    for j in range(4):
                        first += g[4 * i + j, t] * RIGHT[k][j] * pair[4 + COMPONENT[k][j], t]
                        second += LEFT[j][i] * pair[COMPONENT[j][i], t] * g[4 * j + k, t]
                    slope[COMPONENT[i][k], t] += LEFT[i][k] * first
                    slope[4 + COMPONENT[i][k], t] += RIGHT[i][k] * second
        for s in range(2):
            for t in range(LANES):
                inner = pair[0, t] - pair[0, t]
                for k in range(4):
                    inner += slope[4 * s + k, t] * pair[4 * s + k, t]
                for k in range(4):
                    slope[4 * s + k, t] = (slope[4 * s + k, t] - inner * pair[4 * s + k, t]) * inverse[s, t]
        store(result, slope, base, stop)
