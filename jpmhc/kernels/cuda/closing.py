"""First kernel of the boundary's backward pass: what a token's gradients need of all its columns."""

from __future__ import annotations

import triton
import triton.language as tl

from jpmhc.kernels.cuda.blocks import token_block
from jpmhc.kernels.cuda.streams import fetch, put, tanh, tile, zeros


@triton.jit(do_not_specialize=["tokens"])
def close(
    grad_streams, grad_u, grad_z, weight, scale, streams, z, pre, rms, post_rms,
    slope, grad_raw, radials, inner, bias_sums, scale_sums, tokens, GATE: tl.constexpr, PRECISION: tl.constexpr,
    N: tl.constexpr, D: tl.constexpr, M: tl.constexpr, M2: tl.constexpr, N2: tl.constexpr, BT: tl.constexpr,
    BD: tl.constexpr,
):  # fmt: skip
    """Make what a token's gradients need of all its columns: gradients of its raw numbers, and of its norms."""
    t, inside = token_block(tl.program_id(0), tokens, BT)
    column = tl.arange(0, N2)[None, :]
    raw = tl.zeros([BT, M2], tl.float32)
    radial = tl.zeros([BT], tl.float32)
    if pre is not None:
        slopes = tl.zeros([BT, M2], tl.float32)
        numbers = tl.arange(0, M2)[None, :]
        if grad_u is not None:
            products = zeros(N, BT, BD)
            for start in range(0, D, BD):
                arriving = fetch(grad_u, t, inside, start, D, BD)
                offsets, mask = tile(t, inside, start, N, D, BD)
                added = ()
                for i in tl.static_range(N):
                    value = tl.load(streams + offsets + i * D, mask=mask, other=0.0).to(tl.float32)
                    added = added + (products[i] + arriving * value,)
                products = added
            for i in tl.static_range(N):
                slopes = put(slopes, numbers, i, tl.sum(products[i], axis=1))
        if weight is None:
            tl.store(slope + t[:, None] * N + numbers, slopes, mask=inside[:, None] & (numbers < N))
        else:
            raw, radial = _close(
                slopes, grad_z, scale, z, pre, rms, bias_sums, scale_sums, grad_raw, t, inside, GATE, N, D, M, M2, BT
            )
            if rms is not None:
                tl.store(radials + t, radial, mask=inside)
    if post_rms is not None:
        found = tl.zeros([BT, N2], tl.float32)
        for start in range(0, D, BD):
            arriving = tl.zeros([BT, BD], tl.float32)
            if grad_u is not None:
                arriving = fetch(grad_u, t, inside, start, D, BD)
            offsets, mask = tile(t, inside, start, N, D, BD)
            for j in range(N):
                value = tl.load(streams + offsets + j * D, mask=mask, other=0.0).to(tl.float32)
                total = tl.zeros([BT, BD], tl.float32)
                if grad_streams is not None:
                    total = tl.load(grad_streams + offsets + j * D, mask=mask, other=0.0).to(tl.float32)
                total = total_of(
                    total, arriving, pre, weight, raw, radial, rms, value, t, inside, start, j, PRECISION,
                    N, D, M, M2, BD,
                )  # fmt: skip
                found = put(found, column, j, tl.sum(total * value, axis=1) / D)
        tl.store(inner + t[:, None] * N + column, found, mask=inside[:, None] & (column < N))


@triton.jit
def _close(
    s, grad_z, scale, z, pre, rms, bias_sums, scale_sums, grad_raw, t, inside, GATE: tl.constexpr,
    N: tl.constexpr, D: tl.constexpr, M: tl.constexpr, M2: tl.constexpr, BT: tl.constexpr,
):  # fmt: skip
    """Pull gradients s of the read weights back to the raw numbers (BT, M2); return also the factor of the norm."""
    column = tl.arange(0, M2)[None, :]
    there, full = inside[:, None] & (column < N), inside[:, None] & (column < M)
    numbers = tl.load(z + t[:, None] * M + column, mask=full, other=0.0)
    weights = tl.load(pre + t[:, None] * N + column, mask=there, other=0.0)
    factor = tl.load(scale)
    scaled = numbers
    if GATE == "softmax":
        s = weights * (s - tl.sum(weights * s, axis=1, keep_dims=True))
    elif GATE == "sigmoid":
        s = weights * (1.0 - weights) * s
    else:
        scaled = tanh(numbers)
    s = tl.where(there, s, 0.0)
    block = tl.program_id(0)
    tl.store(bias_sums + block * N + tl.arange(0, M2), tl.sum(s, axis=0), mask=tl.arange(0, M2) < N)
    tl.store(scale_sums + block, tl.sum(s * scaled))
    raw = s * factor
    if GATE == "tanh":
        raw = raw * (1.0 - scaled * scaled)
    if grad_z is not None:
        raw += tl.load(grad_z + t[:, None] * M + column, mask=full, other=0.0)
    radial = tl.zeros([BT], tl.float32)
    if rms is not None:
        factor = tl.load(rms + t, mask=inside, other=0.0)
        radial = -tl.sum(raw * numbers, axis=1) * factor * factor / (N * D)
        raw = raw * factor[:, None]
    tl.store(grad_raw + t[:, None] * M + column, raw, mask=full)
    return raw, radial


@triton.jit
def total_of(
    total, arriving, pre, weight, raw, radial, rms, value, t, inside, start, i, PRECISION: tl.constexpr,
    N: tl.constexpr, D: tl.constexpr, M: tl.constexpr, M2: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Add to a chunk of the gradient of stream i of x' what comes from the read, the norm and the projection."""
    if pre is not None:
        total += tl.load(pre + t * N + i, mask=inside, other=0.0)[:, None] * arriving
    if rms is not None:
        total += radial[:, None] * value
    if weight is not None:
        total = projected(total, weight, raw, start, i, PRECISION, N, D, M, M2, BD)
    return total


@triton.jit
def projected(
    total, weight, raw, start, i, PRECISION: tl.constexpr, N: tl.constexpr, D: tl.constexpr, M: tl.constexpr,
    M2: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Add a chunk of stream i of ``raw W``."""
    row, c = tl.arange(0, M2)[:, None], start + tl.arange(0, BD)[None, :]
    w = tl.load(weight + row * (N * D) + (i * D + c), mask=(row < M) & (c < D), other=0.0)
    if PRECISION == "halves":  # the gradient of bfloat16 streams is rounded as much as these factors are
        return tl.dot(raw.to(tl.bfloat16), w, total)
    else:
        return tl.dot(raw, w, total, input_precision=PRECISION)
