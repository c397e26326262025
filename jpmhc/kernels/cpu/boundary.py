"""Numba body of the boundary.

Both ways are one pass: a few tokens are done with while they are in the inner caches, and only then go to memory. The
gradient of the projection, a sum over all tokens, is one matrix product afterwards.
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
from jpmhc.kernels.boundary import Boundary, Pullback, gate_sums
from jpmhc.kernels.cpu.arrays import array_of
from jpmhc.kernels.cpu.compile import summing, summing_part
from jpmhc.kernels.cpu.rows import STRETCH, combine, dot, dots, expand, gram, mixed, moved, project, settle, weighted
from jpmhc.kernels.fitting import unfit

# Streams of so many bytes have left the caches before anybody reads them, and are written past them.
_FAR = 16 * 2**20
_LINE = 64
# Tokens of which the streams stay in the innermost cache, and tokens for which a projection is gone through once.
_GROUP, _GROUP_BACK = 4, 32
# A projection of more bytes does not stay in a second cache of 2 MiB, and is gone through once for more tokens forward.
_LARGE, _GROUP_OF_LARGE = 3 * 2**19, 16
# Tokens of a product for the gradient of the projection: with more of them the library is slower.
_CHUNK = 512
_GRAIN = 16
_WORTH = 128
_DTYPES = (torch.float32, torch.float64)
_CODES = {"given": 0, "softmax": 1, "sigmoid": 2, "tanh": 3}


def _few(*args: Any) -> str | None:
    streams = next(value for value in args if isinstance(value, Tensor) and value.ndim == 3)
    return f"fewer than {_WORTH} tokens" if streams.shape[0] < _WORTH else None


def _is_far(streams: Tensor) -> bool:
    """Whether streams (N, n, d) are to be written past the caches, which asks for rows of whole lines of memory."""
    row = streams.shape[-1] * streams.element_size()
    aligned = streams.data_ptr() % _LINE == 0 and row % _LINE == 0
    return aligned and streams.numel() * streams.element_size() >= _FAR


@body(_DTYPES, lambda *args: unfit(Boundary(*args)), spares=_few)
def boundary_forward(boundary: Boundary) -> tuple[Tensor, ...]:
    """See the reference."""
    x, matrix, post, y, weight, bias, scale, gate, _, eps, post_eps = boundary
    out, u, z, pre, rms, post_rms = results = boundary.results()
    arrays = _arrays(x, matrix, post, y, weight, bias, scale, out, u, z, pre, rms, post_rms)
    pool.run(_cross, pool.split(len(x), _GRAIN), *arrays, _CODES[gate], eps, post_eps, _is_far(out))
    return results


@body(_DTYPES, lambda *args: unfit(Pullback(*args)), spares=_few)
def boundary_backward(pullback: Pullback) -> tuple[Tensor, ...]:
    """See the reference."""
    grad_streams, grad_u, grad_z, x, matrix, post, y, weight, scale, streams, z, pre, rms, post_rms, gate = pullback
    grad_x, grad_matrix, grad_post, grad_y, grad_weight, grad_bias, grad_scale = pullback.results()
    n = x.shape[1]
    slope = x.new_empty(0 if pre is None else pre.shape)
    grad_raw = x.new_empty(0 if z is None else z.shape)
    parts = None if weight is None else _in_stretches(weight)
    arriving = _arrays(grad_streams, grad_u, grad_z, streams, parts, scale, z, pre, rms, post_rms)
    arrays = _arrays(x, matrix, post, y, slope, grad_raw, grad_x, grad_matrix, grad_post, grad_y)
    pool.run(_cross_back, pool.split(len(x), _GRAIN), *arriving, *arrays, _CODES[gate], _is_far(grad_x))
    if weight is not None:
        flat = streams.flatten(1)
        grad_weight.zero_()
        for start in range(0, len(x), _CHUNK):
            grad_weight.addmm_(grad_raw[start : start + _CHUNK].t(), flat[start : start + _CHUNK])
    if scale is None or z is None:
        grad_bias = slope
    else:
        raw = z[:, :n].tanh() if gate == "tanh" else z[:, :n]
        grad_bias, grad_scale = gate_sums(slope, raw)
    return grad_x, grad_matrix, grad_post, grad_y, grad_weight, grad_bias, grad_scale


def _in_stretches(weight: Tensor) -> Tensor:
    """Return a projection (m, K) as (stretches, m, `STRETCH`), zeros behind the last column.

    Rows a power of two apart would fall on the same few places of the innermost cache.
    """
    m, length = weight.shape
    padded = torch.nn.functional.pad(weight, (0, -length % STRETCH))
    return padded.view(m, -1, STRETCH).transpose(0, 1).contiguous()


def _arrays(*tensors: Tensor | None) -> list[np.ndarray | None]:
    """Arrays on the same memory; None where there is nothing, which compiles a version of its own."""
    return [None if t is None or not t.numel() else array_of(t) for t in tensors]


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
    group = _GROUP if weight is None or weight.nbytes <= _LARGE else _GROUP_OF_LARGE
    held = np.zeros((group, n, d), x.dtype)
    for first in range(start, stop, group):
        count = min(group, stop - first)
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
    flat = held.reshape(len(held), length)
    if weight is not None:
        raw = np.empty((len(held), weight.shape[0]), held.dtype)
        project(raw, flat, weight, count)
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
    total = pre.dtype.type(0)
    for i in range(n):
        pre[i] = math.exp(pre[i] - largest)
        total += pre[i]
    for i in range(n):
        pre[i] /= total


@summing
def _cross_back(  # type: ignore[no-untyped-def]
    grad_streams,
    grad_u,
    grad_z,
    streams,
    weight,
    scale,
    z,
    pre,
    rms,
    post_rms,
    x,
    matrix,
    post,
    y,
    slope,
    grad_raw,
    grad_x,
    grad_matrix,
    grad_post,
    grad_y,
    gate,
    far,
    start,
    stop,
):
    n, d = x.shape[1], x.shape[2]
    total = np.zeros((_GROUP_BACK, n, d), x.dtype)
    radial = np.zeros(_GROUP_BACK, x.dtype)
    for first in range(start, stop, _GROUP_BACK):
        count = min(_GROUP_BACK, stop - first)
        if pre is not None:
            _read_back(
                total, radial, grad_u, grad_z, streams, weight, scale, z, pre, rms, slope, grad_raw, gate, first, count
            )
        for k in range(count):
            t = first + k
            for i in range(n):
                row, place = total[k, i], (t, i)
                projected, turned = _if(weight, row), _if(rms, streams[t, i])
                arriving = (_at(grad_streams, place), _at(grad_u, t), turned, projected)
                weighted(row, arriving, (None, _at(pre, place), radial[k], None))
                if post_rms is not None:
                    inner = x.dtype.type(-dot(row, streams[t, i]) / d)
                    weighted(row, (row, streams[t, i]), (post_rms[t, i], inner * post_rms[t, i]))
            if post is not None:
                dots(grad_post[t], y[t], total[k])
                combine(grad_y[t], total[k], post[t])
            if matrix is None:
                moved(grad_x[t], total[k], far)
            else:
                gram(grad_matrix[t], total[k], x[t])
                mixed(grad_x[t], total[k], matrix[t].T, None, None, far)
    settle()


@summing_part
def _read_back(  # type: ignore[no-untyped-def]
    total, radial, grad_u, grad_z, streams, weight, scale, z, pre, rms, slope, grad_raw, gate, first, count
):
    """Find the gradients of a group's raw numbers, and in `total` what they are to the streams that were projected."""
    length = total.shape[1] * total.shape[2]
    if weight is not None:
        raw = np.zeros((total.shape[0], weight.shape[1]), total.dtype)
    for k in range(count):
        t = first + k
        if grad_u is None:
            slope[t] = 0
        else:
            dots(slope[t], grad_u[t], streams[t])
        if weight is not None:
            _close(raw[k], slope[t], z[t], pre[t], scale[0], _at(grad_z, t), gate)
            if rms is not None:
                radial[k] = -dot(raw[k], z[t]) * rms[t] * rms[t] / length
                weighted(raw[k], (raw[k],), (rms[t],))
            grad_raw[t] = raw[k]
    if weight is not None:
        expand(total.reshape(total.shape[0], length), raw, weight, count)


@summing
def _close(grad, slope, raw, pre, scale, grad_z, gate):  # type: ignore[no-untyped-def]
    """Pull the gradient `slope` of the read weights back through the gate, and on to the raw numbers of a token."""
    n = pre.shape[0]
    if gate == 1:
        inner = dot(slope, pre)
        for i in range(n):
            slope[i] = pre[i] * (slope[i] - inner)
    elif gate == 2:
        for i in range(n):
            slope[i] = pre[i] * (1 - pre[i]) * slope[i]
    if grad_z is None:
        grad[:] = 0
    else:
        grad[:] = grad_z
    for i in range(n):
        factor = scale
        if gate == 3:
            squashed = math.tanh(raw[i])
            factor *= 1 - squashed * squashed
        grad[i] += slope[i] * factor


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
