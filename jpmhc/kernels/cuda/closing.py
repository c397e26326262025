"""First kernels of the boundary's backward pass: what a token's gradients need of all its columns."""

from __future__ import annotations

import triton
import triton.language as tl

from jpmhc.kernels.cuda.blocks import token_block
from jpmhc.kernels.cuda.projection import projected
from jpmhc.kernels.cuda.rows import by_lane, numbers_at, places_of, rows_of, vectors_at
from jpmhc.kernels.cuda.streams import fetch, put, tanh, tile, zeros


@triton.jit(do_not_specialize=["tokens"])
def close(
    grad_u, grad_z, scale, streams, z, pre, rms, slope, grad_raw, radials, bias_sums, scale_sums, tokens,
    GATE: tl.constexpr, WIDE: tl.constexpr, N: tl.constexpr, D: tl.constexpr, M: tl.constexpr, M2: tl.constexpr,
    A: tl.constexpr, PARTS: tl.constexpr, COLUMNS: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Make gradients of a token's raw numbers, and the factor of the norm's."""
    t, inside = token_block(tl.program_id(0), tokens, BT)
    numbers = tl.arange(0, M2)[None, :]
    slopes = tl.zeros([BT, M2], tl.float32)
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
    if grad_raw is None:
        tl.store(slope + t[:, None] * N + numbers, slopes, mask=inside[:, None] & (numbers < N))
    else:
        _close(
            slopes, grad_z, scale, z, pre, rms, bias_sums, scale_sums, grad_raw, radials, t, inside, GATE, WIDE,
            N, D, M, M2, A, PARTS, COLUMNS,
        )  # fmt: skip


@triton.jit
def _close(
    s, grad_z, scale, z, pre, rms, bias_sums, scale_sums, grad_raw, radials, t, inside, GATE: tl.constexpr,
    WIDE: tl.constexpr, N: tl.constexpr, D: tl.constexpr, M: tl.constexpr, M2: tl.constexpr, A: tl.constexpr,
    PARTS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Pull gradients s of the read weights back to the raw numbers, which products take in parts."""
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
    # Zeros in both: what is not finite among the other raw numbers would be NaN times zero.
    s, scaled = tl.where(there, s, 0.0), tl.where(there, scaled, 0.0)
    block = tl.program_id(0)
    tl.store(bias_sums + block * N + tl.arange(0, M2), tl.sum(s, axis=0), mask=tl.arange(0, M2) < N)
    tl.store(scale_sums + block, tl.sum(s * scaled))
    raw = s * factor
    if GATE == "tanh":
        raw = raw * (1.0 - scaled * scaled)
    if grad_z is not None:
        raw += tl.load(grad_z + t[:, None] * M + column, mask=full, other=0.0)
    if rms is not None:
        factor = tl.load(rms + t, mask=inside, other=0.0)
        radial = -tl.sum(raw * numbers, axis=1) * factor * factor / (N * D)
        tl.store(radials + t, radial, mask=inside)
        raw = raw * factor[:, None]
    FIRST: tl.constexpr = PARTS * A * WIDE
    B: tl.constexpr = (COLUMNS - FIRST) // WIDE
    FULL: tl.constexpr = COLUMNS // WIDE
    place = tl.where(column < PARTS * A, column // A * (A * WIDE) + column % A, FIRST + column - PARTS * A)
    place, there = grad_raw + t[:, None] * COLUMNS + place, inside[:, None] & (column < FULL)
    upper = raw.to(grad_raw.dtype.element_ty)
    tl.store(place, upper, mask=there)
    if WIDE == 2:
        lower = (raw - upper.to(tl.float32)).to(grad_raw.dtype.element_ty)
        tl.store(place + tl.where(column < PARTS * A, A, B), lower, mask=there)


@triton.jit
def parts_of(
    grad_raw, t, inside, WIDE: tl.constexpr, A: tl.constexpr, PARTS: tl.constexpr, B: tl.constexpr
):  # fmt: skip
    """Load gradients of the raw numbers in parts (BT, numbers), the upper halves alone."""
    COLUMNS: tl.constexpr = (PARTS * A + B) * WIDE
    loaded = ()
    if grad_raw is not None:
        for part in tl.static_range(PARTS):
            place = t[:, None] * COLUMNS + part * (A * WIDE) + tl.arange(0, A)[None, :]
            loaded = loaded + (tl.load(grad_raw + place, mask=inside[:, None], other=0.0),)
        if B:
            place = t[:, None] * COLUMNS + PARTS * (A * WIDE) + tl.arange(0, B)[None, :]
            loaded = loaded + (tl.load(grad_raw + place, mask=inside[:, None], other=0.0),)
    return loaded


@triton.jit
def arrived(
    grad_streams, grad_u, weight, raw, reads, place, mask, t, inside, start, PRECISION: tl.constexpr,
    A: tl.constexpr, PARTS: tl.constexpr, B: tl.constexpr, N2: tl.constexpr, D: tl.constexpr, BT: tl.constexpr,
    BD: tl.constexpr,
):  # fmt: skip
    """Return a chunk (groups, 16, BD) of the gradient of x' as it comes from the next boundary, the read and z."""
    total = tl.zeros([mask.shape[0], mask.shape[1], BD], tl.float32)
    if weight is not None:
        flat = projected(raw, weight, start, PRECISION, A, PARTS, B, N2 * BD, BD)
        total = tl.reshape(flat, (mask.shape[0], mask.shape[1], BD))
    if grad_streams is not None:
        total += tl.load(grad_streams + place, mask=mask, other=0.0).to(tl.float32)
    if grad_u is not None:
        total += reads[:, :, None] * vectors_at(grad_u, t, inside, start, N2, D, BD)
    return total


@triton.jit(do_not_specialize=["tokens"])
def along(
    grad_streams, grad_u, weight, streams, pre, rms, grad_raw, radials, inner, tokens, PRECISION: tl.constexpr,
    N: tl.constexpr, D: tl.constexpr, A: tl.constexpr, PARTS: tl.constexpr, B: tl.constexpr, N2: tl.constexpr,
    BT: tl.constexpr, BD: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Make mean products of the streams and their gradients, which the norm after the write takes out of these."""
    token, stream, there = rows_of(tl.program_id(0), tokens, N, N2, BT)
    t, inside = token_block(tl.program_id(0), tokens, BT)
    raw = parts_of(grad_raw, t, inside, 2 if PRECISION == "halves" else 1, A, PARTS, B)
    reads = numbers_at(pre, token, stream, there, N)
    radial = tl.zeros([token.shape[0], token.shape[1]], tl.float32)
    if rms is not None:
        radial = tl.load(radials + token, mask=there, other=0.0)
    found = tl.zeros([token.shape[0], token.shape[1], 4], tl.float32)
    for start in tl.range(0, D, BD, num_stages=STAGES):
        place, mask = places_of(token, stream, there, start, N, D, BD)
        value = tl.load(streams + place, mask=mask, other=0.0).to(tl.float32)
        total = arrived(
            grad_streams, grad_u, weight, raw, reads, place, mask, t, inside, start, PRECISION, A, PARTS, B, N2, D,
            BT, BD,
        )  # fmt: skip
        if rms is not None:
            total += radial[:, :, None] * value
        found += by_lane(total * value)
    tl.store(inner + token * N + stream, tl.sum(found, axis=2) / D, mask=there)
