"""Tiles: thirty-two matrices side by side, so that one instruction of the processor serves several of them.

A body copies thirty-two tokens to a scratch array of shape (numbers of a matrix, LANES), works there in loops whose
innermost index is the token, and copies the result back. The size of a matrix reaches it as a tuple of that length
(`extent`), which Numba knows when it compiles: inner loops over rows and columns are then unrolled, sums stay in
registers, and there is one compiled version a size.
"""

from __future__ import annotations

import numpy as np
import torch
from numba.extending import overload, register_jitable
from numpy.typing import NDArray
from torch import Tensor

from jpmhc.kernels.cpu.arrays import array_of
from jpmhc.kernels.cpu.compile import part
from jpmhc.kernels.cpu.transpose import BLOCK, transpose
from jpmhc.kernels.shapes import unlike

LANES = 32
GRAIN = 16 * LANES  # tokens that are worth a thread
DTYPES = (torch.float32, torch.float64)
WORTH = 128  # fewer matrices are not worth the seconds that a version for their size takes to compile


def numbers(tensor: Tensor, count: int) -> NDArray[np.floating]:
    """Return a contiguous array (tokens, count) of the tensor's numbers, without a copy where it is contiguous."""
    tokens = tensor.numel() // count
    # NumPy's reshape is a third of the price of torch's, and a map of few matrices has five of them.
    array: NDArray[np.floating] = array_of(tensor).reshape(tokens, count)
    return array


def few(matrix: Tensor, *_args: object) -> str | None:
    """Tell why a batch, the first argument of an operation, is not worth a compiled version for its size."""
    n, m = matrix.shape[-2:]
    return f"fewer than {WORTH} matrices" if matrix.numel() < WORTH * n * m else None


def narrow(matrix: Tensor, *others: object) -> str | None:
    """Tell why columns, the first argument of an operation, do not fit a tile, or other columns do not fit them."""
    n, p = matrix.shape[-2:]
    if not (1 <= p <= 8 and p <= n <= 16):
        return f"no body for matrices of {n} x {p}, only up to 16 x 8"
    return unlike(matrix, *others)


def extent(n: int) -> tuple[int, ...]:
    """Return n in the form that a compiled function knows at compile time: ``len`` gives it back."""
    return (0,) * n


@part
def load(numbers, tile, base, stop):  # type: ignore[no-untyped-def]
    """Copy tokens from `base` on, shape (tokens, numbers), to a tile; beyond `stop` the last one is repeated."""
    count = tile.shape[0]
    whole = count - count % BLOCK
    if base + LANES <= stop:
        for t in range(0, LANES, BLOCK):
            for k in range(0, whole, BLOCK):
                transpose(numbers, base + t, k, tile, k, t)
            for k in range(whole, count):
                for lane in range(BLOCK):
                    tile[k, t + lane] = numbers[base + t + lane, k]
    else:
        for t in range(LANES):
            token = min(base + t, stop - 1)
            for k in range(count):
                tile[k, t] = numbers[token, k]


@part
def store(numbers, tile, base, stop):  # type: ignore[no-untyped-def]
    """Copy a tile back to the tokens from `base` on, as far as `stop`."""
    count = tile.shape[0]
    whole = count - count % BLOCK
    if base + LANES <= stop:
        for t in range(0, LANES, BLOCK):
            for k in range(0, whole, BLOCK):
                transpose(tile, k, t, numbers, base + t, k)
            for k in range(whole, count):
                for lane in range(BLOCK):
                    numbers[base + t + lane, k] = tile[k, t + lane]
    else:
        for t in range(stop - base):
            for k in range(count):
                numbers[base + t, k] = tile[k, t]


def exp(x):  # type: ignore[no-untyped-def]
    """Exponential function in arithmetic alone, for loops over lanes: a library call would keep them scalar.

    Within 1.5 units in the last place for arguments whose result is a normal number; 0 below, infinity above.
    """
    raise NotImplementedError("compiled code only")


# exp(x) = 2^k exp(r), |r| <= log(2) / 2. Adding 1.5 times the first number without a fraction rounds to the integer k
# and leaves it in the low bits. Coefficients of exp(r): Taylor's, which have all the digits at these degrees.
@overload(exp)
def _exp(x):  # type: ignore[no-untyped-def]
    if str(x) == "float32":
        return _exp32
    return _exp64


@register_jitable
def _exp32(x):  # type: ignore[no-untyped-def]
    shifted = np.float32(x * np.float32(1.44269504) + np.float32(12582912.0))
    k = shifted - np.float32(12582912.0)
    r = x - k * np.float32(0.693359375) + k * np.float32(2.12194440e-4)
    value = np.float32(1 / 5040)
    value = value * r + np.float32(1 / 720)
    value = value * r + np.float32(1 / 120)
    value = value * r + np.float32(1 / 24)
    value = value * r + np.float32(1 / 6)
    value = value * r + np.float32(0.5)
    value = value * r * r + r + np.float32(1)
    power = np.int32((shifted.view(np.int32) << np.int32(23)) + np.int32(127 << 23)).view(np.float32)
    value = value * power
    value = np.float32(0) if x < np.float32(-87.3) else value
    return np.float32(np.inf) if x > np.float32(88.3) else value


