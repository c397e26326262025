"""Triton body of the boundary: a block of tokens goes over its streams in chunks of their width.

Where something is needed of all chunks before the next can be done (the raw numbers before the read, the gradient of
the read weights before that of the streams) the block goes over them again, and finds them in the cache. Every program
writes to its own tokens alone and every sum has one order, so that results are the same at every run.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from jpmhc.kernels.bodies import body, interpreted
from jpmhc.kernels.boundary import Boundary, Pullback
from jpmhc.kernels.cuda.backward import backward, weight_gradient
from jpmhc.kernels.cuda.blocks import LARGEST, token_block
from jpmhc.kernels.cuda.streams import fetch, gate_of, mixed, move, pick, project, put, streams_of, tile

# Tokens of a block, the fewest that a tensor core takes.
_TOKENS = 16
# Ranges of tokens whose parts of the projection's gradient are summed one after the other, whatever the number of
# tokens.
_RANGES = 8
# The projections of all streams would stand in shared memory at once if loads were made ahead: 520 KiB at n = 8.
_STAGES = 1
_HALF = (torch.bfloat16, torch.float16)


def _refuses(*args: Any) -> str | None:
    streams = next(value for value in args if isinstance(value, Tensor) and value.ndim == 3)
    n = streams.shape[1]
    return None if 1 <= n <= LARGEST else f"no body for n = {n}, only from 1 to {LARGEST}"


@body((torch.float32,), _refuses, streams=_HALF)
def boundary_forward(boundary: Boundary) -> tuple[Tensor, ...]:
    """See the reference."""
    out, u, z, pre, rms, post_rms = results = boundary.results()
    x, matrix, post, y, weight, bias, scale, gate, _, eps, post_eps = boundary
    tokens, n, d = x.shape
    if not tokens:
        return results
    rows = 0 if weight is None else weight.shape[0]
    arrays = _given(x, matrix, post, y, weight, bias, scale)
    targets = _wanted(out, u, z, pre, rms, post_rms)
    with torch.cuda.device_of(x):
        _forward[(triton.cdiv(tokens, _TOKENS),)](
            *arrays,
            *targets,
            tokens,
            eps,
            post_eps,
            gate,
            _precision(x),
            n,
            d,
            rows,
            *_blocks(n, d, rows),
            **_options(n),
        )
    return results


@body((torch.float32,), _refuses, streams=_HALF)
def boundary_backward(pullback: Pullback) -> tuple[Tensor, ...]:
    """See the reference."""
    grad_x, grad_matrix, grad_post, grad_y, grad_weight, grad_bias, grad_scale = results = pullback.results()
    x, weight, streams, z, pre, scale = (
        getattr(pullback, name) for name in ("x", "weight", "streams", "z", "pre", "scale")
    )
    tokens, n, d = x.shape
    if not tokens:
        return (*results[:4], grad_weight.zero_(), grad_bias.zero_(), grad_scale.zero_())
    rows = 0 if weight is None else weight.shape[0]
    slope = pullback.like.new_empty(0 if pre is None else (tokens, n))
    grad_raw = pullback.like.new_empty(0 if z is None else (tokens, rows))
    arrays = _given(*pullback[:-1])
    targets = _wanted(grad_x, grad_matrix, grad_post, grad_y, slope, grad_raw)
    with torch.cuda.device_of(x):
        backward[(triton.cdiv(tokens, _TOKENS),)](
            *arrays, *targets, tokens, pullback.gate, _precision(x), n, d, rows, *_blocks(n, d, rows), **_options(n)
        )
        if weight is not None:
            grad_weight = _weight_gradient(grad_raw, streams.contiguous())
    if scale is None or z is None:
        grad_bias = slope
    else:
        raw = z[:, :n].tanh() if pullback.gate == "tanh" else z[:, :n]
        grad_bias, grad_scale = slope.sum(0), (slope * raw).sum().view(1)
    return grad_x, grad_matrix, grad_post, grad_y, grad_weight, grad_bias, grad_scale


def _weight_gradient(grad_raw: Tensor, streams: Tensor) -> Tensor:
    tokens, rows = grad_raw.shape
    columns = streams[0].numel()
    row_block, column_block, token_block_ = min(128, max(16, triton.next_power_of_2(rows))), 64, 32
    length = token_block_ * triton.cdiv(tokens, token_block_ * _RANGES)
    parts = grad_raw.new_empty(_RANGES, rows, columns)
    grid = (triton.cdiv(columns, column_block), triton.cdiv(rows, row_block), _RANGES)
    weight_gradient[grid](
        grad_raw,
        streams,
        parts,
        tokens,
        length,
        _precision(streams),
        rows,
        columns,
        row_block,
        column_block,
        token_block_,
    )
    return parts.sum(0)


def _precision(streams: Tensor) -> str:
    """How tensor cores make a product of float32: by three of each factor's upper and lower half.

    Halves in bfloat16 keep sixteen bits of a weight, which is enough beside bfloat16 streams, of which nothing is lost.
    Triton's interpreter has no such products, and computes in float32 whatever it is told.
    """
    return "bf16x3" if streams.dtype == torch.bfloat16 and not interpreted() else "tf32x3"


def _given(*tensors: Tensor | None) -> list[Tensor | None]:
    return [None if tensor is None else tensor.contiguous() for tensor in tensors]


def _wanted(*tensors: Tensor) -> list[Tensor | None]:
    return [tensor if tensor.numel() else None for tensor in tensors]


def _options(n: int) -> dict[str, int]:
    return {"num_stages": _STAGES, "num_warps": 4 if n <= 4 else 8}


def _blocks(n: int, d: int, rows: int) -> tuple[int, int, int, int]:
    """Return the padded numbers of raw numbers and streams, and tokens and width of a block."""
    width = min(64 if n <= 8 else 32, max(16, triton.next_power_of_2(d)))
    return max(16, triton.next_power_of_2(rows)), triton.next_power_of_2(n), _TOKENS, width


# Loops over the streams that are read are unrolled, those over the streams that are made are not: code of n^2 parts
# would compile for minutes.
@triton.jit(do_not_specialize=["tokens"])
def _forward(
    x, matrix, post, y, weight, bias, scale, out, u, z, pre, rms, post_rms, tokens,
    eps: tl.constexpr, post_eps: tl.constexpr, GATE: tl.constexpr, PRECISION: tl.constexpr,
    N: tl.constexpr, D: tl.constexpr, M: tl.constexpr, M2: tl.constexpr, N2: tl.constexpr, BT: tl.constexpr,
    BD: tl.constexpr,
):  # fmt: skip
    t, inside = token_block(tl.program_id(0), tokens, BT)
    column = tl.arange(0, N2)[None, :]
    there = inside[:, None] & (column < N)
    factors = tl.zeros([BT, N2], tl.float32)
    if post_rms is not None:
        for start in range(0, D, BD):
            loaded = streams_of(x, t, inside, start, N, D, BD)
            result = fetch(y, t, inside, start, D, BD)
            for j in range(N):
                fresh = mixed(loaded, result, matrix, post, t, inside, j, N)
                factors = put(factors, column, j, tl.sum(fresh * fresh, axis=1))
        factors = 1.0 / tl.sqrt(factors / D + post_eps)
        tl.store(post_rms + t[:, None] * N + column, factors, mask=there)
    given = tl.zeros([BT, N2], tl.float32)
    if bias is not None and weight is None:
        given = tl.load(bias + t[:, None] * N + column, mask=there, other=0.0)
        tl.store(pre + t[:, None] * N + column, given, mask=there)
    raw = tl.zeros([BT, M2], tl.float32)
    square = tl.zeros([BT], tl.float32)
    for start in range(0, D, BD):
        offsets, mask = tile(t, inside, start, N, D, BD)
        loaded = ()
        result = tl.zeros([BT, BD], tl.float32)
        if post is not None:
            loaded = streams_of(x, t, inside, start, N, D, BD)
            result = fetch(y, t, inside, start, D, BD)
        read = tl.zeros([BT, BD], tl.float32)
        for j in range(N):
            if post is None:
                value = tl.load(x + offsets + j * D, mask=mask, other=0.0)
            else:
                fresh = mixed(loaded, result, matrix, post, t, inside, j, N)
                if post_rms is not None:
                    fresh = fresh * pick(factors, column, j)[:, None]
                value = fresh.to(out.dtype.element_ty)
                tl.store(out + offsets + j * D, value, mask=mask)
            if weight is not None:
                raw = project(value, weight, raw, j * D + start, D - start, PRECISION, N * D, M, M2, BD)
            wide = value.to(tl.float32)
            if rms is not None:
                square += tl.sum(wide * wide, axis=1)
            if bias is not None and weight is None:
                read += pick(given, column, j)[:, None] * wide
        if bias is not None and weight is None:
            move(u, read, t, inside, start, D, BD)
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
        for start in range(0, D, BD):
            offsets, mask = tile(t, inside, start, N, D, BD)
            read = tl.zeros([BT, BD], tl.float32)
            for j in range(N):
                if post is None:
                    value = tl.load(x + offsets + j * D, mask=mask, other=0.0)
                else:
                    value = tl.load(out + offsets + j * D, mask=mask, other=0.0)
                read += pick(weights, numbers, j)[:, None] * value.to(tl.float32)
            move(u, read, t, inside, start, D, BD)
