"""Kernel of the boundary's forward pass; `boundary` launches it."""

from __future__ import annotations

import triton
import triton.language as tl

from jpmhc.kernels.cuda.blocks import token_block
from jpmhc.kernels.cuda.projection import project, sums_of, whole
from jpmhc.kernels.cuda.rows import (
    by_lane,
    factor_of,
    gathered,
    mixers_of,
    numbers_at,
    places_of,
    rows_of,
    times,
    vectors_at,
)
from jpmhc.kernels.cuda.streams import gate_of, move, pick, tile


@triton.jit(do_not_specialize=["tokens"])
def cross(
    x, matrix, post, y, weight, bias, scale, out, u, z, pre, rms, post_rms, tokens,
    eps: tl.constexpr, post_eps: tl.constexpr, GATE: tl.constexpr, PRECISION: tl.constexpr,
    N: tl.constexpr, D: tl.constexpr, M: tl.constexpr, A: tl.constexpr, PARTS: tl.constexpr, B: tl.constexpr,
    N2: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr, STAGES: tl.constexpr, READ: tl.constexpr,
):  # fmt: skip
    """One program a block of tokens: write and project, then, where that has to wait for the raw numbers, read."""
    token, stream, there = rows_of(tl.program_id(0), tokens, N, N2, BT)
    t, inside = token_block(tl.program_id(0), tokens, BT)
    mixers = factor_of(mixers_of(matrix, token, stream, there, N, N2, False), PRECISION)
    posts = numbers_at(post, token, stream, there, N)
    given = tl.zeros([token.shape[0], token.shape[1]], tl.float32)
    factors = given
    if post_rms is not None:
        squares = tl.zeros([token.shape[0], token.shape[1], 4], tl.float32)
        for start in tl.range(0, D, BD, num_stages=STAGES):
            place, mask = places_of(token, stream, there, start, N, D, BD)
            loaded = tl.load(x + place, mask=mask, other=0.0)
            fresh = _written(loaded, y, mixers, posts, t, inside, start, matrix, PRECISION, N2, D, BD)
            squares += by_lane(fresh * fresh)
        # Without an epsilon the zeros that fill up have no finite factor, and products with the group would be NaN.
        factors = tl.where(there, 1.0 / tl.sqrt(tl.sum(squares, axis=2) / D + post_eps), 0.0)
        tl.store(post_rms + token * N + stream, factors, mask=there)
    if bias is not None and weight is None:
        given = numbers_at(bias, token, stream, there, N)
        tl.store(pre + token * N + stream, given, mask=there)
    squares = tl.zeros([token.shape[0], token.shape[1], 4], tl.float32)
    sums = sums_of(BT, 2 if PRECISION == "halves" else 1, A, PARTS, B)
    for start in tl.range(0, D, BD, num_stages=STAGES):
        place, mask = places_of(token, stream, there, start, N, D, BD)
        value = tl.load(x + place, mask=mask, other=0.0)
        wide = value.to(tl.float32)
        if post is not None:
            wide = _written(value, y, mixers, posts, t, inside, start, matrix, PRECISION, N2, D, BD)
            if post_rms is not None:
                wide *= factors[:, :, None]
            value = wide.to(out.dtype.element_ty)
            wide = value.to(tl.float32)  # read as it is stored, which backward and the next boundary see
        if rms is not None:
            squares += by_lane(wide * wide)
        if bias is not None and weight is None:
            move(u, gathered(given[:, :, None] * wide, N2), t, inside, start, D, BD)
        if weight is not None:
            flat = tl.reshape(value, (BT, N2 * BD))
            sums = project(flat, weight, sums, start, PRECISION, A, PARTS, B, BD)
        if post is not None:  # stored after the product, which would wait for it
            tl.store(out + place, value, mask=mask)
    if bias is not None and weight is not None:
        factor = tl.full([BT], 1.0, tl.float32)
        if rms is not None:
            square = tl.reshape(gathered(tl.sum(squares, axis=2)[:, :, None], N2), (BT,))
            factor = 1.0 / tl.sqrt(square / (N * D) + eps)
            tl.store(rms + t, factor, mask=inside)
        numbers = tl.arange(0, A)[None, :]
        raw = whole(sums[0], PRECISION) * factor[:, None]
        weights = gate_of(raw, bias, tl.load(scale), numbers, GATE, N)
        tl.store(pre + t[:, None] * N + numbers, weights, mask=inside[:, None] & (numbers < N))
        for part in tl.static_range(PARTS):
            raw = whole(sums[part], PRECISION) * factor[:, None]
            numbers = part * A + tl.arange(0, A)[None, :]
            tl.store(z + t[:, None] * M + numbers, raw, mask=inside[:, None] & (numbers < M))
        if B:
            raw = whole(sums[PARTS], PRECISION) * factor[:, None]
            numbers = PARTS * A + tl.arange(0, B)[None, :]
            tl.store(z + t[:, None] * M + numbers, raw, mask=inside[:, None] & (numbers < M))
        tl.debug_barrier()  # what other threads of the block wrote is read
        if post is None:
            _read(x, u, weights, t, inside, N, D, BT, READ)
        else:
            _read(out, u, weights, t, inside, N, D, BT, READ)


@triton.jit
def _written(
    loaded, y, mixers, posts, t, inside, start, matrix, PRECISION: tl.constexpr, N2: tl.constexpr, D: tl.constexpr,
    BD: tl.constexpr,
):  # fmt: skip
    """Return a chunk (groups, 16, BD) of ``M x + post y^T`` in float32."""
    fresh = posts[:, :, None] * vectors_at(y, t, inside, start, N2, D, BD)
    if matrix is None:
        return fresh + loaded.to(tl.float32)
    else:
        return times(mixers, loaded, fresh, PRECISION)


@triton.jit
def _read(
    streams, u, weights, t, inside, N: tl.constexpr, D: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Read the streams with the read weights (BT, columns), from the end on, which the cache has kept longest."""
    column = tl.arange(0, weights.shape[1])[None, :]
    LAST: tl.constexpr = (D - 1) // BD * BD
    for done in range(0, D, BD):
        start = LAST - done
        offsets, mask = tile(t, inside, start, N, D, BD)
        read = tl.zeros([BT, BD], tl.float32)
        for j in tl.static_range(N):
            value = tl.load(streams + offsets + j * D, mask=mask, other=0.0)
            read += pick(weights, column, j)[:, None] * value.to(tl.float32)
        move(u, read, t, inside, start, D, BD)
