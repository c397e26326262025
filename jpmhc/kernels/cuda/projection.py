"""The projection as tensor cores take it: cut into halves, laid out in the tiles that a kernel loads, in two widths.

A block of tensor cores is a power of two wide. The M numbers of a projection are cut into PARTS of A, a power of two,
and a LAST one of B >= 0, so that 80 numbers are 64 and 16 instead of 128. A part has the columns of its numbers, and
with PRECISION "halves" then those of their lower halves: WIDE of them a number.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def arrange(
    weight, tiles, CHUNKS: tl.constexpr, WIDE: tl.constexpr, N: tl.constexpr, D: tl.constexpr, M: tl.constexpr,
    N2: tl.constexpr, A: tl.constexpr, PARTS: tl.constexpr, COLUMNS: tl.constexpr, BD: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Write W (m, n d) as tiles (chunks of d, columns, N2 * BD) with zeros where nothing is."""
    k = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    column = tl.program_id(1) + tl.zeros([BLOCK], tl.int32)
    chunk, k = k // (N2 * BD), k % (N2 * BD)
    number, half = number_of(column, WIDE, A, PARTS, COLUMNS)
    stream, c = k // BD, chunk * BD + k % BD
    there = (chunk < CHUNKS) & (number < M) & (stream < N) & (c < D)
    value = tl.load(weight + number.to(tl.int64) * (N * D) + stream * D + c, mask=there, other=0.0)
    if WIDE == 2:
        upper = value.to(tl.bfloat16)
        value = tl.where(half == 0, value, value - upper.to(tl.float32))
    place = (chunk.to(tl.int64) * COLUMNS + column) * (N2 * BD) + k
    tl.store(tiles + place, value.to(tiles.dtype.element_ty), mask=chunk < CHUNKS)


@triton.jit
def number_of(column, WIDE: tl.constexpr, A: tl.constexpr, PARTS: tl.constexpr, COLUMNS: tl.constexpr):
    """Return the raw number that a column belongs to, and 0 for its upper half or 1."""
    FIRST: tl.constexpr = PARTS * A * WIDE
    B: tl.constexpr = max((COLUMNS - FIRST) // WIDE, 1)
    first = column < FIRST
    number = tl.where(first, column // (A * WIDE) * A + column % A, PARTS * A + (column - FIRST) % B)
    return number, tl.where(first, column % (A * WIDE) // A, (column - FIRST) // B)


@triton.jit
def sums_of(BT: tl.constexpr, WIDE: tl.constexpr, A: tl.constexpr, PARTS: tl.constexpr, B: tl.constexpr):
    """Zeros for the sums of `project`."""
    made = ()
    for _ in tl.static_range(PARTS):
        made = made + (tl.zeros([BT, A * WIDE], tl.float32),)
    if B:
        made = made + (tl.zeros([BT, B * WIDE], tl.float32),)
    return made


@triton.jit
def project(
    value, tiles, sums, start, PRECISION: tl.constexpr, A: tl.constexpr, PARTS: tl.constexpr, B: tl.constexpr,
    BD: tl.constexpr,
):  # fmt: skip
    """Add ``x' W^T`` for a chunk (BT, N2 * BD) of all streams to the sums of every part."""
    K: tl.constexpr = value.shape[1]
    WIDE: tl.constexpr = 2 if PRECISION == "halves" else 1
    COLUMNS: tl.constexpr = (PARTS * A + B) * WIDE
    k = tl.arange(0, K)[None, :]
    tile = tiles + tl.cast(start // BD, tl.int64) * (COLUMNS * K)
    added = ()
    for part in tl.static_range(PARTS):
        w = tl.load(tile + (part * (A * WIDE) + tl.arange(0, A * WIDE))[:, None] * K + k)
        added = added + (multiplied(value, tl.trans(w), sums[part], PRECISION),)
    if B:
        w = tl.load(tile + (PARTS * (A * WIDE) + tl.arange(0, B * WIDE))[:, None] * K + k)
        added = added + (multiplied(value, tl.trans(w), sums[PARTS], PRECISION),)
    return added


@triton.jit
def projected(
    raw, tiles, start, PRECISION: tl.constexpr, A: tl.constexpr, PARTS: tl.constexpr, B: tl.constexpr,
    K: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Return a chunk (BT, N2 * BD) of ``raw W`` for raw numbers in parts, of the upper halves alone."""
    BT: tl.constexpr = raw[0].shape[0]
    WIDE: tl.constexpr = 2 if PRECISION == "halves" else 1
    COLUMNS: tl.constexpr = (PARTS * A + B) * WIDE
    k = tl.arange(0, K)[None, :]
    tile = tiles + tl.cast(start // BD, tl.int64) * (COLUMNS * K)
    total = tl.zeros([BT, K], tl.float32)
    for part in tl.static_range(PARTS):
        w = tl.load(tile + (part * (A * WIDE) + tl.arange(0, A))[:, None] * K + k)
        total = multiplied(raw[part], w, total, PRECISION)
    if B:
        w = tl.load(tile + (PARTS * (A * WIDE) + tl.arange(0, B))[:, None] * K + k)
        total = multiplied(raw[PARTS], w, total, PRECISION)
    return total


@triton.jit
def multiplied(left, right, total, PRECISION: tl.constexpr):
    """Add a product on the tensor cores."""
    if PRECISION == "halves":
        return tl.dot(left, right, total)
    else:
        return tl.dot(left.to(tl.float32), right.to(tl.float32), total, input_precision=PRECISION)


@triton.jit
def whole(part, PRECISION: tl.constexpr):
    """Return the raw numbers of a part: the sums of both halves' columns."""
    if PRECISION == "halves":
        return tl.sum(tl.reshape(part, (part.shape[0], 2, part.shape[1] // 2)), axis=1)
    else:
        return part
