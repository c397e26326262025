"""Numba body of the boundary.

Forward is one pass: a few tokens are written, projected and read while they are in the innermost cache, and only then
go to memory. Backward takes two passes over a chunk of tokens that stays in the outer cache, matrix products between.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numba import types
from numba.extending import overload
from torch import Tensor

from jpmhc.kernels import pool
from jpmhc.kernels.bodies import body
from jpmhc.kernels.boundary import Boundary, Pullback
from jpmhc.kernels.cpu.compile import summing, summing_part
from jpmhc.kernels.cpu.rows import combine, dot, dots, gram, mixed, moved, project, settle, weighted

# Streams of the backward pass stay in the cache between two matrix products: so many bytes of them or, where tokens are
# wide, so many tokens, with which the products are large enough for the library that makes them. Narrow tokens in short
# chunks would spend their time on starting threads. Sizes alone decide, so that sums over tokens do not depend on the
# threads.
_CACHE = 2**20
_CHUNK = 128
# Streams of so many bytes have left the caches before anybody reads them, and are written past them.
_FAR = 16 * 2**20
_LINE = 64
_GROUP = 4
_GRAIN = 16
_WORTH = 128
_CODES = {"given": 0, "softmax": 1, "sigmoid": 2, "tanh": 3}


def _few(*args: Any) -> str | None:
    streams = next(value for value in args if isinstance(value, Tensor) and value.ndim == 3)
    return f"fewer than {_WORTH} tokens" if streams.shape[0] < _WORTH else None


def _is_far(streams: Tensor) -> bool:
    """Whether streams (N, n, d) are to be written past the caches, which asks for rows of whole lines of memory."""
    row = streams.shape[-1] * streams.element_size()
    aligned = streams.data_ptr() % _LINE == 0 and row % _LINE == 0
    return aligned and streams.numel() * streams.element_size() >= _FAR


@body((torch.float32, torch.float64), spares=_few)
def boundary_forward(boundary: Boundary) -> tuple[Tensor, ...]:
    """See the reference."""
    x, matrix, post, y, weight, bias, scale, gate, _, eps, post_eps = boundary
    out, u, z, pre, rms, post_rms = results = boundary.results()
    arrays = _arrays(x, matrix, post, y, weight, bias, scale, out, u, z, pre, rms, post_rms)
    pool.run(_cross, pool.split(len(x), _GRAIN), *arrays, _CODES[gate], eps, post_eps, _is_far(out))
    return results


@body((torch.float32, torch.float64), spares=_few)
def boundary_backward(pullback: Pullback) -> tuple[Tensor, ...]:
    """See the reference."""
    grad_streams, grad_u, grad_z, x, matrix, post, y, weight, scale, streams, z, pre, rms, post_rms, gate = pullback
    grad_x, grad_matrix, grad_post, grad_y, grad_weight, grad_bias, grad_scale = pullback.results()
    tokens, n, d = x.shape
    x, streams = x.contiguous(), streams.contiguous()
    length = max(_CHUNK, _CACHE // max(1, x[:1].numel() * x.element_size()))
    slope = x.new_empty(0 if pre is None else (tokens, n))
    grad_raw = x.new_empty(0 if z is None else z.shape)
    radial = x.new_empty(0 if rms is None else tokens)
    projected = x.new_empty(0 if weight is None else (min(tokens, length), n, d))
    gated = _arrays(streams, grad_u, grad_z, scale, z, pre, rms, slope, grad_raw, radial)
    terms = _arrays(grad_streams, grad_u, pre, projected, radial, streams, post_rms, x, matrix, post, y)
    written = _arrays(grad_x, grad_matrix, grad_post, grad_y)
    flat, far = streams.flatten(1), _is_far(grad_x)
    grad_weight.zero_()
    for start in range(0, tokens, length):
        stop = min(start + length, tokens)
        ranges = [(start + a, start + b) for a, b in pool.split(stop - start, _GRAIN)]
        if pre is not None:
            pool.run(_read_backward, ranges, *gated, _CODES[gate])
        if weight is not None:
            torch.mm(grad_raw[start:stop], weight, out=projected[: stop - start].flatten(1))
            grad_weight.addmm_(grad_raw[start:stop].t(), flat[start:stop])
        pool.run(_write_backward, ranges, *terms, *written, start, far)
    if scale is None or z is None:
        grad_bias = slope
    else:
        raw = z[:, :n].tanh() if gate == "tanh" else z[:, :n]
        grad_bias, grad_scale = slope.sum(0), (slope * raw).sum().view(1)
    return grad_x, grad_matrix, grad_post, grad_y, grad_weight, grad_bias, grad_scale


def _arrays(*tensors: Tensor | None) -> list[np.ndarray | None]:
    """Arrays on the same memory; None where there is nothing, which compiles a version of its own."""
    return [None if t is None or not t.numel() else t.detach().contiguous().numpy() for t in tensors]


@summing
def _cross(  # type: ignore[no-untyped-def]
    x,
    matrix,
    post,
    y,
    weight,
    bias,
    scale,
    out,
    u,
    z,
    pre,
    rms,
    post_rms,
    gate,
    eps,
    post_eps,
    far,
    start,
    stop,
):
    n, d = x.shape[1], x.shape[2]
    held = np.zeros((_GROUP, n, d), x.dtype)
    for first in range(start, stop, _GROUP):
        count = min(_GROUP, stop - first)
        for k in range(count):
            t = first + k
            if post is None:
                moved(held[k], x[t], False)
            else:
                _write(held[k], x[t], _at(matrix, t), post[t], y[t], _at(post_rms, t), post_eps)
                moved(out[t], held[k], far)
        if bias is not None:
            _read(held, weight, bias, scale, u, z, pre, rms, gate, eps, first, count)
    settle()


@summing_part
def _write(out, x, matrix, post, y, post_rms, eps):  # type: ignore[no-untyped-def]
    """Write to the streams of one token."""
    n, d = out.shape
    if matrix is not None:
        mixed(out, x, matrix, y, post, False)
    for j in range(n):
        row = out[j]
        if matrix is None:
            weighted(row, (x[j], y), (None, post[j]))
        if post_rms is not None:
            post_rms[j] = 1 / math.sqrt(dot(row, row) / d + eps)
            weighted(row, (row,), (post_rms[j],))


@summing_part
def _read(held, weight, bias, scale, u, z, pre, rms, gate, eps, first, count):  # type: ignore[no-untyped-def]
    """Read from the streams of a group of tokens. What is held beyond their count is projected and left."""
    length = held.shape[1] * held.shape[2]
    flat = held.reshape(_GROUP, length)
    if weight is not None:
        raw = np.empty((_GROUP, weight.shape[0]), held.dtype)
        project(raw, flat, weight)
    for k in range(count):
        t = first + k
        if weight is None:
            pre[t] = bias[t]
        else:
            if rms is None:
                z[t] = raw[k]
            else:
                rms[t] = 1 / math.sqrt(dot(flat[k], flat[k]) / length + eps)
                weighted(z[t], (raw[k],), (rms[t],))
            _open(pre[t], z[t], bias, scale[0], gate)
        combine(u[t], held[k], pre[t])


@summing
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


@summing
def _read_backward(  # type: ignore[no-untyped-def]
    x, grad_u, grad_z, scale, z, pre, rms, slope, grad_raw, radial, gate, start, stop
):
    n, d = x.shape[1], x.shape[2]
    for t in range(start, stop):
        out = slope[t]
        if grad_u is None:
            out[:] = 0
        else:
            dots(out, grad_u[t], x[t])
        if z is None:
            continue
        if gate == 1:
            inner = dot(out, pre[t])
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
            radial[t] = -dot(raw, z[t]) * rms[t] * rms[t] / (n * d)
            weighted(raw, (raw,), (rms[t],))


@summing
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
    far,
    start,
    stop,
):
    n, d = x.shape[1], x.shape[2]
    total = np.empty((n, d), x.dtype)
    for t in range(start, stop):
        for i in range(n):
            row, place = total[i], (t, i)
            read, turned = _at(grad_u, t), _if(radial, streams[t, i])
            arriving = (_at(grad_streams, place), read, turned, _at(projected, (t - first, i)))
            weighted(row, arriving, (None, _at(pre, place), _at(radial, t), None))
            if post_rms is not None:
                inner = x.dtype.type(-dot(row, streams[t, i]) / d)
                weighted(row, (row, streams[t, i]), (post_rms[t, i], inner * post_rms[t, i]))
        if post is None:
            moved(grad_x[t], total, far)
            continue
        dots(grad_post[t], y[t], total)
        combine(grad_y[t], total, post[t])
        if matrix is None:
            moved(grad_x[t], total, far)
        else:
            gram(grad_matrix[t], total, x[t])
            mixed(grad_x[t], total, matrix[t].T, None, None, far)
    settle()


def _at(array: Any, place: Any) -> Any:
    """Return what is at a place of an array that may be None."""


def _if(array: Any, value: Any) -> Any:
    """Return a value, or None where there is no such array."""


@overload(_at)
def _at_typed(array, place):  # type: ignore[no-untyped-def]
    if isinstance(array, types.NoneType):
        return lambda array, place: None
    return lambda array, place: array[place]


@overload(_if)
def _if_typed(array, value):  # type: ignore[no-untyped-def]
    if isinstance(array, types.NoneType):
        return lambda array, value: None
    return lambda array, value: value
