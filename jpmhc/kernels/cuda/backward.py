"""Kernels of the boundary's backward pass; `boundary` launches them."""

from __future__ import annotations

import triton
import triton.language as tl

from jpmhc.kernels.cuda.blocks import token_block
from jpmhc.kernels.cuda.streams import fetch, move, streams_of, tanh, tile, zeros


@triton.jit(do_not_specialize=["tokens"])
def backward(
    grad_streams, grad_u, grad_z, x, matrix, post, y, weight, scale, streams, z, pre, rms, post_rms,
    grad_x, grad_matrix, grad_post, grad_y, slope, grad_raw, tokens, GATE: tl.constexpr, PRECISION: tl.constexpr,
    N: tl.constexpr, D: tl.constexpr, M: tl.constexpr, M2: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Gradients of everything that belongs to a token."""
    t, inside = token_block(tl.program_id(0), tokens, BT)
    raw = tl.zeros([BT, M2], tl.float32)
    radial = tl.zeros([BT], tl.float32)
    if pre is not None:
        slopes = zeros(N, BT)
        if grad_u is not None:
            for start in range(0, D, BD):
                arriving = fetch(grad_u, t, inside, start, D, BD)
                offsets, mask = tile(t, inside, start, N, D, BD)
                added = ()
                for i in tl.static_range(N):
                    value = tl.load(streams + offsets + i * D, mask=mask, other=0.0).to(tl.float32)
                    added = added + (slopes[i] + tl.sum(arriving * value, axis=1),)
                slopes = added
        if weight is None:
            for i in tl.static_range(N):
                tl.store(slope + t * N + i, slopes[i], mask=inside)
        else:
            raw, radial = _close(slopes, grad_z, scale, z, pre, rms, slope, grad_raw, t, inside, GATE, N, D, M, M2, BT)
    inner = zeros(N, BT)
    if post_rms is not None:
        for start in range(0, D, BD):
            totals = _totals(
                grad_streams,
                grad_u,
                pre,
                weight,
                raw,
                radial,
                rms,
                streams,
                t,
                inside,
                start,
                PRECISION,
                N,
                D,
                M,
                M2,
                BT,
                BD,
            )
            offsets, mask = tile(t, inside, start, N, D, BD)
            added = ()
            for i in tl.static_range(N):
                value = tl.load(streams + offsets + i * D, mask=mask, other=0.0).to(tl.float32)
                added = added + (inner[i] + tl.sum(totals[i] * value, axis=1) / D,)
            inner = added
    post_sums = zeros(N, BT)
    matrix_sums = zeros(N * N if N <= 8 else 0, BT)
    for start in range(0, D, BD):
        offsets, mask = tile(t, inside, start, N, D, BD)
        totals = _totals(
            grad_streams,
            grad_u,
            pre,
            weight,
            raw,
            radial,
            rms,
            streams,
            t,
            inside,
            start,
            PRECISION,
            N,
            D,
            M,
            M2,
            BT,
            BD,
        )
        if post_rms is not None:
            moved = ()
            for i in tl.static_range(N):
                value = tl.load(streams + offsets + i * D, mask=mask, other=0.0).to(tl.float32)
                factor = tl.load(post_rms + t * N + i, mask=inside, other=0.0)
                moved = moved + ((totals[i] - inner[i][:, None] * value) * factor[:, None],)
            totals = moved
        if post is not None:
            result = fetch(y, t, inside, start, D, BD)
            added = ()
            grad_result = tl.zeros([BT, BD], tl.float32)
            for j in tl.static_range(N):
                added = added + (post_sums[j] + tl.sum(totals[j] * result, axis=1),)
                grad_result += tl.load(post + t * N + j, mask=inside, other=0.0)[:, None] * totals[j]
            post_sums = added
            move(grad_y, grad_result, t, inside, start, D, BD)
        if matrix is not None:
            loaded = streams_of(x, t, inside, start, N, D, BD)
            sums = ()
            for j in tl.static_range(N):
                for i in tl.static_range(N):
                    part = tl.sum(totals[j] * loaded[i], axis=1)
                    if N <= 8:
                        sums = sums + (matrix_sums[j * N + i] + part,)
                    else:  # more vectors than registers: the sum stands in memory
                        place = grad_matrix + t * (N * N) + (j * N + i)
                        before = tl.load(place, mask=inside & (start > 0), other=0.0)
                        tl.debug_barrier()
                        tl.store(place, before + part, mask=inside)
            matrix_sums = sums
            moved = ()
            for i in tl.static_range(N):
                value = tl.zeros([BT, BD], tl.float32)
                for j in tl.static_range(N):
                    entry = tl.load(matrix + t * (N * N) + (j * N + i), mask=inside, other=0.0)
                    value += entry[:, None] * totals[j]
                moved = moved + (value,)
            totals = moved
        for i in tl.static_range(N):
            tl.store(grad_x + offsets + i * D, totals[i].to(grad_x.dtype.element_ty), mask=mask)
    if post is not None:
        for j in tl.static_range(N):
            tl.store(grad_post + t * N + j, post_sums[j], mask=inside)
    if matrix is not None:
        if N <= 8:
            for k in tl.static_range(N * N):
                tl.store(grad_matrix + t * (N * N) + k, matrix_sums[k], mask=inside)


@triton.jit
def _close(
    slopes, grad_z, scale, z, pre, rms, slope, grad_raw, t, inside, GATE: tl.constexpr,
    N: tl.constexpr, D: tl.constexpr, M: tl.constexpr, M2: tl.constexpr, BT: tl.constexpr,
):  # fmt: skip
    """Pull gradients of the read weights back to the raw numbers (BT, M2); return also the factor of the norm."""
    column = tl.arange(0, M2)[None, :]
    there, whole = inside[:, None] & (column < N), inside[:, None] & (column < M)
    s = tl.zeros([BT, M2], tl.float32)
    for i in tl.static_range(N):
        s += tl.where(column == i, slopes[i][:, None], 0.0)
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
def _totals(
    grad_streams, grad_u, pre, weight, raw, radial, rms, streams, t, inside, start, PRECISION: tl.constexpr,
    N: tl.constexpr, D: tl.constexpr, M: tl.constexpr, M2: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Return a chunk of the gradient of x', before the norm after the write is pulled back."""
    offsets, mask = tile(t, inside, start, N, D, BD)
    row, c = tl.arange(0, M2)[:, None], start + tl.arange(0, BD)[None, :]
    totals = ()
    for i in tl.static_range(N):
        total = tl.zeros([BT, BD], tl.float32)
        if grad_streams is not None:
            total += tl.load(grad_streams + offsets + i * D, mask=mask, other=0.0).to(tl.float32)
        if pre is not None:
            if grad_u is not None:
                weights = tl.load(pre + t * N + i, mask=inside, other=0.0)
                total += weights[:, None] * fetch(grad_u, t, inside, start, D, BD)
        if rms is not None:
            total += radial[:, None] * tl.load(streams + offsets + i * D, mask=mask, other=0.0).to(tl.float32)
        if weight is not None:
            w = tl.load(weight + row * (N * D) + (i * D + c), mask=(row < M) & (c < D), other=0.0)
            total = tl.dot(raw, w, total, input_precision=PRECISION)
        totals = totals + (total,)
    return totals


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
