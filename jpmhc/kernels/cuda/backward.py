"""Kernels of the boundary's backward pass after `closing`, in the order in which `boundary` launches them."""

from __future__ import annotations

import triton
import triton.language as tl

from jpmhc.kernels.cuda.blocks import token_block
from jpmhc.kernels.cuda.closing import arrived, parts_of
from jpmhc.kernels.cuda.projection import multiplied, sums_of, whole
from jpmhc.kernels.cuda.rows import (
    ROWS,
    by_lane,
    factor_of,
    mixers_of,
    move_first,
    numbers_at,
    places_of,
    readers_of,
    rounded_factor_of,
    rows_of,
    times,
    vectors_at,
)


@triton.jit(do_not_specialize=["tokens"])
def pull(
    grad_streams, grad_u, x, matrix, post, y, weight, streams, pre, rms, post_rms, grad_raw, radials, inner,
    grad_x, grad_y, grad_matrix, grad_post, tokens, PRECISION: tl.constexpr, N: tl.constexpr, D: tl.constexpr,
    A: tl.constexpr, PARTS: tl.constexpr, B: tl.constexpr, N2: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """Gradients of x, y, M and post for a block of tokens.

    That of x' is rounded to the dtype of the streams before it is multiplied, as if another operation read it.
    """
    token, stream, there = rows_of(tl.program_id(0), tokens, N, N2, BT)
    t, inside = token_block(tl.program_id(0), tokens, BT)
    raw = parts_of(grad_raw, t, inside, 2 if PRECISION == "halves" else 1, A, PARTS, B)
    reads = numbers_at(pre, token, stream, there, N)
    posts = numbers_at(post, token, stream, there, N)
    factors = numbers_at(post_rms, token, stream, there, N)
    readers = rounded_factor_of(readers_of(posts, N2), PRECISION)
    back = factor_of(mixers_of(matrix, token, stream, there, N, N2, True), PRECISION)
    # The norms take from the gradient multiples of x', which is made again of x and y.
    multiple = tl.zeros([token.shape[0], token.shape[1]], tl.float32)
    if rms is not None:
        multiple += tl.load(radials + token, mask=there, other=0.0)
    if post_rms is not None:
        multiple = (multiple - numbers_at(inner, token, stream, there, N)) * factors
        if matrix is not None:
            multiple *= factors
    mixers = mixers_of(matrix, token, stream, there, N, N2, False)
    towards = rounded_factor_of(multiple[:, :, None] * mixers, PRECISION)
    post_sums = tl.zeros([token.shape[0], token.shape[1], 4], tl.float32)
    sums = tl.zeros([token.shape[0], token.shape[1], ROWS], tl.float32)
    for start in tl.range(0, D, BD, num_stages=STAGES):
        place, mask = places_of(token, stream, there, start, N, D, BD)
        total = arrived(
            grad_streams, grad_u, weight, raw, reads, place, mask, t, inside, start, PRECISION, A, PARTS, B, N2, D,
            BT, BD,
        )  # fmt: skip
        if post_rms is not None:
            total *= factors[:, :, None]
        result = vectors_at(y, t, inside, start, N2, D, BD)
        loaded = tl.load(x + place, mask=mask, other=0.0)
        if rms is not None or post_rms is not None:
            if matrix is None:
                value = tl.load(streams + place, mask=mask, other=0.0).to(tl.float32)
                total += multiple[:, :, None] * value
            else:
                total += (multiple * posts)[:, :, None] * result
                total = times(towards, loaded, total, PRECISION)
        if post is not None:
            post_sums += by_lane(total * result)
        rounded = total.to(grad_x.dtype.element_ty)
        nothing = tl.zeros([token.shape[0], token.shape[1], BD], tl.float32)
        if post is not None:
            made = times(readers, rounded, nothing, PRECISION)
            move_first(grad_y, made, tl.program_id(0), tokens, start, N2, D, BT)
        if matrix is None:
            tl.store(grad_x + place, rounded, mask=mask)
        else:
            sums = multiplied(rounded, tl.permute(loaded, (0, 2, 1)), sums, PRECISION)
            moved = times(back, rounded, nothing, PRECISION)
            tl.store(grad_x + place, moved.to(grad_x.dtype.element_ty), mask=mask)
    if post is not None:
        tl.store(grad_post + token * N + stream, tl.sum(post_sums, axis=2), mask=there)
    if matrix is not None:
        row, column = tl.arange(0, ROWS)[None, :, None], tl.arange(0, ROWS)[None, None, :]
        block = there[:, :, None] & (column // N2 == row // N2) & (column % N2 < N)
        tl.store(grad_matrix + (token * (N * N) + stream * N)[:, :, None] + column % N2, sums, mask=block)


@triton.jit(do_not_specialize=["tokens", "length"])
def weight_gradient(
    grad_raw, streams, parts, tokens, length, PRECISION: tl.constexpr, M: tl.constexpr, WIDTH: tl.constexpr,
    A: tl.constexpr, PARTS: tl.constexpr, B: tl.constexpr, BC: tl.constexpr, BT: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Sum ``grad_raw_t streams_t^T`` over one range of tokens into a part of its own."""
    WIDE: tl.constexpr = 2 if PRECISION == "halves" else 1
    COLUMNS: tl.constexpr = (PARTS * A + B) * WIDE
    column = tl.program_id(0) * BC + tl.arange(0, BC)
    first = tl.program_id(1).to(tl.int64) * length
    sums = sums_of(BC, WIDE, A, PARTS, B)
    for start in tl.range(0, length, BT, num_stages=STAGES):
        t = first + start + tl.arange(0, BT)
        inside = (t < tokens)[:, None]
        value = tl.load(
            streams + t[:, None] * WIDTH + column[None, :], mask=inside & (column < WIDTH)[None, :], other=0.0
        )
        value = tl.trans(value)
        added = ()
        for part in tl.static_range(PARTS):
            place = t[:, None] * COLUMNS + part * (A * WIDE) + tl.arange(0, A * WIDE)[None, :]
            raw = tl.load(grad_raw + place, mask=inside, other=0.0)
            added = added + (multiplied(value, raw, sums[part], PRECISION),)
        if B:
            place = t[:, None] * COLUMNS + PARTS * (A * WIDE) + tl.arange(0, B * WIDE)[None, :]
            raw = tl.load(grad_raw + place, mask=inside, other=0.0)
            added = added + (multiplied(value, raw, sums[PARTS], PRECISION),)
        sums = added
    target = parts + tl.program_id(1).to(tl.int64) * (M * WIDTH) + column[:, None]
    for part in tl.static_range(PARTS):
        number = (part * A + tl.arange(0, A))[None, :].to(tl.int64)
        mask = (number < M) & (column < WIDTH)[:, None]
        tl.store(target + number * WIDTH, whole(sums[part], PRECISION), mask=mask)
    if B:
        number = (PARTS * A + tl.arange(0, B))[None, :].to(tl.int64)
        mask = (number < M) & (column < WIDTH)[:, None]
        tl.store(target + number * WIDTH, whole(sums[PARTS], PRECISION), mask=mask)
