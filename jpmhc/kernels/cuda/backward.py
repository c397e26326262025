"""Kernels of the boundary's backward pass; `boundary` launches them."""

from __future__ import annotations

import triton
import triton.language as tl

from jpmhc.kernels.cuda.blocks import token_block
from jpmhc.kernels.cuda.streams import fetch, move, pick, put, streams_of, tanh, tile, zeros


@triton.jit(do_not_specialize=["tokens"])
def backward(
    grad_streams, grad_u, grad_z, x, matrix, post, y, weight, scale, streams, z, pre, rms, post_rms,
    grad_x, grad_matrix, grad_post, grad_y, slope, grad_raw, tokens, GATE: tl.constexpr, PRECISION: tl.constexpr,
    N: tl.constexpr, D: tl.constexpr, M: tl.constexpr, M2: tl.constexpr, N2: tl.constexpr, BT: tl.constexpr,
    BD: tl.constexpr,
):  # fmt: skip
    """Gradients of everything that belongs to a token."""
    t, inside = token_block(tl.program_id(0), tokens, BT)
    column = tl.arange(0, N2)[None, :]
    there = inside[:, None] & (column < N)
    raw = tl.zeros([BT, M2], tl.float32)
    radial = tl.zeros([BT], tl.float32)
    if pre is not None:
        slopes = tl.zeros([BT, M2], tl.float32)
        numbers = tl.arange(0, M2)[None, :]
        if grad_u is not None:
            for start in range(0, D, BD):
                arriving = fetch(grad_u, t, inside, start, D, BD)
                offsets, mask = tile(t, inside, start, N, D, BD)
                for i in range(N):
                    value = tl.load(streams + offsets + i * D, mask=mask, other=0.0).to(tl.float32)
                    slopes = put(slopes, numbers, i, tl.sum(arriving * value, axis=1))
        if weight is None:
            tl.store(slope + t[:, None] * N + numbers, slopes, mask=inside[:, None] & (numbers < N))
        else:
            raw, radial = _close(slopes, grad_z, scale, z, pre, rms, slope, grad_raw, t, inside, GATE, N, D, M, M2, BT)
    inner = tl.zeros([BT, N2], tl.float32)
    if post_rms is not None:
        for start in range(0, D, BD):
            offsets, mask = tile(t, inside, start, N, D, BD)
            for i in range(N):
                total = _total(
                    grad_streams, grad_u, pre, weight, raw, radial, rms, streams, t, inside, start, i, PRECISION,
                    N, D, M, M2, BT, BD,
                )  # fmt: skip
                value = tl.load(streams + offsets + i * D, mask=mask, other=0.0).to(tl.float32)
                inner = put(inner, column, i, tl.sum(total * value, axis=1) / D)
    post_sums = tl.zeros([BT, N2], tl.float32)
    for start in range(0, D, BD):
        offsets, mask = tile(t, inside, start, N, D, BD)
        result = tl.zeros([BT, BD], tl.float32)
        grad_result = tl.zeros([BT, BD], tl.float32)
        loaded, moved = (), ()
        if post is not None:
            result = fetch(y, t, inside, start, D, BD)
        if matrix is not None:
            loaded = streams_of(x, t, inside, start, N, D, BD)
            moved = zeros(N, BT, BD)
        for j in range(N):
            total = _total(
                grad_streams, grad_u, pre, weight, raw, radial, rms, streams, t, inside, start, j, PRECISION,
                N, D, M, M2, BT, BD,
            )  # fmt: skip
            if post_rms is not None:
                value = tl.load(streams + offsets + j * D, mask=mask, other=0.0).to(tl.float32)
                factor = tl.load(post_rms + t * N + j, mask=inside, other=0.0)
                total = (total - pick(inner, column, j)[:, None] * value) * factor[:, None]
            if post is not None:
                post_sums = put(post_sums, column, j, tl.sum(total * result, axis=1))
                grad_result += tl.load(post + t * N + j, mask=inside, other=0.0)[:, None] * total
            if matrix is None:
                tl.store(grad_x + offsets + j * D, total.to(grad_x.dtype.element_ty), mask=mask)
            else:
                # The sums of a token's n^2 entries stand in memory between chunks: they are more than registers.
                place = grad_matrix + t[:, None] * (N * N) + (j * N + column)
                sums = tl.load(place, mask=there & (start > 0), other=0.0)
                added = ()
                for i in tl.static_range(N):
                    sums = put(sums, column, i, tl.sum(total * loaded[i], axis=1))
                    entry = tl.load(matrix + t * (N * N) + (j * N + i), mask=inside, other=0.0)
                    added = added + (moved[i] + entry[:, None] * total,)
                moved = added
                tl.debug_barrier()  # all threads have loaded what some of them overwrite
                tl.store(place, sums, mask=there)
        if post is not None:
            move(grad_y, grad_result, t, inside, start, D, BD)
        if matrix is not None:
            for i in tl.static_range(N):
                tl.store(grad_x + offsets + i * D, moved[i].to(grad_x.dtype.element_ty), mask=mask)
            tl.debug_barrier()  # and the sums are there when the next chunk loads them
    if post is not None:
        tl.store(grad_post + t[:, None] * N + column, post_sums, mask=there)


