"""Kernels of the boundary's backward pass after `closing`, in the order in which `boundary` launches them."""

from __future__ import annotations

import triton
import triton.language as tl

from jpmhc.kernels.cuda.blocks import numbers_of, token_block
from jpmhc.kernels.cuda.closing import projected, total_of
from jpmhc.kernels.cuda.streams import (
    UNROLLED,
    fetch,
    mixed,
    move,
    row_of,
    streams_of,
    tile,
    zeros,
)


@triton.jit(do_not_specialize=["tokens"])
def pull_few(
    grad_streams, grad_u, x, matrix, post, y, weight, streams, pre, rms, post_rms, grad_raw, radials, inner,
    grad_x, grad_y, grad_matrix, grad_post, tokens, PRECISION: tl.constexpr, N: tl.constexpr, D: tl.constexpr,
    M: tl.constexpr, M2: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Gradients of x, y, M and post for a block of tokens, of few streams: coefficients and sums stay in registers.

    x' is made again of what is loaded anyhow.
    """
    t, inside = token_block(tl.program_id(0), tokens, BT)
    row = tl.arange(0, M2)
    raw = tl.zeros([BT, M2], tl.float32)
    radial = tl.zeros([BT], tl.float32)
    if weight is not None:
        raw = tl.load(grad_raw + t[:, None] * M + row[None, :], mask=inside[:, None] & (row < M)[None, :], other=0.0)
    if rms is not None:
        radial = tl.load(radials + t, mask=inside, other=0.0)
    entries, posts, reads, factors, along = (), (), (), (), ()
    if matrix is not None:
        entries = numbers_of(matrix, t, inside, N * N)
    if post is not None:
        posts = numbers_of(post, t, inside, N)
    if pre is not None:
        reads = numbers_of(pre, t, inside, N)
    if post_rms is not None:
        factors = numbers_of(post_rms, t, inside, N)
        along = numbers_of(inner, t, inside, N)
    entry_sums, post_sums = zeros(N * N, BT, 4), zeros(N, BT, 4)
    for start in tl.range(0, D, BD, num_stages=STAGES):
        offsets, mask = tile(t, inside, start, N, D, BD)
        arriving = tl.zeros([BT, BD], tl.float32)
        result = tl.zeros([BT, BD], tl.float32)
        grad_result = tl.zeros([BT, BD], tl.float32)
        loaded, coming, moved = (), (), zeros(N, BT, BD)
        if matrix is not None:
            loaded = streams_of(x, t, inside, start, N, D, BD)
        elif rms is not None or post_rms is not None:
            loaded = streams_of(streams, t, inside, start, N, D, BD)
        if grad_streams is not None:
            coming = streams_of(grad_streams, t, inside, start, N, D, BD)
        if post is not None:
            result = fetch(y, t, inside, start, D, BD)
        if grad_u is not None:
            arriving = fetch(grad_u, t, inside, start, D, BD)
        added_entries, added_posts = (), ()
        for j in tl.static_range(N):
            value = tl.zeros([BT, BD], tl.float32)
            if rms is not None or post_rms is not None:
                if matrix is None:
                    value = loaded[j].to(tl.float32)
                else:
                    value = row_of(loaded, result, matrix, entries, posts, j, N)
                    if post_rms is not None:
                        value = value * factors[j][:, None]
            total = tl.zeros([BT, BD], tl.float32)
            if weight is not None:
                total = projected(total, weight, raw, start, j, PRECISION, N, D, M, M2, BD)
            if grad_streams is not None:
                total += coming[j].to(tl.float32)
            if pre is not None:
                total += reads[j][:, None] * arriving
            if rms is not None:
                total += radial[:, None] * value
            if post_rms is not None:
                total = (total - along[j][:, None] * value) * factors[j][:, None]
            if post is not None:
                added_posts = added_posts + (post_sums[j] + _by_lane(total * result, BT, BD),)
                grad_result += posts[j][:, None] * total
            if matrix is None:
                tl.store(grad_x + offsets + j * D, total.to(grad_x.dtype.element_ty), mask=mask)
            else:
                going = ()
                for i in tl.static_range(N):
                    product = _by_lane(total * loaded[i].to(tl.float32), BT, BD)
                    added_entries = added_entries + (entry_sums[j * N + i] + product,)
                    going = going + (moved[i] + entries[j * N + i][:, None] * total,)
                moved = going
        if post is not None:
            post_sums = added_posts
            move(grad_y, grad_result, t, inside, start, D, BD)
        if matrix is not None:
            entry_sums = added_entries
            for i in tl.static_range(N):
                tl.store(grad_x + offsets + i * D, moved[i].to(grad_x.dtype.element_ty), mask=mask)
    for j in tl.static_range(N):
        if post is not None:
            tl.store(grad_post + t * N + j, tl.sum(post_sums[j], axis=1), mask=inside)
        if matrix is not None:
            for i in tl.static_range(N):
                tl.store(grad_matrix + t * (N * N) + (j * N + i), tl.sum(entry_sums[j * N + i], axis=1), mask=inside)


@triton.jit
def _by_lane(product, BT: tl.constexpr, BD: tl.constexpr):
    """Sum a chunk over the columns that stand in one thread of a product of the tensor cores, (BT, 4)."""
    return tl.sum(tl.sum(tl.reshape(product, (BT, BD // 8, 4, 2)), axis=3), axis=1)


@triton.jit(do_not_specialize=["tokens", "length"])
def pull(
    grad_streams, grad_u, x, matrix, post, y, weight, streams, pre, rms, post_rms, grad_raw, radials, inner,
    grad_x, grad_y, sums, tokens, length, PRECISION: tl.constexpr, N: tl.constexpr, D: tl.constexpr,
    M: tl.constexpr, M2: tl.constexpr, K: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """Gradients of some columns of x and y in a range of tokens, and these columns' share of those of M and post.

    A program keeps to its columns, so that the projection's stay in the cache. x' is made again of what is loaded
    anyhow.
    """
    start = tl.program_id(0) * BD
    first = tl.program_id(1).to(tl.int64) * length
    many = tokens.to(tl.int64)
    row = tl.arange(0, M2)
    for step in tl.range(0, length, BT, num_stages=STAGES):
        t = first + step + tl.arange(0, BT)
        inside = t < tokens
        offsets, mask = tile(t, inside, start, N, D, BD)
        share = sums + tl.program_id(0) * K * many + t
        arriving = tl.zeros([BT, BD], tl.float32)
        result = tl.zeros([BT, BD], tl.float32)
        grad_result = tl.zeros([BT, BD], tl.float32)
        raw = tl.zeros([BT, M2], tl.float32)
        radial = tl.zeros([BT], tl.float32)
        loaded, moved = (), ()
        coming = ()
        if grad_streams is not None and N <= UNROLLED:
            coming = streams_of(grad_streams, t, inside, start, N, D, BD)
        if matrix is not None:
            loaded = streams_of(x, t, inside, start, N, D, BD)
            moved = zeros(N, BT, BD)
        if post is not None:
            result = fetch(y, t, inside, start, D, BD)
        if grad_u is not None:
            arriving = fetch(grad_u, t, inside, start, D, BD)
        if weight is not None:
            there = inside[:, None] & (row < M)[None, :]
            raw = tl.load(grad_raw + t[:, None] * M + row[None, :], mask=there, other=0.0)
        if rms is not None:
            radial = tl.load(radials + t, mask=inside, other=0.0)
        if N <= UNROLLED:
            for j in tl.static_range(N):
                moved, grad_result = _stream(
                    coming, grad_streams, arriving, result, raw, radial, loaded, moved, grad_result, matrix, post,
                    weight, streams, pre, rms, post_rms, inner, grad_x, share, many, t, inside, start, j, PRECISION,
                    N, D, M, M2, K, BT, BD,
                )  # fmt: skip
        else:
            for j in range(N):
                moved, grad_result = _stream(
                    None, grad_streams, arriving, result, raw, radial, loaded, moved, grad_result, matrix, post,
                    weight, streams, pre, rms, post_rms, inner, grad_x, share, many, t, inside, start, j, PRECISION,
                    N, D, M, M2, K, BT, BD,
                )  # fmt: skip
        if post is not None:
            move(grad_y, grad_result, t, inside, start, D, BD)
        if matrix is not None:
            for i in tl.static_range(N):
                tl.store(grad_x + offsets + i * D, moved[i].to(grad_x.dtype.element_ty), mask=mask)


@triton.jit
def _stream(
    coming, grad_streams, arriving, result, raw, radial, loaded, moved, grad_result, matrix, post, weight, streams,
    pre, rms, post_rms, inner, grad_x, share, many, t, inside, start, j, PRECISION: tl.constexpr, N: tl.constexpr,
    D: tl.constexpr, M: tl.constexpr, M2: tl.constexpr, K: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Pull the gradient of a chunk of stream j of x' back; return what was added to."""
    offsets, mask = tile(t, inside, start, N, D, BD)
    value = tl.zeros([BT, BD], tl.float32)
    factor = tl.zeros([BT], tl.float32)
    if post_rms is not None:
        factor = tl.load(post_rms + t * N + j, mask=inside, other=0.0)
    if rms is not None or post_rms is not None:
        if matrix is None:
            value = tl.load(streams + offsets + j * D, mask=mask, other=0.0).to(tl.float32)
        else:
            value = mixed(loaded, result, matrix, post, t, inside, j, N)
            if post_rms is not None:
                value = value * factor[:, None]
    total = tl.zeros([BT, BD], tl.float32)
    if grad_streams is not None:
        if coming is None:
            total = tl.load(grad_streams + offsets + j * D, mask=mask, other=0.0).to(tl.float32)
        else:
            total = coming[j].to(tl.float32)
    total = total_of(
        total, arriving, pre, weight, raw, radial, rms, value, t, inside, start, j, PRECISION, N, D, M, M2, BD
    )
    if post_rms is not None:
        along = tl.load(inner + t * N + j, mask=inside, other=0.0)
        total = (total - along[:, None] * value) * factor[:, None]
    if post is not None:
        tl.store(share + (K - N + j) * many, tl.sum(total * result, axis=1), mask=inside)
        grad_result += tl.load(post + t * N + j, mask=inside, other=0.0)[:, None] * total
    added = ()
    if matrix is None:
        tl.store(grad_x + offsets + j * D, total.to(grad_x.dtype.element_ty), mask=mask)
    else:
        for i in tl.static_range(N):
            tl.store(share + (j * N + i) * many, tl.sum(total * loaded[i].to(tl.float32), axis=1), mask=inside)
            entry = tl.load(matrix + t * (N * N) + (j * N + i), mask=inside, other=0.0)
            added = added + (moved[i] + entry[:, None] * total,)
    return added, grad_result


@triton.jit(do_not_specialize=["tokens"])
def gather(
    sums, grad_matrix, grad_post, tokens, CHUNKS: tl.constexpr, N: tl.constexpr, K: tl.constexpr, K2: tl.constexpr,
    BT: tl.constexpr,
):  # fmt: skip
    """Sum the columns' shares of the gradients of M and of the write weights."""
    t, inside = token_block(tl.program_id(0), tokens, BT)
    k = tl.arange(0, K2)
    share = tl.arange(0, 8)[:, None, None]
    total = tl.zeros([8, K2, BT], tl.float32)
    for start in range(0, CHUNKS, 8):
        chunk = (start + share).to(tl.int64)
        mask = (chunk < CHUNKS) & (k < K)[None, :, None] & inside[None, None, :]
        total += tl.load(sums + (chunk * K + k[None, :, None]) * tokens + t[None, None, :], mask=mask, other=0.0)
    result = tl.trans(tl.sum(total, axis=0))
    k = k[None, :]
    if grad_matrix is not None:
        tl.store(grad_matrix + t[:, None] * (N * N) + k, result, mask=inside[:, None] & (k < N * N))
    k -= K - N
    tl.store(grad_post + t[:, None] * N + k, result, mask=inside[:, None] & (k >= 0) & (k < N))


@triton.jit(do_not_specialize=["tokens", "length"])
def weight_gradient(
    grad_raw, streams, parts, tokens, length, PRECISION: tl.constexpr, M: tl.constexpr, COLUMNS: tl.constexpr,
    BM: tl.constexpr, BC: tl.constexpr, BT: tl.constexpr,
):  # fmt: skip
    """Sum ``grad_raw_t streams_t^T`` over one range of tokens into a part of its own."""
    column = tl.program_id(0) * BC + tl.arange(0, BC)
    row = tl.program_id(1) * BM + tl.arange(0, BM)
    part = tl.program_id(2)
    first = part.to(tl.int64) * length
    total = tl.zeros([BM, BC], tl.float32)
    for start in range(0, length, BT):
        t = first + start + tl.arange(0, BT)
        raw = tl.load(
            grad_raw + t[None, :] * M + row[:, None], mask=(t < tokens)[None, :] & (row < M)[:, None], other=0.0
        )
        value = tl.load(
            streams + t[:, None] * COLUMNS + column[None, :],
            mask=(t < tokens)[:, None] & (column < COLUMNS)[None, :],
            other=0.0,
        )
        if PRECISION == "halves":
            upper = raw.to(tl.bfloat16)
            total = tl.dot((raw - upper.to(tl.float32)).to(tl.bfloat16), value, total)
            total = tl.dot(upper, value, total)
        else:
            total = tl.dot(raw, value.to(tl.float32), total, input_precision=PRECISION)
    place = parts + (part.to(tl.int64) * M + row[:, None]) * COLUMNS + column[None, :]
    tl.store(place, total, mask=(row < M)[:, None] & (column < COLUMNS)[None, :])
