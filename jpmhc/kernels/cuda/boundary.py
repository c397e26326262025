"""Triton body of the boundary: which kernels run, with blocks of what size.

Every sum has one order, so that results are the same at every run.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from jpmhc.kernels.bodies import body, interpreted
from jpmhc.kernels.boundary import Boundary, Pullback
from jpmhc.kernels.cuda import backward, closing, forward
from jpmhc.kernels.cuda.blocks import LARGEST
from jpmhc.kernels.cuda.streams import UNROLLED, halve
from jpmhc.kernels.fitting import unfit

_HALF = (torch.bfloat16, torch.float16)


class Blocks(NamedTuple):
    """Sizes of a kernel's blocks."""

    tokens: int
    width: int
    warps: int
    stages: int = 1
    """Chunks that are loaded ahead, and this one."""


def _refuses(given: Boundary | Pullback) -> str | None:
    n = given.x.shape[1]
    return unfit(given) if 1 <= n <= LARGEST else f"no body for n = {n}, only from 1 to {LARGEST}"


@body((torch.float32,), lambda *args: _refuses(Boundary(*args)), streams=_HALF)
def boundary_forward(boundary: Boundary) -> tuple[Tensor, ...]:
    """See the reference."""
    out, u, z, pre, rms, post_rms = results = boundary.results()
    x, matrix, post, y, weight, bias, scale, gate, _, eps, post_eps = boundary
    tokens, n, d = x.shape
    if not tokens:
        return results
    rows = 0 if weight is None else weight.shape[0]
    precision = _precision(x)
    targets = _wanted(out, u, z, pre, rms, post_rms)
    with torch.cuda.device_of(x):
        arrays = _given(x, matrix, post, y, _factor(weight, precision), bias, scale)
        plan = blocks_to_write(n, d)
        forward.cross[(triton.cdiv(tokens, plan.tokens),)](
            *arrays, *targets, tokens, eps, post_eps, gate, precision,
            n, d, rows, _padded(rows, 16), _padded(n), plan.tokens, plan.width, plan.stages, num_warps=plan.warps,
        )  # fmt: skip
    return results


@body((torch.float32,), lambda *args: _refuses(Pullback(*args)), streams=_HALF)
def boundary_backward(pullback: Pullback) -> tuple[Tensor, ...]:
    """See the reference."""
    grad_x, grad_matrix, grad_post, grad_y, grad_weight, grad_bias, grad_scale = results = pullback.results()
    tokens, n, d = pullback.x.shape
    if not tokens:
        return (*results[:4], grad_weight.zero_(), grad_bias.zero_(), grad_scale.zero_())
    pullback = Pullback._make(value.contiguous() if isinstance(value, Tensor) else value for value in pullback)
    grad_streams, grad_u, grad_z, x, matrix, post, y, weight, scale, streams, z, pre, rms, post_rms, gate = pullback
    like, precision = pullback.like, _precision(x)
    rows = 0 if weight is None else weight.shape[0]
    padded = _padded(rows, 16)
    grad_raw: Tensor | None = None
    radials = inner = bias_sums = scale_sums = None
    if weight is not None:
        grad_raw = like.new_empty(tokens, rows)
    if rms is not None:
        radials = like.new_empty(tokens)
    if post_rms is not None:
        inner = like.new_empty(tokens, n)
    with torch.cuda.device_of(x):
        factor = _factor(weight, precision)
        if pre is not None or post_rms is not None:
            plan = blocks_to_close(n, d)
            blocks = triton.cdiv(tokens, plan.tokens)
            if weight is not None:
                bias_sums, scale_sums = like.new_empty(blocks, n), like.new_empty(blocks, 1)
            slope = grad_bias if pre is not None and weight is None else None
            closing.close[(blocks,)](
                grad_streams, grad_u, grad_z, factor, scale, streams, z, pre, rms, post_rms,
                slope, grad_raw, radials, inner, bias_sums, scale_sums, tokens, gate, precision,
                n, d, rows, padded, _padded(n), plan.tokens, plan.width, num_warps=plan.warps, num_stages=plan.stages,
            )  # fmt: skip
            if bias_sums is not None and scale_sums is not None:
                grad_bias, grad_scale = bias_sums.sum(0), scale_sums.sum(0)
        plan = blocks_to_pull(n, d, post_rms is not None)
        arrays = [grad_streams, grad_u, x, matrix, post, y, factor, streams, pre, rms, post_rms]
        arrays += [grad_raw, radials, inner, grad_x, grad_y]
        if n <= FEW:
            backward.pull_few[(triton.cdiv(tokens, plan.tokens),)](
                *arrays, *_wanted(grad_matrix), grad_post, tokens, precision, n, d, rows, padded,
                plan.tokens, plan.width, plan.stages, num_warps=plan.warps,
            )  # fmt: skip
        else:
            _pull_many(arrays, grad_matrix, grad_post, plan, precision, rows)
        if grad_raw is not None:
            grad_weight = _weight_gradient(grad_raw, streams, precision)
    return grad_x, grad_matrix, grad_post, grad_y, grad_weight, grad_bias, grad_scale