@register_jitable
def _exp64(x):  # type: ignore[no-untyped-def]
    shifted = np.float64(x * 1.4426950408889634 + 6755399441055744.0)
    k = shifted - 6755399441055744.0
    r = x - k * 0.693145751953125 - k * 1.42860682030941723212e-6
    value = 1 / 6227020800
    value = value * r + 1 / 479001600
    value = value * r + 1 / 39916800
    value = value * r + 1 / 3628800
    value = value * r + 1 / 362880
    value = value * r + 1 / 40320
    value = value * r + 1 / 5040
    value = value * r + 1 / 720
    value = value * r + 1 / 120
    value = value * r + 1 / 24
    value = value * r + 1 / 6
    value = value * r + 0.5
    value = value * r * r + r + 1.0
    power = np.int64((shifted.view(np.int64) << np.int64(52)) + np.int64(1023 << 52)).view(np.float64)
    value = value * power
    value = 0.0 if x < -708.0 else value
    return np.inf if x > 709.0 else value


def tanh(x):  # type: ignore[no-untyped-def]
    """Hyperbolic tangent in arithmetic alone, to three units in the last place."""
    raise NotImplementedError("compiled code only")


# Beyond a half 1 - 2 / (e^2|x| + 1), which leaves small numbers no digits; there the continued fraction x / (1 + x^2 /
# (3 + x^2 / (5 + ...))), which is right to round-off from so many terms on.
@overload(tanh)
def _tanh(x):  # type: ignore[no-untyped-def]
    if str(x) == "float32":
        return _tanh32
    return _tanh64


@register_jitable
def _tanh32(x):  # type: ignore[no-untyped-def]
    one = np.float32(1)
    size = abs(x)
    large = one - np.float32(2) / (exp(np.float32(size + size)) + one)
    square = x * x
    value = np.float32(9)
    for odd in (7, 5, 3, 1):
        value = np.float32(odd) + square / value
    large = -large if x < np.float32(0) else large
    return x / value if size < np.float32(0.5) else large


@register_jitable
def _tanh64(x):  # type: ignore[no-untyped-def]
    size = abs(x)
    large = 1.0 - 2.0 / (exp(size + size) + 1.0)
    square = x * x
    value = 15.0
    for odd in (13, 11, 9, 7, 5, 3, 1):
        value = odd + square / value
    large = -large if x < 0.0 else large
    return x / value if size < 0.5 else large


def log1p_ratio(x):  # type: ignore[no-untyped-def]
    """``log(1 + x) / x`` of a number ``x >= 0`` to nine digits, and 1 at 0, in arithmetic alone."""
    raise NotImplementedError("compiled code only")


# log(1 + x) = e log(2) + 2 artanh(s): 1 + x = 2^e f, s = (f - 1) / (f + 1), and e = 0 for a small x, which 1 + x
# would round. The exponent becomes a number when its bits are put into the low end of 2^23 or 2^52.
@overload(log1p_ratio)
def _log1p_ratio(x):  # type: ignore[no-untyped-def]
    if str(x) == "float32":
        return _log1p_ratio32
    return _log1p_ratio64


@register_jitable
def _log1p_ratio32(x):  # type: ignore[no-untyped-def]
    x = np.float32(max(x, np.float32(1e-37)))
    bits = np.float32(np.float32(1) + x).view(np.int32)
    biased = np.int32((bits >> np.int32(23)) | np.int32(0x4B000000)).view(np.float32)
    fraction = np.int32((bits & np.int32(0x7FFFFF)) | np.int32(0x3F800000)).view(np.float32)
    whole = x > np.float32(0.4)
    e = biased - np.float32(8388608 + 127) if whole else np.float32(0)
    s = (fraction - np.float32(1)) / (fraction + np.float32(1)) if whole else x / (np.float32(2) + x)
    return (e * np.float32(0.6931471805599453) + np.float32(2) * s * _artanh_ratio(s * s, np.float32(1))) / x


@register_jitable
def _log1p_ratio64(x):  # type: ignore[no-untyped-def]
    x = np.float64(max(x, 1e-300))
    bits = np.float64(1.0 + x).view(np.int64)
    biased = np.int64((bits >> np.int64(52)) | np.int64(0x4330000000000000)).view(np.float64)
    fraction = np.int64((bits & np.int64(0xFFFFFFFFFFFFF)) | np.int64(0x3FF0000000000000)).view(np.float64)
    whole = x > 0.4
    e = biased - (4503599627370496.0 + 1023.0) if whole else 0.0
    s = (fraction - 1.0) / (fraction + 1.0) if whole else x / (2.0 + x)
    return (e * 0.6931471805599453 + 2.0 * s * _artanh_ratio(s * s, 1.0)) / x


@register_jitable
def _artanh_ratio(square, one):  # type: ignore[no-untyped-def]
    """``artanh(s) / s`` for ``s <= 1 / 3``."""
    value = one / 17
    for odd in (15, 13, 11, 9, 7, 5, 3, 1):
        value = value * square + one / odd
    return value
