"""Gates on a CPU: one look at the raw numbers, thirty-two tokens side by side."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from jpmhc.kernels import pool
from jpmhc.kernels.bodies import body
from jpmhc.kernels.cpu.arrays import array_of
from jpmhc.kernels.cpu.compile import compiled, part
from jpmhc.kernels.cpu.tiles import DTYPES, LANES, exp, load, store
from jpmhc.kernels.cpu.tiles import tanh as hyperbolic
from jpmhc.kernels.gates import Gates, GatesPullback, unfit

_CODES = {"softmax": 1, "sigmoid": 2, "tanh": 3}
_GRAIN = 16 * LANES  # tokens that are worth a thread, and whose gradients of bias and scale are one sum


@body(DTYPES, lambda *args: unfit(Gates(*args)))
def gates_forward(gates: Gates) -> tuple[Tensor, Tensor]:
    """Run `_open` over all tokens."""
    post, raw = results = gates.results()
    arrays = [array_of(t) for t in (gates.z, gates.bias, gates.scale, post, raw)]
    pool.run(_open, pool.split(len(post), _GRAIN), *arrays, _CODES[gates.gate], gates.squashed)
    return results


@body(DTYPES, lambda *args: unfit(GatesPullback(*args)))
def gates_backward(pullback: GatesPullback) -> tuple[Tensor, Tensor]:
    """Run `_close` over all tokens."""
    grad_z, grad_parameters = results = pullback.results()
    grad_post, grad_raw, z, post, scale = (array_of(t) for t in pullback[:5])
    chunks = -(-len(z) // _GRAIN)
    sums = np.empty((chunks, grad_parameters.numel()), z.dtype)
    arrays = grad_post, grad_raw, z, post, scale, array_of(grad_z), sums
    pool.run(_close, pool.split(chunks), *arrays, _CODES[pullback.gate], pullback.squashed)
    array_of(grad_parameters)[:] = sums.sum(0, dtype=np.float64)  # one after the other, whatever their number
    return results


@part
def _weights(tile, factor, total, code):  # type: ignore[no-untyped-def]
    """Turn the first numbers (n, tokens) of a tile into write weights."""
    n, one = len(tile), tile.dtype.type(1)
    if code == 1:
        for t in range(LANES):
            factor[t] = tile[0, t]
            total[t] = one - one
        for i in range(1, n):
            for t in range(LANES):
                factor[t] = tile[i, t] if tile[i, t] > factor[t] else factor[t]
        for i in range(n):
            for t in range(LANES):
                tile[i, t] = exp(tile[i, t] - factor[t])
                total[t] += tile[i, t]
        for t in range(LANES):
            factor[t] = tile.dtype.type(n) / total[t]
        for i in range(n):
            for t in range(LANES):
                tile[i, t] *= factor[t]
    elif code == 2:
        for i in range(n):
            for t in range(LANES):
                tile[i, t] = (one + one) / (one + exp(-tile[i, t]))
    else:
        for i in range(n):
            for t in range(LANES):
                tile[i, t] += one


@compiled
def _open(z, bias, scale, post, raw, code, squashed, start, stop):  # type: ignore[no-untyped-def]
    n, k = post.shape[1], raw.shape[1]
    tile = np.empty((z.shape[1], LANES), z.dtype)
    weights, numbers = tile[n : 2 * n], tile[2 * n :]
    factor, total = np.empty(LANES, z.dtype), np.empty(LANES, z.dtype)
    for base in range(start, stop, LANES):
        load(z, tile, base, stop)
        for i in range(n + k):
            row = tile[n + i]
            if code == 3 if i < n else squashed:
                for t in range(LANES):
                    row[t] = hyperbolic(row[t])
            factor_of_row = scale[0] if i < n else scale[1]
            for t in range(LANES):
                row[t] = bias[i] + factor_of_row * row[t]
        _weights(weights, factor, total, code)
        store(post, weights, base, stop)
        store(raw, numbers, base, stop)


@part
def _slopes(slope, weights, mean, code):  # type: ignore[no-untyped-def]
    """Pull gradients (n, tokens) of the write weights back to what these are functions of."""
    n, one = len(slope), slope.dtype.type(1)
    half = one / (one + one)
    if code == 1:
        for t in range(LANES):
            mean[t] = one - one
        for i in range(n):
            for t in range(LANES):
                mean[t] += weights[i, t] * slope[i, t]
        for t in range(LANES):
            mean[t] /= slope.dtype.type(n)
        for i in range(n):
            for t in range(LANES):
                slope[i, t] = weights[i, t] * (slope[i, t] - mean[t])
    elif code == 2:
        for i in range(n):
            for t in range(LANES):
                slope[i, t] *= weights[i, t] * (one - half * weights[i, t])


@part
def _row(slope, row, total, product, factor, bends):  # type: ignore[no-untyped-def]
    """Turn raw numbers of one kind into their gradient, and add up those of bias and scale."""
    if bends:
        for t in range(LANES):
            row[t] = hyperbolic(row[t])
        for t in range(LANES):
            total[t] += slope[t]
            product[t] += slope[t] * row[t]
            row[t] = factor * slope[t] * (row.dtype.type(1) - row[t] * row[t])
    else:
        for t in range(LANES):
            total[t] += slope[t]
            product[t] += slope[t] * row[t]
            row[t] = factor * slope[t]


@compiled
def _close(grad_post, grad_raw, z, post, scale, grad_z, sums, code, squashed, start, stop):  # type: ignore[no-untyped-def]
    (tokens, n), k = post.shape, grad_raw.shape[1]
    one = z.dtype.type(1)
    zero = one - one
    tile, weights = np.empty((n + n + k, LANES), z.dtype), np.empty((n, LANES), z.dtype)
    slopes = np.empty((n + k, LANES), z.dtype)
    total, products, mean = np.empty((n + k, LANES), z.dtype), np.empty((2, LANES), z.dtype), np.empty(LANES, z.dtype)
    for chunk in range(start, stop):
        total[:] = zero
        products[:] = zero
        end = min(tokens, (chunk + 1) * _GRAIN)
        for base in range(chunk * _GRAIN, end, LANES):
            load(z, tile, base, end)
            load(post, weights, base, end)
            load(grad_post, slopes[:n], base, end)
            load(grad_raw, slopes[n:], base, end)
            # Beyond the last token it is repeated.
            slopes[:, end - base :] = zero
            _slopes(slopes[:n], weights, mean, code)
            for i in range(n):
                for t in range(LANES):
                    tile[i, t] = zero
            for i in range(n + k):
                place = 0 if i < n else 1
                bends = code == 3 if i < n else squashed
                _row(slopes[i], tile[n + i], total[i], products[place], scale[place], bends)
            store(grad_z, tile, base, end)
        for i in range(n + k):
            sums[chunk, i] = total[i].sum()
        for place in range(2):
            sums[chunk, n + k + place] = products[place].sum()
