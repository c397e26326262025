"""Parts of the boundary's kernels: addresses of a block of tokens, one number a token, and the gate."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def tile(t, inside, start, N: tl.constexpr, D: tl.constexpr, BD: tl.constexpr):
    """Return offsets (BT, BD) of a chunk of the first stream, and which are there."""
    c = start + tl.arange(0, BD)
    return t[:, None] * (N * D) + c[None, :], inside[:, None] & (c < D)[None, :]


@triton.jit
def move(target, value, t, inside, start, D: tl.constexpr, BD: tl.constexpr):
    """Store a chunk (BT, BD) of one vector a token."""
    offsets, mask = tile(t, inside, start, 1, D, BD)
    tl.store(target + offsets, value.to(target.dtype.element_ty), mask=mask)


@triton.jit
def fetch(source, t, inside, start, D: tl.constexpr, BD: tl.constexpr):
    """Load a chunk (BT, BD) of one vector a token in float32."""
    offsets, mask = tile(t, inside, start, 1, D, BD)
    return tl.load(source + offsets, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def zeros(COUNT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """So many tiles (ROWS, COLUMNS) of zeros."""
    made = ()
    for _ in tl.static_range(COUNT):
        made = made + (tl.zeros([ROWS, COLUMNS], tl.float32),)
    return made


@triton.jit
def pick(numbers, column, j):
    """Return column j of (BT, columns) as a vector (BT,)."""
    return tl.sum(tl.where(column == j, numbers, 0.0), axis=1)


@triton.jit
def put(numbers, column, j, value):
    """Add a vector (BT,) to column j."""
    return numbers + tl.where(column == j, value[:, None], 0.0)


@triton.jit
def gate_of(raw, bias, scale, column, GATE: tl.constexpr, N: tl.constexpr):
    """Return the read weights of raw numbers (BT, columns), zero from column N on."""
    there = column < N
    b = tl.load(bias + column, mask=there, other=0.0)
    if GATE == "tanh":
        weights = b + scale * tanh(raw)
    elif GATE == "sigmoid":
        weights = 1.0 / (1.0 + tl.exp(-(b + scale * raw)))
    else:
        exponent = tl.where(there, b + scale * raw, float("-inf"))
        weights = tl.exp(exponent - tl.max(exponent, axis=1, keep_dims=True))
        weights = weights / tl.sum(weights, axis=1, keep_dims=True)
    return tl.where(there, weights, 0.0)


@triton.jit
def tanh(x):
    """Hyperbolic tangent to four units in the last place of float32."""
    size = tl.abs(x)
    large = 1.0 - 2.0 / (tl.exp(2.0 * size) + 1.0)
    # One minus one would leave small numbers no digits. The polynomial is Cephes', to half a unit up to here.
    square = x * x
    series = -5.70498872745e-3 * square + 2.06390887954e-2
    series = series * square - 5.37397155531e-2
    series = series * square + 1.33314422036e-1
    series = series * square - 3.33332819422e-1
    return tl.where(size < 0.625, x + x * (square * series), tl.where(x < 0.0, -large, large))
