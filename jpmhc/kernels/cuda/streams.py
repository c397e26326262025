"""Parts of the boundary's kernels: addresses of a block of tokens, the write, products on tensor cores and the gate."""

from __future__ import annotations

import triton
import triton.language as tl

# Up to so many streams loops over them are unrolled, with all loads of a chunk at its beginning; code of n^2 parts for
# more streams would compile for minutes.
UNROLLED = tl.constexpr(4)


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
    """Load a chunk of all streams as they are."""
    offsets, mask = tile(t, inside, start, N, D, BD)
    loaded = ()
    for j in tl.static_range(N):
        loaded = loaded + (tl.load(source + offsets + j * D, mask=mask, other=0.0),)
    return loaded


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
def mixed(loaded, result, matrix, post, t, inside, j, N: tl.constexpr):
    """Return a chunk of row j of ``M x + post y^T``, from chunks of the streams and of y."""
    value = tl.load(post + t * N + j, mask=inside, other=0.0)[:, None] * result
    for i in tl.static_range(N):
        if matrix is None:
            value += tl.where(i == j, loaded[i].to(tl.float32), 0.0)
        else:
            entry = tl.load(matrix + t * (N * N) + (j * N + i), mask=inside, other=0.0)
            value += entry[:, None] * loaded[i].to(tl.float32)
    return value


@triton.jit
def row_of(loaded, result, matrix, entries, posts, j: tl.constexpr, N: tl.constexpr):
    """Do as `mixed` with coefficients that were loaded before."""
    value = posts[j][:, None] * result
    if matrix is None:
        value += loaded[j].to(tl.float32)
    else:
        for i in tl.static_range(N):
            value += entries[j * N + i][:, None] * loaded[i].to(tl.float32)
    return value


@triton.jit
def settled(value, PRECISION: tl.constexpr):
    """Return the value as it is, through an instruction that Triton does not look into.

    For a factor of a product Triton would otherwise make all that the factor is made of a second time in the product's
    own layout, at twice the registers, which spill. Its interpreter has no such instructions.
    """
    if PRECISION == "ieee":
        return value
    else:
        pack: tl.constexpr = 32 // value.dtype.primitive_bitwidth
        return tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [value], value.dtype, is_pure=False, pack=pack)


@triton.jit
def side_by_side(tiles, N2: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr):
    """Return N2 tiles (BT, BD) as one (BT, N2 * BD)."""
    LEVELS: tl.constexpr = (N2 > 1) + (N2 > 2) + (N2 > 4) + (N2 > 8)
    for level in tl.static_range(LEVELS):
        pairs = ()
        for i in tl.static_range(N2 >> (level + 1)):
            pairs = pairs + (tl.join(tiles[i], tiles[i + (N2 >> (level + 1))]),)
        tiles = pairs
    return tl.reshape(tl.permute(tl.reshape(tiles[0], (BT, BD, N2)), (0, 2, 1)), (BT, N2 * BD))


@triton.jit
def project(
    value, weight, raw, start, PRECISION: tl.constexpr, COLUMNS: tl.constexpr, N: tl.constexpr, N2: tl.constexpr,
    D: tl.constexpr, M: tl.constexpr, M2: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Add ``x' W^T`` for a chunk (BT, N2 * BD) of N streams, on the tensor cores; W has so many columns.

    With PRECISION "halves" of W's upper and lower halves, each in M2 columns of its own: x' is bfloat16, and nothing
    of it is lost.
    """
    k = tl.arange(0, N2 * BD)
    stream, c = k // BD, start + k % BD
    row = tl.arange(0, raw.shape[1])
    place = ((row // M2) * M + row % M2)[None, :] * COLUMNS + (stream * D + c)[:, None]
    w = tl.load(weight + place, mask=(row % M2 < M)[None, :] & ((stream < N) & (c < D))[:, None], other=0.0)
    if PRECISION == "halves":
        return tl.dot(settled(value, PRECISION), w, raw)
    else:
        return tl.dot(settled(value.to(tl.float32), PRECISION), w, raw, input_precision=PRECISION)


@triton.jit
def whole_numbers(raw, PRECISION: tl.constexpr, BT: tl.constexpr, M2: tl.constexpr):
    """Return the sums of both halves' columns (BT, M2)."""
    if PRECISION == "halves":
        return tl.sum(tl.reshape(raw, (BT, 2, M2)), axis=1)
    else:
        return raw


@triton.jit(do_not_specialize=["count"])
def halve(weight, upper, lower, count, BLOCK: tl.constexpr):
    """Cut float32 numbers into two in bfloat16 with sixteen bits together."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(weight + place, mask=place < count, other=0.0)
    high = value.to(tl.bfloat16)
    tl.store(upper + place, high, mask=place < count)
    tl.store(lower + place, (value - high.to(tl.float32)).to(tl.bfloat16), mask=place < count)


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
    """Hyperbolic tangent to 1e-7."""
    return 1.0 - 2.0 / (tl.exp(2.0 * x) + 1.0)
