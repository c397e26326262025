"""Kernels of the boundary's forward pass; `boundary` launches them."""

from __future__ import annotations

import triton
import triton.language as tl

from jpmhc.kernels.cuda.blocks import numbers_of, token_block
from jpmhc.kernels.cuda.streams import (
    UNROLLED,
    fetch,
    gate_of,
    mixed,
    move,
    pick,
    project,
    put,
    row_of,
    side_by_side,
    streams_of,
    tile,
    whole_numbers,
    zeros,
)


@triton.jit(do_not_specialize=["tokens"])
def cross(
    x, matrix, post, y, weight, bias, scale, out, u, z, pre, rms, post_rms, tokens,
    eps: tl.constexpr, post_eps: tl.constexpr, GATE: tl.constexpr, PRECISION: tl.constexpr,
    N: tl.constexpr, D: tl.constexpr, M: tl.constexpr, M2: tl.constexpr, N2: tl.constexpr, BT: tl.constexpr,
    BD: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """One program a block of tokens: write and project, then, where that has to wait for the raw numbers, read."""
    t, inside = token_block(tl.program_id(0), tokens, BT)
    column = tl.arange(0, N2)[None, :]
    there = inside[:, None] & (column < N)
    entries, posts = (), ()
    if N <= UNROLLED:  # registers hold them for all chunks
        if matrix is not None:
            entries = numbers_of(matrix, t, inside, N * N)
        if post is not None:
            posts = numbers_of(post, t, inside, N)
    factors = tl.zeros([BT, N2], tl.float32)
    if post_rms is not None:
        squares = zeros(N, BT, BD) if N <= UNROLLED else ()
        for start in tl.range(0, D, BD, num_stages=STAGES):
            loaded = streams_of(x, t, inside, start, N, D, BD)
            result = fetch(y, t, inside, start, D, BD)
            if N <= UNROLLED:
                added = ()
                for j in tl.static_range(N):
                    fresh = row_of(loaded, result, matrix, entries, posts, j, N)
                    added = added + (squares[j] + fresh * fresh,)
                squares = added
            else:
                for j in range(N):
                    fresh = mixed(loaded, result, matrix, post, t, inside, j, N)
                    factors = put(factors, column, j, tl.sum(fresh * fresh, axis=1))
        if N <= UNROLLED:
            for j in tl.static_range(N):
                factors = put(factors, column, j, tl.sum(squares[j], axis=1))
        factors = 1.0 / tl.sqrt(factors / D + post_eps)
        tl.store(post_rms + t[:, None] * N + column, factors, mask=there)
    given = tl.zeros([BT, N2], tl.float32)
    if bias is not None and weight is None:
        given = tl.load(bias + t[:, None] * N + column, mask=there, other=0.0)
        tl.store(pre + t[:, None] * N + column, given, mask=there)
    raw, square = _write(
        x, matrix, post, y, weight, bias, out, u, rms, post_rms, entries, posts, factors, given, t, inside, PRECISION,
        N, D, M, M2, N2, BT, BD, STAGES,
    )  # fmt: skip
    if bias is not None and weight is not None:
        numbers = tl.arange(0, M2)[None, :]
        if rms is not None:
            factor = 1.0 / tl.sqrt(square / (N * D) + eps)
            tl.store(rms + t, factor, mask=inside)
            raw = raw * factor[:, None]
        tl.store(z + t[:, None] * M + numbers, raw, mask=inside[:, None] & (numbers < M))
        weights = gate_of(raw, bias, tl.load(scale), numbers, GATE, N)
        tl.store(pre + t[:, None] * N + numbers, weights, mask=inside[:, None] & (numbers < N))
        tl.debug_barrier()  # what other threads of the block wrote is read
        if post is None:
            _read(x, u, weights, numbers, t, inside, N, D, BT, BD, STAGES)
        else:
            _read(out, u, weights, numbers, t, inside, N, D, BT, BD, STAGES)


@triton.jit
def _write(
    x, matrix, post, y, weight, bias, out, u, rms, post_rms, entries, posts, factors, given, t, inside,
    PRECISION: tl.constexpr, N: tl.constexpr, D: tl.constexpr, M: tl.constexpr, M2: tl.constexpr, N2: tl.constexpr,
    BT: tl.constexpr, BD: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Write x', read with weights that are given, and return W x' and |x'|^2."""
    column = tl.arange(0, N2)[None, :]
    raw = tl.zeros([BT, 2 * M2 if PRECISION == "halves" else M2], tl.float32)
    squares = tl.zeros([BT, BD], tl.float32)
    for start in tl.range(0, D, BD, num_stages=STAGES):
        offsets, mask = tile(t, inside, start, N, D, BD)
        result = tl.zeros([BT, BD], tl.float32)
        read = tl.zeros([BT, BD], tl.float32)
        if post is not None:
            result = fetch(y, t, inside, start, D, BD)
        if N <= UNROLLED:
            loaded = streams_of(x, t, inside, start, N, D, BD)
            values = ()
            for j in tl.static_range(N):
                if post is None:
                    value, wide = loaded[j], loaded[j].to(tl.float32)
                else:
                    wide = row_of(loaded, result, matrix, entries, posts, j, N)
                    if post_rms is not None:
                        wide = wide * pick(factors, column, j)[:, None]
                    value = wide.to(out.dtype.element_ty)
                if rms is not None:
                    squares += wide * wide
                if bias is not None and weight is None:
                    read += pick(given, column, j)[:, None] * wide
                values = values + (value,)
            if weight is not None:
                tiles = values
                for _ in tl.static_range(N2 - N):
                    tiles = tiles + (tl.zeros([BT, BD], x.dtype.element_ty),)
                together = side_by_side(tiles, N2, BT, BD)
                raw = project(together, weight, raw, start, PRECISION, N * D, N, N2, D, M, M2, BD)
            if post is not None:  # stored after the product, which would wait for it
                for j in tl.static_range(N):
                    tl.store(out + offsets + j * D, values[j], mask=mask)
        else:
            loaded = ()
            if post is not None:
                loaded = streams_of(x, t, inside, start, N, D, BD)
            for j in range(N):
                if post is None:
                    value = tl.load(x + offsets + j * D, mask=mask, other=0.0)
                    wide = value.to(tl.float32)
                else:
                    wide = mixed(loaded, result, matrix, post, t, inside, j, N)
                    if post_rms is not None:
                        wide = wide * pick(factors, column, j)[:, None]
                    value = wide.to(out.dtype.element_ty)
                    tl.store(out + offsets + j * D, value, mask=mask)
                if rms is not None:
                    squares += wide * wide
                if bias is not None and weight is None:
                    read += pick(given, column, j)[:, None] * wide
                if weight is not None:
                    raw = project(value, weight + j * D, raw, start, PRECISION, N * D, 1, 1, D, M, M2, BD)
        if bias is not None and weight is None:
            move(u, read, t, inside, start, D, BD)
    return whole_numbers(raw, PRECISION, BT, M2), tl.sum(squares, axis=1)


@triton.jit
def _read(
    streams, u, weights, column, t, inside, N: tl.constexpr, D: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """Read the streams with the read weights (BT, columns)."""
    for start in tl.range(0, D, BD, num_stages=STAGES):
        offsets, mask = tile(t, inside, start, N, D, BD)
        read = tl.zeros([BT, BD], tl.float32)
        for j in tl.static_range(N):
            value = tl.load(streams + offsets + j * D, mask=mask, other=0.0)
            read += pick(weights, column, j)[:, None] * value.to(tl.float32)
        move(u, read, t, inside, start, D, BD)
