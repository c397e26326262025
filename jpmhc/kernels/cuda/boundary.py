"""Triton body of the boundary: which kernels run, with blocks of what size.

Every sum has one order, so that results are the same at every run.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
import triton
from torch import Tensor
from triton.runtime import driver

from jpmhc.kernels.bodies import body, interpreted
from jpmhc.kernels.boundary import Boundary, Pullback
from jpmhc.kernels.cuda import backward, closing, forward
from jpmhc.kernels.cuda.blocks import ROUNDED
from jpmhc.kernels.cuda.projection import arrange
from jpmhc.kernels.fitting import unfit
from jpmhc.kernels.shapes import LARGEST

_HALF = (torch.bfloat16, torch.float16)


class Blocks(NamedTuple):
    """Sizes of a kernel's blocks."""

    tokens: int
    width: int
    warps: int
    stages: int = 1
    """Chunks that are loaded ahead, and this one."""


class Parts(NamedTuple):
    """Widths of the parts that the numbers of a projection are cut into; see `cuda.projection`."""

    first: int
    count: int
    last: int

    @property
    def numbers(self) -> int:
        """How tokens numbers there are with those that fill up."""
        return self.first * self.count + self.last


def _refuses(given: Boundary | Pullback) -> str | None:
    n = given.x.shape[1]
    if not 1 <= n <= LARGEST:
        return f"no body for n = {n}, only from 1 to {LARGEST}"
    device, dtype = given.x.device, given.x.dtype
    unable = _unable(device)
    if unable is not None:
        return unable
    shared = _shared(device)
    if n > 8 and dtype != torch.bfloat16 and shared < _WIDE:
        return f"no body for n = {n} and {dtype} streams with less than {_WIDE >> 10} KiB of shared memory"
    rows = 0 if given.weight is None else len(given.weight)
    needed = _needed(n, rows, _precision(given.x), shared) if isinstance(given, Pullback) else 0
    if max(needed, _LEAST) > shared:
        return f"no body for {rows} raw numbers with {shared >> 10} KiB of shared memory"
    return unfit(given)


