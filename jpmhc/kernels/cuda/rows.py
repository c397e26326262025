"""Streams of a block of tokens as rows of 16, so that a tensor core mixes the streams of several tokens at once.

A group is 16 rows: the streams, padded to a power of two N2, of 16 / N2 tokens. Their mixers stand as blocks on the
diagonal of a matrix (16, 16) of the group, and ``M x`` is a product of the tensor cores, where loops over pairs of
streams would want n^2 coefficients of a token in registers. What is not a number in one token of a group therefore is
not one in the others.
"""

from __future__ import annotations

import triton
import triton.language as tl

from jpmhc.kernels.cuda.streams import tile

ROWS = tl.constexpr(16)


@triton.jit
def rows_of(block, tokens, N: tl.constexpr, N2: tl.constexpr, BT: tl.constexpr):
    """Return tokens (groups, 16), 64-bit since all addresses are made of them, streams (1, 16), and which are there."""
    group = block.to(tl.int64) * BT + tl.arange(0, BT // (ROWS // N2))[:, None] * (ROWS // N2)
    row = tl.arange(0, ROWS)[None, :]
    token, stream = group + row // N2, row % N2
    return token, stream, (token < tokens) & (stream < N)


@triton.jit
def places_of(token, stream, there, start, N: tl.constexpr, D: tl.constexpr, BD: tl.constexpr):
    """Return offsets (groups, 16, BD) of a chunk of all streams, and which are there."""
    c = (start + tl.arange(0, BD))[None, None, :]
    return (token * (N * D) + stream * D)[:, :, None] + c, there[:, :, None] & (c < D)


@triton.jit
def numbers_at(source, token, stream, there, N: tl.constexpr):
    """Load the numbers (groups, 16) of every stream; zeros, which no code is made for, where there is no source."""
    if source is None:
        return tl.zeros([token.shape[0], token.shape[1]], tl.float32)
    else:
        return tl.load(source + token * N + stream, mask=there, other=0.0)


@triton.jit
def mixers_of(matrix, token, stream, there, N: tl.constexpr, N2: tl.constexpr, TURNED: tl.constexpr):
    """Load the mixers of a group, or their transposes, as blocks on a diagonal (groups, 16, 16); zeros for none."""
    row, column = tl.arange(0, ROWS)[None, :, None], tl.arange(0, ROWS)[None, None, :]
    i, j = stream[:, :, None], column % N2
    mask = there[:, :, None] & (column // N2 == row // N2) & (j < N)
    place = j * N + i if TURNED else i * N + j
    if matrix is None:
        return tl.zeros([token.shape[0], token.shape[1], ROWS], tl.float32)
    else:
        return tl.load(matrix + (token * (N * N))[:, :, None] + place, mask=mask, other=0.0)


@triton.jit
def factor_of(numbers, PRECISION: tl.constexpr):
    """Return float32 numbers as `times` takes them: with the halves as two numbers in bfloat16 of 16 bits together."""
    if PRECISION == "halves":
        upper = numbers.to(tl.bfloat16)
        return upper, (numbers - upper.to(tl.float32)).to(tl.bfloat16)
    else:
        return (numbers,)


@triton.jit
def rounded_factor_of(numbers, PRECISION: tl.constexpr):
    """Do as `factor_of` with the upper half alone, where the product is rounded as much as that is."""
    return (numbers.to(tl.bfloat16),) if PRECISION == "halves" else (numbers,)


@triton.jit
def times(factor, value, total, PRECISION: tl.constexpr):
    """Add the products of a `factor_of` matrices and rows to a total (groups, 16, columns)."""
    if PRECISION == "halves":
        for half in tl.static_range(len(factor)):
            total = tl.dot(factor[len(factor) - 1 - half], value, total)
        return total
    else:
        return tl.dot(factor[0], value.to(tl.float32), total, input_precision=PRECISION)


@triton.jit
def vectors_at(source, t, inside, start, N2: tl.constexpr, D: tl.constexpr, BD: tl.constexpr):
    """Load a chunk of one vector a token at all its rows (groups, 16, BD) in float32; zeros for none."""
    if source is None:
        return tl.zeros([t.shape[0] // (ROWS // N2), ROWS, BD], tl.float32)
    else:
        offsets, mask = tile(t, inside, start, 1, D, BD)
        return spread(tl.load(source + offsets, mask=mask, other=0.0), N2).to(tl.float32)


@triton.jit
def spread(vector, N2: tl.constexpr):
    """Return a vector a token (BT, columns) at all its rows (groups, 16, columns)."""
    BT: tl.constexpr = vector.shape[0]
    BD: tl.constexpr = vector.shape[1]
    each = tl.reshape(vector, (BT // (ROWS // N2), ROWS // N2, 1, BD))
    return tl.reshape(tl.broadcast_to(each, (BT // (ROWS // N2), ROWS // N2, N2, BD)), (BT // (ROWS // N2), ROWS, BD))


@triton.jit
def gathered(rows, N2: tl.constexpr):
    """Return the sum (BT, columns) of every token's rows (groups, 16, columns)."""
    GROUPS: tl.constexpr = rows.shape[0]
    BD: tl.constexpr = rows.shape[2]
    return tl.reshape(tl.sum(tl.reshape(rows, (GROUPS, ROWS // N2, N2, BD)), axis=2), (GROUPS * (ROWS // N2), BD))


@triton.jit
def readers_of(numbers, N2: tl.constexpr):
    """Return one number a stream as matrices (groups, 16, 16) whose first rows sum the streams of a token each."""
    row, column = tl.arange(0, ROWS)[None, :, None], tl.arange(0, ROWS)[None, None, :]
    return tl.where(row == column // N2, numbers[:, None, :], 0.0)


@triton.jit
def move_first(target, rows, block, tokens, start, N2: tl.constexpr, D: tl.constexpr, BT: tl.constexpr):
    """Store the first rows (groups, 16, columns) of what `readers_of` made, one vector a token."""
    G: tl.constexpr = ROWS // N2
    row, c = tl.arange(0, ROWS)[None, :], start + tl.arange(0, rows.shape[2])
    t = block.to(tl.int64) * BT + tl.arange(0, BT // G)[:, None] * G + row
    mask = ((row < G) & (t < tokens))[:, :, None] & (c < D)[None, None, :]
    tl.store(target + (t * D)[:, :, None] + c[None, None, :], rows.to(target.dtype.element_ty), mask=mask)


@triton.jit
def by_lane(rows):
    """Sum (groups, 16, columns) over the columns that stand in one thread after a product, (groups, 16, 4)."""
    GROUPS: tl.constexpr = rows.shape[0]
    BD: tl.constexpr = rows.shape[2]
    return tl.sum(tl.sum(tl.reshape(rows, (GROUPS, ROWS, BD // 8, 4, 2)), axis=4), axis=2)
