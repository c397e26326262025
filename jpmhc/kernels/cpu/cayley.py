"""Cayley transform on a CPU: closed form and polish, or two products of the adjoint, in a tile."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from jpmhc.kernels import pool
from jpmhc.kernels.bodies import body
from jpmhc.kernels.cpu.compile import compiled, part
from jpmhc.kernels.cpu.tiles import DTYPES, GRAIN, LANES, extent, few, load, numbers, small, store


def _closed(raw: Tensor, _step: float) -> str | None:
    n = raw.shape[-1]
    return None if 1 <= n <= 4 else f"no body for n = {n}, only closed forms up to 4"


@body(DTYPES, _closed, few)
def cayley_forward(raw: Tensor, step: float) -> Tensor:
    """Run `_forward` over all tokens."""
    n = raw.shape[-1]
    result = torch.empty(raw.shape, dtype=raw.dtype)
    source, target = numbers(raw, n * n), numbers(result, n * n)
    pool.run(_forward, pool.split(len(source), GRAIN), source, target, extent(n), source.dtype.type(step / 2))
    return result


@body(DTYPES, small, few)
def cayley_adjoint(rotation: Tensor, cotangent: Tensor, step: float) -> Tensor:
    """Run `_adjoint` over all tokens."""
    n = rotation.shape[-1]
    result = torch.empty(rotation.shape, dtype=rotation.dtype)
    arrays = [numbers(tensor, n * n) for tensor in (rotation, cotangent, result)]
    pool.run(_adjoint, pool.split(len(arrays[0]), GRAIN), *arrays, extent(n), arrays[0].dtype.type(step / 4))
    return result


@compiled
def _forward(raw, result, size, half_step, start, stop):  # type: ignore[no-untyped-def]
    n = len(size)
    p = np.empty((n * n, LANES), raw.dtype)
    b = np.empty((n * n, LANES), raw.dtype)
    c = np.empty((n * n, LANES), raw.dtype)
    one = raw.dtype.type(1)
    two = raw.dtype.type(2)
    for base in range(start, stop, LANES):
        load(raw, p, base, stop)
        for i in range(n):
            for j in range(n):
                for t in range(LANES):
                    b[i * n + j, t] = (p[i * n + j, t] - p[j * n + i, t]) * half_step
        for t in range(LANES):
            s = one - one
            for i in range(n):
                for j in range(i + 1, n):
                    s += b[i * n + j, t] * b[i * n + j, t]
            c[0, t] = s
        # With the dual D of b and its Pfaffian: (I - B)^-1 = ((1 + s) I + B + B^2 + pf D) / (1 + s + pf^2).
        for i in range(n):
            for j in range(n):
                for t in range(LANES):
                    value = b[i * n + j, t]
                    for k in range(n):
                        value += b[i * n + k, t] * b[k * n + j, t]
                    p[i * n + j, t] = value + (one + c[0, t] if i == j else one - one)
        for t in range(LANES):
            denominator = one + c[0, t]
            if n == 4:
                pf = b[1, t] * b[11, t] - b[2, t] * b[7, t] + b[3, t] * b[6, t]
                denominator += pf * pf
                p[1, t] += pf * b[11, t]
                p[4, t] -= pf * b[11, t]
                p[2, t] -= pf * b[7, t]
                p[8, t] += pf * b[7, t]
                p[3, t] += pf * b[6, t]
                p[12, t] -= pf * b[6, t]
                p[6, t] += pf * b[3, t]
                p[9, t] -= pf * b[3, t]
                p[7, t] -= pf * b[2, t]
                p[13, t] += pf * b[2, t]
                p[11, t] += pf * b[1, t]
                p[14, t] -= pf * b[1, t]
            scale = two / denominator
            for k in range(n * n):
                p[k, t] *= scale
            for i in range(n):
                p[i * n + i, t] -= one
        if n > 2:
            _polish(p, b, c, size)
        store(result, p, base, stop)


@part
def _polish(p, out, c, size):  # type: ignore[no-untyped-def]
    """Replace p by ``p (3 I - p^T p) / 2``."""
    n = len(size)
    half = p.dtype.type(0.5)
    for i in range(n):
        for j in range(n):
            for t in range(LANES):
                total = half - half
                for k in range(n):
                    total += p[k * n + i, t] * p[k * n + j, t]
                c[i * n + j, t] = (half + half + half if i == j else half - half) - half * total
    for i in range(n):
        for j in range(n):
            for t in range(LANES):
                total = half - half
                for k in range(n):
                    total += p[i * n + k, t] * c[k * n + j, t]
                out[i * n + j, t] = total
    for k in range(n * n):
        for t in range(LANES):
            p[k, t] = out[k, t]


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
        for i in range(n):
            for j in range(n):
                for t in range(LANES):
                    total = one - one
                    for k in range(n):
                        total += q[k * n + i, t] * g[k * n + j, t]
                    h[i * n + j, t] = total * quarter_step
        for i in range(n):
            for j in range(n):
                for t in range(LANES):
                    total = one - one
                    for k in range(n):
                        total += h[i * n + k, t] * q[j * n + k, t]
                    g[i * n + j, t] = total
        for i in range(n):
            for j in range(n):
                for t in range(LANES):
                    h[i * n + j, t] = g[i * n + j, t] - g[j * n + i, t]
        store(result, h, base, stop)
