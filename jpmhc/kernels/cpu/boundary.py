"""Numba body of the boundary: two passes over a chunk of tokens that stays in the cache, a matrix product between."""

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
from jpmhc.kernels.cpu.compile import summing
from jpmhc.kernels.cpu.rows import combine, dot, dots, gram, mixed, weighted

# Streams between two matrix products stay in the cache: so many bytes of them or, where tokens are wide, so many
# tokens, with which the products are large enough for the library that makes them. Narrow tokens in short chunks would
# spend their time on starting threads. Sizes alone decide, so that sums over tokens do not depend on the threads.
_CACHE = 2 * 2**20
_CHUNK = 256
_GRAIN = 16
_WORTH = 128
_CODES = {"given": 0, "softmax": 1, "sigmoid": 2, "tanh": 3}


def _few(*args: Any) -> str | None:
    streams = next(value for value in args if isinstance(value, Tensor) and value.ndim == 3)
    return f"fewer than {_WORTH} tokens" if streams.shape[0] < _WORTH else None


def _chunk(x: Tensor) -> int:
    """Return how many tokens of x (N, n, d) make a chunk."""
    return max(_CHUNK, _CACHE // max(1, x[:1].numel() * x.element_size()))


@body((torch.float32, torch.float64), spares=_few)
def boundary_forward(boundary: Boundary) -> tuple[Tensor, ...]:
    """See the reference."""
    x, matrix, post, y, weight, bias, scale, gate, normed, eps, post_eps = boundary
    out, u, z, pre, rms, post_rms = results = boundary.results()
    x = x.contiguous()
    after = out if post is not None else x
    flat = after.flatten(1)
    columns = None if weight is None else weight.t()
    write = _arrays(x, matrix, post, y, out, post_rms)
    read = _arrays(after, z, bias, scale, rms, u, pre)
    length = _chunk(x)
    for start in range(0, len(x), length):
        stop = min(start + length, len(x))
        ranges = [(start + a, start + b) for a, b in pool.split(stop - start, _GRAIN)]
        if post is not None:
            pool.run(_write, ranges, *write, post_eps)
        if columns is not None:
            torch.mm(flat[start:stop], columns, out=z[start:stop])
        if bias is not None:
            pool.run(_read, ranges, *read, _CODES[gate], normed, eps)
    return results


@body((torch.float32, torch.float64), spares=_few)
def boundary_backward(pullback: Pullback) -> tuple[Tensor, ...]:
    """See the reference."""
    grad_streams, grad_u, grad_z, x, matrix, post, y, weight, scale, streams, z, pre, rms, post_rms, gate = pullback
    grad_x, grad_matrix, grad_post, grad_y, grad_weight, grad_bias, grad_scale = pullback.results()
    tokens, n, d = x.shape
    x, streams = x.contiguous(), streams.contiguous()
    length = _chunk(x)
    slope = x.new_empty(0 if pre is None else (tokens, n))
    grad_raw = x.new_empty(0 if z is None else z.shape)
    radial = x.new_empty(0 if rms is None else tokens)
    projected = x.new_empty(0 if weight is None else (min(tokens, length), n, d))
    gated = _arrays(streams, grad_u, grad_z, scale, z, pre, rms, slope, grad_raw, radial)
    terms = _arrays(grad_streams, grad_u, pre, projected, radial, streams, post_rms, x, matrix, post, y)
    written = _arrays(grad_x, grad_matrix, grad_post, grad_y)
    flat = streams.flatten(1)
    grad_weight.zero_()
    for start in range(0, tokens, length):
        stop = min(start + length, tokens)
        ranges = [(start + a, start + b) for a, b in pool.split(stop - start, _GRAIN)]
        if pre is not None:
            pool.run(_read_backward, ranges, *gated, _CODES[gate])
        if weight is not None:
            torch.mm(grad_raw[start:stop], weight, out=projected[: stop - start].flatten(1))
            grad_weight.addmm_(grad_raw[start:stop].t(), flat[start:stop])
        pool.run(_write_backward, ranges, *terms, *written, start)
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
def _write(x, matrix, post, y, out, post_rms, post_eps, start, stop):  # type: ignore[no-untyped-def]
    n, d = x.shape[1], x.shape[2]
    for t in range(start, stop):
        if matrix is not None:
            mixed(out[t], x[t], matrix[t], y[t], post[t])
        for j in range(n):
            row = out[t, j]
            if matrix is None:
                weighted(row, (x[t, j], y[t]), (None, post[t, j]))
            if post_rms is not None:
                post_rms[t, j] = 1 / math.sqrt(dot(row, row) / d + post_eps)
                weighted(row, (row,), (post_rms[t, j],))


@summing
def _read(x, z, bias, scale, rms, u, pre, gate, normed, eps, start, stop):  # type: ignore[no-untyped-def]
    n, d = x.shape[1], x.shape[2]
    flat = x.reshape(x.shape[0], n * d)
    for t in range(start, stop):
        weights = pre[t]
        if z is None:
            weights[:] = bias[t]
        else:
            if rms is not None:
                rms[t] = 1 / math.sqrt(dot(flat[t], flat[t]) / (n * d) + eps)
                weighted(z[t], (z[t],), (rms[t],))
            _open(weights, z[t], bias, scale[0], gate)
        combine(u[t], x[t], weights)


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
            grad_x[t] = total
            continue
        dots(grad_post[t], y[t], total)
        combine(grad_y[t], total, post[t])
        if matrix is None:
            grad_x[t] = total
        else:
            gram(grad_matrix[t], total, x[t])
            mixed(grad_x[t], total, matrix[t].T, None, None)


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
