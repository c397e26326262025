"""Numba body of the boundary: two passes over a chunk of tokens that stays in the cache, a matrix product between."""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from jpmhc.kernels import pool
from jpmhc.kernels.bodies import body

# Sums over d may be reordered, without which they cannot use the processor's vectors; NaN and infinities are kept.
_OPTIONS: dict[str, Any] = {"nogil": True, "fastmath": {"contract", "reassoc", "nsz"}, "error_model": "numpy"}
# Tokens between two matrix products: their streams stay in the cache (2 MiB at n = 4, d = 512), and the products are
# large enough for the library that makes them. Fixed, so that sums over tokens do not depend on the number of threads.
_CHUNK = 256
_GRAIN = 16
_WORTH = 128
_CODES = {"given": 0, "softmax": 1, "sigmoid": 2, "tanh": 3}


def _compiled(function: Any) -> Any:
    try:
        return numba.njit(cache=True, **_OPTIONS)(function)
    except RuntimeError:  # there is no folder to keep it in
        return numba.njit(**_OPTIONS)(function)


def _few(*args: Any) -> str | None:
    streams = next(value for value in args if isinstance(value, Tensor) and value.ndim == 3)
    return f"fewer than {_WORTH} tokens" if streams.shape[0] < _WORTH else None


@body((torch.float32, torch.float64), spares=_few)
def boundary_forward(
    x: Tensor,
    matrix: Tensor | None,
    post: Tensor | None,
    y: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    scale: Tensor | None,
    gate: str,
    normed: bool,
    eps: float,
    post_eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """See the reference."""
    tokens, n, d = x.shape
    writes, reads, projects = post is not None, bias is not None, weight is not None
    x = x.contiguous()
    out = torch.empty_like(x) if writes else x.new_empty(0)
    post_rms = x.new_empty((tokens, n) if writes and post_eps >= 0 else 0)
    after = out if writes else x
    z = x.new_empty((tokens, weight.shape[0]) if weight is not None else 0)
    rms = x.new_empty(tokens if projects and normed else 0)
    u = x.new_empty((tokens, d) if reads else 0)
    pre = x.new_empty((tokens, n) if reads else 0)
    flat = after.view(tokens, n * d)
    columns = None if weight is None else weight.t()
    write = _arrays(x, matrix, post, y, out, post_rms)
    read = _arrays(after, z, bias, scale, rms, u, pre)
    for start in range(0, tokens, _CHUNK):
        stop = min(start + _CHUNK, tokens)
        ranges = [(start + a, start + b) for a, b in pool.split(stop - start, _GRAIN)]
        if writes:
            pool.run(_write, ranges, *write, post_eps)
        if columns is not None:
            torch.mm(flat[start:stop], columns, out=z[start:stop])
        if reads:
            pool.run(_read, ranges, *read, _CODES[gate], normed, eps)
    return out, u, z, pre, rms, post_rms


@body((torch.float32, torch.float64), spares=_few)
def boundary_backward(
    grad_streams: Tensor | None,
    grad_u: Tensor | None,
    grad_z: Tensor | None,
    x: Tensor,
    matrix: Tensor | None,
    post: Tensor | None,
    y: Tensor | None,
    weight: Tensor | None,
    scale: Tensor | None,
    streams: Tensor,
    z: Tensor | None,
    pre: Tensor | None,
    rms: Tensor | None,
    post_rms: Tensor | None,
    gate: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """See the reference."""
    tokens, n, d = x.shape
    writes, reads, projects = post is not None, pre is not None, weight is not None and z is not None
    code = _CODES[gate]
    x, streams = x.contiguous(), streams.contiguous()
    grad_x = torch.empty_like(x)
    grad_matrix = x.new_empty(matrix.shape if matrix is not None else 0)
    grad_post = x.new_empty((tokens, n) if writes else 0)
    grad_y = x.new_empty((tokens, d) if writes else 0)
    grad_weight = torch.zeros_like(weight) if weight is not None else x.new_empty(0)
    slope = x.new_empty((tokens, n) if reads else 0)
    grad_raw = x.new_empty(z.shape if z is not None else 0)
    radial = x.new_empty(tokens if rms is not None else 0)
    projected = x.new_empty((min(tokens, _CHUNK), n * d) if projects else 0)
    gated = _arrays(streams, grad_u, grad_z, scale, z, pre, rms, slope, grad_raw, radial)
    summed = _arrays(grad_streams, grad_u, pre, projected, radial, streams, post_rms, x, matrix, post, y)
    results = _arrays(grad_x, grad_matrix, grad_post, grad_y)
    flat = streams.view(tokens, n * d)
    for start in range(0, tokens, _CHUNK):
        stop = min(start + _CHUNK, tokens)
        ranges = [(start + a, start + b) for a, b in pool.split(stop - start, _GRAIN)]
        if reads:
            pool.run(_read_backward, ranges, *gated, code)
        if weight is not None and projects:
            torch.mm(grad_raw[start:stop], weight, out=projected[: stop - start])
            grad_weight.addmm_(grad_raw[start:stop].t(), flat[start:stop])
        pool.run(_write_backward, ranges, *summed, *results, start)
    grad_bias, grad_scale = slope, x.new_empty(0)
    if scale is not None and z is not None:
        raw = z[:, :n].tanh() if gate == "tanh" else z[:, :n]
        grad_bias, grad_scale = slope.sum(0), (slope * raw).sum().view(1)
    return grad_x, grad_matrix, grad_post, grad_y, grad_weight, grad_bias, grad_scale


def _arrays(*tensors: Tensor | None) -> list[np.ndarray | None]:
    """Arrays on the same memory; None where there is nothing, which compiles a version of its own."""
    return [None if t is None or not t.numel() else t.detach().contiguous().numpy() for t in tensors]


@_compiled
def _combine(out, rows, weights):  # type: ignore[no-untyped-def]
    """``out = sum_i weights_i rows_i``."""
    n = rows.shape[0]
    if n >= 4:
        _start(out, rows[0], rows[1], rows[2], rows[3], weights[0], weights[1], weights[2], weights[3])
        i = 4
    else:
        _scale(out, rows[0], weights[0])
        i = 1
    _rest(out, rows, weights, i)


@_compiled
def _rest(out, rows, weights, i):  # type: ignore[no-untyped-def]
    """``out += sum_(j >= i) weights_j rows_j``."""
    n = rows.shape[0]
    while i + 4 <= n:
        _add(
            out,
            rows[i],
            rows[i + 1],
            rows[i + 2],
            rows[i + 3],
            weights[i],
            weights[i + 1],
            weights[i + 2],
            weights[i + 3],
        )
        i += 4
    while i < n:
        _axpy(out, rows[i], weights[i])
        i += 1


@_compiled
def _start(out, a, b, c, e, wa, wb, wc, we):  # type: ignore[no-untyped-def]
    for k in range(out.shape[0]):
        out[k] = (wa * a[k] + wb * b[k]) + (wc * c[k] + we * e[k])


@_compiled
def _add(out, a, b, c, e, wa, wb, wc, we):  # type: ignore[no-untyped-def]
    for k in range(out.shape[0]):
        out[k] += (wa * a[k] + wb * b[k]) + (wc * c[k] + we * e[k])


@_compiled
def _scale(out, a, wa):  # type: ignore[no-untyped-def]
    for k in range(out.shape[0]):
        out[k] = wa * a[k]


@_compiled
def _axpy(out, a, wa):  # type: ignore[no-untyped-def]
    for k in range(out.shape[0]):
        out[k] += wa * a[k]


@_compiled
def _dot(a, b):  # type: ignore[no-untyped-def]
    total = a[0] * b[0]
    for k in range(1, a.shape[0]):
        total += a[k] * b[k]
    return total


@_compiled
def _dots(out, a, rows):  # type: ignore[no-untyped-def]
    """``out_i = rows_i . a``, four rows at a time."""
    n, i = rows.shape[0], 0
    while i + 4 <= n:
        out[i], out[i + 1], out[i + 2], out[i + 3] = _dot4(a, rows[i], rows[i + 1], rows[i + 2], rows[i + 3])
        i += 4
    while i < n:
        out[i] = _dot(a, rows[i])
        i += 1


@_compiled
def _gram(out, a, b):  # type: ignore[no-untyped-def]
    """``out_ij = a_i . b_j``, in blocks of 4 x 4, which keep sixteen sums in registers."""
    n, i = a.shape[0], 0
    while i + 4 <= n:
        j = 0
        while j + 4 <= n:
            _block(out[i : i + 4, j : j + 4], a[i], a[i + 1], a[i + 2], a[i + 3], b[j], b[j + 1], b[j + 2], b[j + 3])
            j += 4
        while j < n:
            out[i, j], out[i + 1, j], out[i + 2, j], out[i + 3, j] = _dot4(b[j], a[i], a[i + 1], a[i + 2], a[i + 3])
            j += 1
        i += 4
    while i < n:
        _dots(out[i], a[i], b)
        i += 1


@_compiled
def _block(out, a, b, c, e, p, q, r, s):  # type: ignore[no-untyped-def]
    zero = a.dtype.type(0)
    ap, aq, ar, as_ = zero, zero, zero, zero
    bp, bq, br, bs = zero, zero, zero, zero
    cp, cq, cr, cs = zero, zero, zero, zero
    ep, eq, er, es = zero, zero, zero, zero
    for k in range(a.shape[0]):
        vp, vq, vr, vs = p[k], q[k], r[k], s[k]
        value = a[k]
        ap += value * vp
        aq += value * vq
        ar += value * vr
        as_ += value * vs
        value = b[k]
        bp += value * vp
        bq += value * vq
        br += value * vr
        bs += value * vs
        value = c[k]
        cp += value * vp
        cq += value * vq
        cr += value * vr
        cs += value * vs
        value = e[k]
        ep += value * vp
        eq += value * vq
        er += value * vr
        es += value * vs
    out[0, 0], out[0, 1], out[0, 2], out[0, 3] = ap, aq, ar, as_
    out[1, 0], out[1, 1], out[1, 2], out[1, 3] = bp, bq, br, bs
    out[2, 0], out[2, 1], out[2, 2], out[2, 3] = cp, cq, cr, cs
    out[3, 0], out[3, 1], out[3, 2], out[3, 3] = ep, eq, er, es


@_compiled
def _sum(out, a, b, wb, c, wc, e):  # type: ignore[no-untyped-def]
    for k in range(out.shape[0]):
        out[k] = (a[k] + wb * b[k]) + (wc * c[k] + e[k])


@_compiled
def _plus(out, a):  # type: ignore[no-untyped-def]
    for k in range(out.shape[0]):
        out[k] += a[k]


@_compiled
def _dot4(a, b, c, e, f):  # type: ignore[no-untyped-def]
    first = a[0]
    tb, tc, te, tf = first * b[0], first * c[0], first * e[0], first * f[0]
    for k in range(1, a.shape[0]):
        value = a[k]
        tb += value * b[k]
        tc += value * c[k]
        te += value * e[k]
        tf += value * f[k]
    return tb, tc, te, tf


@_compiled
def _write(x, matrix, post, y, out, post_rms, post_eps, start, stop):  # type: ignore[no-untyped-def]
    n, d = x.shape[1], x.shape[2]
    for t in range(start, stop):
        for j in range(n):
            row = out[t, j]
            if matrix is None:
                row[:] = x[t, j]
            else:
                _combine(row, x[t], matrix[t, j])
            _axpy(row, y[t], post[t, j])
            if post_rms is not None:
                factor = 1 / math.sqrt(_dot(row, row) / d + post_eps)
                post_rms[t, j] = factor
                _scale(row, row, post_rms[t, j])


@_compiled
def _read(x, z, bias, scale, rms, u, pre, gate, normed, eps, start, stop):  # type: ignore[no-untyped-def]
    n, d = x.shape[1], x.shape[2]
    for t in range(start, stop):
        weights = pre[t]
        if z is None:
            weights[:] = bias[t]
        else:
            if rms is not None:
                square = _dot(x[t, 0], x[t, 0])
                for i in range(1, n):
                    square += _dot(x[t, i], x[t, i])
                rms[t] = 1 / math.sqrt(square / (n * d) + eps)
                for j in range(z.shape[1]):
                    z[t, j] *= rms[t]
            _open(weights, z[t], bias, scale[0], gate)
        _combine(u[t], x[t], weights)


@_compiled
def _open(pre, raw, bias, scale, gate):  # type: ignore[no-untyped-def]
    n = pre.shape[0]
    if gate == 3:
        for i in range(n):
            pre[i] = bias[i] + scale * math.tanh(raw[i])
        return
    for i in range(n):
        pre[i] = bias[i] + scale * raw[i]
    if gate == 2:
        for i in range(n):
            pre[i] = 1 / (1 + math.exp(-pre[i]))
        return
    largest = pre[0]
    for i in range(1, n):
        largest = max(largest, pre[i])
    total = pre[0] * 0
    for i in range(n):
        pre[i] = math.exp(pre[i] - largest)
        total += pre[i]
    for i in range(n):
        pre[i] /= total


@_compiled
def _read_backward(  # type: ignore[no-untyped-def]
    x, grad_u, grad_z, scale, z, pre, rms, slope, grad_raw, radial, gate, start, stop
):
    n, d = x.shape[1], x.shape[2]
    for t in range(start, stop):
        out = slope[t]
        if grad_u is None:
            out[:] = 0
        else:
            _dots(out, grad_u[t], x[t])
        if z is None:
            continue
        if gate == 1:
            inner = _dot(out, pre[t])
            for i in range(n):
                out[i] = pre[t, i] * (out[i] - inner)
        elif gate == 2:
            for i in range(n):
                out[i] = pre[t, i] * (1 - pre[t, i]) * out[i]
        raw = grad_raw[t]
        if grad_z is None:
            raw[:] = 0
        else:
            raw[:] = grad_z[t]
        for i in range(n):
            factor = scale[0]
            if gate == 3:
                squashed = math.tanh(z[t, i])
                factor *= 1 - squashed * squashed
            raw[i] += out[i] * factor
        if rms is not None:
            radial[t] = -_dot(raw, z[t]) * rms[t] * rms[t] / (n * d)
            _scale(raw, raw, rms[t])


@_compiled
def _write_backward(  # type: ignore[no-untyped-def]
    grad_streams,
    grad_u,
    pre,
    projected,
    radial,
    streams,
    post_rms,
    x,
    matrix,
    post,
    y,
    grad_x,
    grad_matrix,
    grad_post,
    grad_y,
    first,
    start,
    stop,
):
    n, d = x.shape[1], x.shape[2]
    total = np.empty((n, d), x.dtype)
    column = np.empty(n, x.dtype)
    for t in range(start, stop):
        for i in range(n):
            row = total[i]
            if grad_streams is None:
                row[:] = 0
            elif grad_u is not None and pre is not None and projected is not None and radial is not None:
                part = projected[t - first, i * d : (i + 1) * d]
                _sum(row, grad_streams[t, i], grad_u[t], pre[t, i], streams[t, i], radial[t], part)
            else:
                row[:] = grad_streams[t, i]
            if grad_streams is None or projected is None or radial is None or grad_u is None:
                if grad_u is not None and pre is not None:
                    _axpy(row, grad_u[t], pre[t, i])
                if radial is not None:
                    _axpy(row, streams[t, i], radial[t])
                if projected is not None:
                    _plus(row, projected[t - first, i * d : (i + 1) * d])
            if post_rms is not None:
                column[0] = -_dot(row, streams[t, i]) / d
                _axpy(row, streams[t, i], column[0])
                _scale(row, row, post_rms[t, i])
        if post is None:
            for i in range(n):
                grad_x[t, i] = total[i]
            continue
        _dots(grad_post[t], y[t], total)
        _combine(grad_y[t], total, post[t])
        if matrix is None:
            for i in range(n):
                grad_x[t, i] = total[i]
        else:
            _gram(grad_matrix[t], total, x[t])
            for i in range(n):
                for j in range(n):
                    column[j] = matrix[t, j, i]
                _combine(grad_x[t, i], total, column)