def _needed(n: int, rows: int, precision: str, shared: int) -> int:
    """Bound the bytes of shared memory that `backward.pull`, which takes the most, takes with one stage.

    It holds the gradients of all raw numbers of a block, however many, beside streams and a part of the projection; the
    factors are those of what was compiled for 8.9 and 9.0, with up to 1,000 of them.
    """
    parts = parts_of(rows, n, 16)
    plan = blocks_to_pull(n, parts.numbers, precision, shared)
    row = _padded(n) * plan.width
    held = plan.tokens * (parts.numbers if rows else 0)
    if precision == "halves":
        return 2 * held + 16 * plan.tokens * row
    return 8 * (held + (plan.tokens + parts.first) * row)


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
        parts = parts_of(rows, n, 8 if precision == "halves" else 16)
        plan = blocks_to_write(n, d, parts.numbers, precision, _shared(x.device))
        arrays = _given(x, matrix, post, y, _tiles(weight, n, d, plan.width, parts, precision), bias, scale)
        forward.cross[(triton.cdiv(tokens, plan.tokens),)](
            *arrays, *targets, tokens, eps, post_eps, gate, precision,
            n, d, rows, *parts, _padded(n), plan.tokens, plan.width, plan.stages, _width(READ, d),
            num_warps=plan.warps, **ROUNDED,
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
    parts, wide = parts_of(rows, n, 16), _wide(precision)
    grad_raw: Tensor | None = None
    radials = inner = bias_sums = scale_sums = None
    if weight is not None:
        dtype = torch.bfloat16 if precision == "halves" else like.dtype
        grad_raw = like.new_empty(tokens, parts.numbers * wide, dtype=dtype)
    if rms is not None:
        radials = like.new_empty(tokens)
    with torch.cuda.device_of(x):
        pull = blocks_to_pull(n, parts.numbers, precision, _shared(x.device))
        tiles = _tiles(weight, n, d, pull.width, parts, precision)
        if pre is not None:
            plan = blocks_to_close(n, d)
            blocks = triton.cdiv(tokens, plan.tokens)
            if weight is not None:
                bias_sums, scale_sums = like.new_empty(blocks, n), like.new_empty(blocks, 1)
            slope = grad_bias if weight is None else None
            closing.close[(blocks,)](
                grad_u, grad_z, scale, streams, z, pre, rms, slope, grad_raw, radials, bias_sums, scale_sums, tokens,
                gate, wide, n, d, rows, _padded(max(parts.numbers, n), 16), parts.first, parts.count,
                parts.numbers * wide, plan.tokens, plan.width, num_warps=plan.warps, **ROUNDED,
            )  # fmt: skip
            if bias_sums is not None and scale_sums is not None:
                grad_bias, grad_scale = bias_sums.sum(0), scale_sums.sum(0)
        grid = (triton.cdiv(tokens, pull.tokens),)
        sizes = (precision, n, d, *parts, _padded(n), pull.tokens, pull.width, pull.stages)
        if post_rms is not None:
            inner = like.new_empty(tokens, n)
            closing.along[grid](
                grad_streams, grad_u, tiles, streams, pre, rms, grad_raw, radials, inner, tokens, *sizes,
                num_warps=pull.warps, **ROUNDED,
            )  # fmt: skip
        backward.pull[grid](
            grad_streams, grad_u, x, matrix, post, y, tiles, streams, pre, rms, post_rms, grad_raw, radials, inner,
            grad_x, grad_y, *_wanted(grad_matrix), grad_post, tokens, *sizes, num_warps=pull.warps, **ROUNDED,
        )  # fmt: skip
        if grad_raw is not None:
            grad_weight = _weight_gradient(grad_raw, streams, rows, parts, precision)
    return grad_x, grad_matrix, grad_post, grad_y, grad_weight, grad_bias, grad_scale


def _weight_gradient(grad_raw: Tensor, streams: Tensor, rows: int, parts: Parts, precision: str) -> Tensor:
    tokens, columns = len(grad_raw), streams[0].numel()
    plan = blocks_to_sum(grad_raw.shape[1], columns, precision, _shared(streams.device))
    blocks = triton.cdiv(columns, plan.width)
    ranges = max(1, min(RANGES, PROGRAMS // blocks))
    length = plan.tokens * triton.cdiv(tokens, plan.tokens * ranges)
    sums = grad_raw.new_empty(ranges, rows, columns, dtype=torch.float32)
    backward.weight_gradient[(blocks, ranges)](
        grad_raw, streams, sums, tokens, length, precision, rows, columns, *parts, plan.width, plan.tokens,
        plan.stages, num_warps=plan.warps, **ROUNDED,
    )  # fmt: skip
    return sums[0] if ranges == 1 else sums.sum(0)


# Ranges of tokens whose parts of the projection's gradient are summed one after the other, whatever the number of
# tokens: as many as make so many programs, two for every multiprocessor twice over.
RANGES, PROGRAMS = 8, 528
# Columns of the second look, which reads.
READ = 64


# The sizes follow from a count of instructions, registers and bytes under way on an H100, see the log; they were timed
# on an H200, others were not. More tokens load the projection less often, more columns spill registers, and stages are
# those that fit into the shared memory of a multiprocessor.
def blocks_to_write(n: int, d: int, numbers: int, precision: str, shared: int) -> Blocks:
    """Return the blocks of the forward pass, for a projection to so many numbers."""
    if precision != "halves":
        if n > 8 or shared < _AMPLE:
            return Blocks(32 if n <= 4 else 16, 16 if n <= 2 else 8, 4 if n <= 4 else 8)
        return Blocks(64, 16 if n <= 2 else 8, 4, 2 if n <= 4 else 1)
    if n > 8:
        return Blocks(16, 16, 8)
    large = 128 if n > 4 and shared >= _AMPLE else 64
    tokens = 64 if numbers > 80 else 32 if n * d <= 2048 and n <= 4 else large
    # Fewer tokens of narrow streams stay in the cache for the second look.
    width, warps = _width(32 if n <= 4 else 16, d), 4 if n <= 4 and numbers <= 64 else 8
    rows = _padded(n) * width * 2
    stages = _stages(shared, tokens * (rows + 2 * width) + 2 * numbers * rows, tokens * rows * 3 // 2)
    return Blocks(tokens, width, warps, min(stages, 2) if tokens > 64 else stages)


def blocks_to_close(n: int, d: int) -> Blocks:
    """Return the blocks of what backward needs of all columns."""
    return Blocks(16, _width(128 if n <= 4 else 64 if n <= 8 else 32, d), 4)


def blocks_to_pull(n: int, numbers: int, precision: str, shared: int) -> Blocks:
    """Return the blocks of the gradients of streams, for a projection to so many numbers."""
    if precision != "halves" or n > 8:
        if n <= 4:
            return Blocks(32, 16, 4)
        ample = shared >= _AMPLE
        # Products of halves are 16 long at least.
        width = 16 if n <= 8 or ample or precision == "halves" else 8
        return Blocks(32 if n <= 8 and ample else 16, width, 8)
    tokens, width = 64 if n <= 4 or shared >= _AMPLE else 32, 16
    rows = _padded(n) * width * 2
    beside = tokens * (rows + 128 * _padded(n) + 2 * numbers)
    stages = _stages(shared, tokens * (2 * rows + 4 * width) + numbers * rows, beside)
    return Blocks(tokens, width, 4 if n <= 4 else 8, stages)


def blocks_to_sum(numbers: int, columns: int, precision: str, shared: int) -> Blocks:
    """Return the blocks of the projection's gradient, for so many columns of `cuda.projection`."""
    if precision == "halves" and numbers <= 256:
        tokens, width = 64, _width(128 if numbers <= 64 or shared < _AMPLE else 256, columns)
        stages = _stages(shared, 2 * tokens * (numbers + width), 0, 4)
        return Blocks(tokens, width, 4 if numbers <= 64 else 8, stages if numbers <= 64 else min(stages, 3))
    return Blocks(32, _width(64, columns), 4 if numbers <= 64 else 8)


def parts_of(rows: int, n: int, least: int) -> Parts:
    """Cut so many raw numbers into parts of powers of two, the first of which has those of the read."""
    first = max(least, _padded(n), min(64, _padded(rows + 1) // 2))
    count, rest = divmod(rows, first)
    last = _padded(rest, least) if rest else 0
    return Parts(first, max(1, count), last if count else 0) if last < first else Parts(first, count + 1, 0)


def _stages(shared: int, chunk: int, beside: int, most: int = 3) -> int:
    """Return how many chunks of so many bytes fit into shared memory beside others."""
    return max(1, min(most, (shared - beside) // chunk))


# Bytes of shared memory of a Hopper multiprocessor, as much as the larger blocks need, and as much as the gradients of
# more than eight streams in three products do.
_HOPPER, _AMPLE, _WIDE = 227 * 1024, 200 * 1024, 140 * 1024
# What the smallest devices of compute capability 8 have, for which the smaller blocks are made.
_LEAST = 99 * 1024


@cache
def _unable(device: torch.device) -> str | None:
    """Tell why a device has not the products that the kernels are made of, or None."""
    if interpreted() or device.type != "cuda":
        return None
    if torch.version.hip is not None:
        return "no body for devices of AMD, which do not make products of float32 by three of tf32"
    major, minor = torch.cuda.get_device_capability(device)
    return None if major >= 8 else f"no body for compute capability {major}.{minor}, only from 8.0"


@cache
def _shared(device: torch.device) -> int:
    """Bytes of shared memory that a program may have."""
    if interpreted():
        return _HOPPER
    index = torch.cuda.current_device() if device.index is None else device.index
    return int(driver.active.utils.get_device_properties(index)["max_shared_mem"])


def _width(most: int, d: int) -> int:
    return min(most, _padded(d, 16))


def _precision(streams: Tensor) -> str:
    """How tensor cores multiply with coefficients.

    Beside bfloat16 streams by their upper and lower halves in bfloat16, sixteen bits together, where exact numbers lose
    nothing; beside others in float32, by three products in tf32. Triton's interpreter has neither.
    """
    if interpreted():
        return "ieee"
    return "halves" if streams.dtype == torch.bfloat16 else "tf32x3"


def _wide(precision: str) -> int:
    return 2 if precision == "halves" else 1


def _tiles(weight: Tensor | None, n: int, d: int, width: int, parts: Parts, precision: str) -> Tensor | None:
    """Return the projection as products take it, see `cuda.projection`."""
    if weight is None:
        return None
    wide = _wide(precision)
    columns, chunks, size = parts.numbers * wide, triton.cdiv(d, width), _padded(n) * width
    tiles = weight.new_empty(chunks, columns, size, dtype=torch.bfloat16 if wide == 2 else weight.dtype)
    arrange[(triton.cdiv(chunks * size, 1024), columns)](
        weight.contiguous(), tiles, chunks, wide, n, d, len(weight), _padded(n), parts.first, parts.count, columns,
        width, 1024, **ROUNDED,
    )  # fmt: skip
    return tiles


def _padded(size: int, least: int = 1) -> int:
    return max(least, triton.next_power_of_2(size))


def _given(*tensors: Tensor | None) -> list[Tensor | None]:
    return [None if tensor is None else tensor.contiguous() for tensor in tensors]


def _wanted(*tensors: Tensor) -> list[Tensor | None]:
    return [tensor if tensor.numel() else None for tensor in tensors]
