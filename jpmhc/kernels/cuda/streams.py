"""Parts of the boundary's kernels: addresses of a block of tokens, the write, the projection and the gate."""

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
def streams_of(source, t, inside, start, N: tl.constexpr, D: tl.constexpr, BD: tl.constexpr):
    """Load a chunk of all streams in float32."""
    offsets, mask = tile(t, inside, start, N, D, BD)
    loaded = ()
    for j in tl.static_range(N):
        loaded = loaded + (tl.load(source + offsets + j * D, mask=mask, other=0.0).to(tl.float32),)
    return loaded


@triton.jit
def zeros(COUNT: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr):
    """So many tiles (BT, BD) of zeros."""
    made = ()
    for _ in tl.static_range(COUNT):
        made = made + (tl.zeros([BT, BD], tl.float32),)
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
def mixed(loaded, result, matrix, post, t, inside, j, N: tl.constexpr):
    """Return a chunk of row j of ``M x + post y^T``, from chunks of the streams and of y."""
    value = tl.load(post + t * N + j, mask=inside, other=0.0)[:, None] * result
    for i in tl.static_range(N):
        if matrix is None:
            value += tl.where(i == j, loaded[i], 0.0)
        else:
            value += tl.load(matrix + t * (N * N) + (j * N + i), mask=inside, other=0.0)[:, None] * loaded[i]
    return value


@triton.jit
def project(
    value, weight, raw, start, left, PRECISION: tl.constexpr,
    COLUMNS: tl.constexpr, M: tl.constexpr, M2: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Add ``value W^T`` for columns from `start` on, `left` of which belong to the stream, on the tensor cores."""
    row, c = tl.arange(0, M2)[None, :], tl.arange(0, BD)[:, None]
    w = tl.load(weight + row * COLUMNS + (start + c), mask=(row < M) & (c < left), other=0.0)
    return tl.dot(value.to(tl.float32), w, raw, input_precision=PRECISION)


@triton.jit
def gate_of(raw, bias, scale, column, GATE: tl.constexpr, N: tl.constexpr):
    """Return the read weights of raw numbers (BT, M2), zero from column N on."""
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
    """Hyperbolic tangent to 1e-7."""
    return 1.0 - 2.0 / (tl.exp(2.0 * x) + 1.0)