@triton.jit
def _close(
    s, grad_z, scale, z, pre, rms, slope, grad_raw, t, inside, GATE: tl.constexpr,
    N: tl.constexpr, D: tl.constexpr, M: tl.constexpr, M2: tl.constexpr, BT: tl.constexpr,
):  # fmt: skip
    """Pull gradients s of the read weights back to the raw numbers (BT, M2); return also the factor of the norm."""
    column = tl.arange(0, M2)[None, :]
    there, whole = inside[:, None] & (column < N), inside[:, None] & (column < M)
    numbers = tl.load(z + t[:, None] * M + column, mask=whole, other=0.0)
    weights = tl.load(pre + t[:, None] * N + column, mask=there, other=0.0)
    if GATE == "softmax":
        s = weights * (s - tl.sum(weights * s, axis=1, keep_dims=True))
    elif GATE == "sigmoid":
        s = weights * (1.0 - weights) * s
    tl.store(slope + t[:, None] * N + column, s, mask=there)
    raw = s * tl.load(scale)
    if GATE == "tanh":
        squashed = tanh(numbers)
        raw = raw * (1.0 - squashed * squashed)
    if grad_z is not None:
        raw += tl.load(grad_z + t[:, None] * M + column, mask=whole, other=0.0)
    radial = tl.zeros([BT], tl.float32)
    if rms is not None:
        factor = tl.load(rms + t, mask=inside, other=0.0)
        radial = -tl.sum(raw * numbers, axis=1) * factor * factor / (N * D)
        raw = raw * factor[:, None]
    tl.store(grad_raw + t[:, None] * M + column, raw, mask=whole)
    return raw, radial


@triton.jit
def _total(
    grad_streams, grad_u, pre, weight, raw, radial, rms, streams, t, inside, start, i, PRECISION: tl.constexpr,
    N: tl.constexpr, D: tl.constexpr, M: tl.constexpr, M2: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Return a chunk of the gradient of stream i of x', before the norm after the write is pulled back."""
    offsets, mask = tile(t, inside, start, N, D, BD)
    total = tl.zeros([BT, BD], tl.float32)
    if grad_streams is not None:
        total += tl.load(grad_streams + offsets + i * D, mask=mask, other=0.0).to(tl.float32)
    if pre is not None and grad_u is not None:
        weights = tl.load(pre + t * N + i, mask=inside, other=0.0)
        total += weights[:, None] * fetch(grad_u, t, inside, start, D, BD)
    if rms is not None:
        total += radial[:, None] * tl.load(streams + offsets + i * D, mask=mask, other=0.0).to(tl.float32)
    if weight is not None:
        row, c = tl.arange(0, M2)[:, None], start + tl.arange(0, BD)[None, :]
        w = tl.load(weight + row * (N * D) + (i * D + c), mask=(row < M) & (c < D), other=0.0)
        total = tl.dot(raw, w, total, input_precision=PRECISION)
    return total


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
        total = tl.dot(raw, value.to(tl.float32), total, input_precision=PRECISION)
    place = parts + (part.to(tl.int64) * M + row[:, None]) * COLUMNS + column[None, :]
    tl.store(place, total, mask=(row < M)[:, None] & (column < COLUMNS)[None, :])