def _pull_many(
    arrays: list[Tensor | None], grad_matrix: Tensor, grad_post: Tensor, plan: Blocks, precision: str, rows: int
) -> None:
    x = arrays[2]
    assert x is not None
    tokens, n, d = x.shape
    entries = (grad_matrix.numel() + grad_post.numel()) // tokens
    chunks = triton.cdiv(d, plan.width)
    ranges = _ranges(x.device, tokens, chunks, plan)
    length = plan.tokens * triton.cdiv(tokens, plan.tokens * ranges)
    shares = grad_post.new_empty(chunks, entries, tokens)
    backward.pull[(chunks, ranges)](
        *arrays, shares, tokens, length, precision, n, d, rows, _padded(rows, 16), entries,
        plan.tokens, plan.width, plan.stages, num_warps=plan.warps,
    )  # fmt: skip
    if entries:
        size = _padded(entries)
        block = max(1, 1024 // size)
        backward.gather[(triton.cdiv(tokens, block),)](
            shares, *_wanted(grad_matrix), grad_post, tokens, chunks, n, entries, size, block
        )


def _weight_gradient(grad_raw: Tensor, streams: Tensor, precision: str) -> Tensor:
    tokens, rows = grad_raw.shape
    columns = streams[0].numel()
    row_block, column_block, token_block = min(128, _padded(rows, 16)), 64, 32
    length = token_block * triton.cdiv(tokens, token_block * _RANGES)
    parts = grad_raw.new_empty(_RANGES, rows, columns)
    grid = (triton.cdiv(columns, column_block), triton.cdiv(rows, row_block), _RANGES)
    backward.weight_gradient[grid](
        grad_raw, streams, parts, tokens, length, precision, rows, columns, row_block, column_block, token_block
    )
    return parts.sum(0)


# Ranges of tokens whose parts of the projection's gradient are summed one after the other, whatever the number of
# tokens.
_RANGES = 8
# Streams whose coefficients and sums of their gradients a program keeps in registers.
FEW = UNROLLED.value


# The sizes were chosen by measurements on an H100 with bfloat16 streams, of those at which no register spills.
def blocks_to_write(n: int, d: int) -> Blocks:
    """Return the blocks of the forward pass."""
    if n <= FEW:
        return Blocks(32, _width(64, d), 4, 2)
    return Blocks(32, _width(32, d), 4) if n <= 8 else Blocks(16, _width(32, d), 8)


def blocks_to_close(n: int, d: int) -> Blocks:
    """Return the blocks of the backward pass's first half."""
    return Blocks(16, _width(128 if n <= FEW else 64 if n <= 8 else 32, d), 4)


def blocks_to_pull(n: int, d: int, post_normed: bool) -> Blocks:
    """Return the blocks of the backward pass's second half: a warp has 16 tokens, so that no sum is over two warps."""
    if n <= FEW:
        return Blocks(32, 16 if post_normed else _width(32, d), 2, 2)
    return Blocks(16, 16, 1) if n <= 8 else Blocks(16, _width(32, d), 8)


def _width(most: int, d: int) -> int:
    return min(most, _padded(d, 16))


def _ranges(device: torch.device, tokens: int, chunks: int, plan: Blocks) -> int:
    """Return the fewest ranges of tokens whose programs keep the device busy."""
    at_once = _at_once(device, plan.warps)

    def busy(ranges: int) -> float:
        programs = chunks * ranges
        return programs / (triton.cdiv(programs, at_once) * at_once)

    most = min(triton.cdiv(tokens, plan.tokens), max(8, at_once // chunks))
    return max(range(1, most + 1), key=lambda ranges: (min(busy(ranges), 0.9), -ranges))


@cache
def _at_once(device: torch.device, warps: int) -> int:
    """How many programs run at one time, where each thread has most of the registers that it can have."""
    if interpreted():
        return 4
    return torch.cuda.get_device_properties(device).multi_processor_count * max(1, 8 // warps)


def _precision(streams: Tensor) -> str:
    """How tensor cores multiply with the projection.

    Beside bfloat16 streams by its upper and lower halves in bfloat16, sixteen bits together, where exact numbers lose
    nothing; beside others in float32, by three products in tf32. Triton's interpreter has neither.
    """
    if interpreted():
        return "ieee"
    return "halves" if streams.dtype == torch.bfloat16 else "tf32x3"


def _factor(weight: Tensor | None, precision: str) -> Tensor | None:
    """Return the projection as its products take it: with the halves one below the other."""
    if weight is None or precision != "halves":
        return weight
    both = torch.empty(2, *weight.shape, dtype=torch.bfloat16, device=weight.device)
    halve[(triton.cdiv(weight.numel(), 1024),)](weight.contiguous(), both[0], both[1], weight.numel(), 1024)
    return both


def _padded(size: int, least: int = 1) -> int:
    return max(least, triton.next_power_of_2(size))


def _given(*tensors: Tensor | None) -> list[Tensor | None]:
    return [None if tensor is None else tensor.contiguous() for tensor in tensors]


def _wanted(*tensors: Tensor) -> list[Tensor | None]:
    return [tensor if tensor.numel() else None for tensor in tensors]
