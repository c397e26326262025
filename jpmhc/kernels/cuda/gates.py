"""Gates on a GPU: a block of tokens, a row each, whose sums over tokens have one order."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from jpmhc.kernels.bodies import body
from jpmhc.kernels.cuda.blocks import ROUNDED, token_block
from jpmhc.kernels.cuda.streams import tanh
from jpmhc.kernels.gates import Gates, GatesPullback, unfit

_NUMBERS = 2048  # of a block
_MOST = 4096  # numbers of a token


def _refuses(given: Gates | GatesPullback) -> str | None:
    numbers = given.z.shape[-1]
    return f"no body for {numbers} raw numbers, only up to {_MOST}" if numbers > _MOST else unfit(given)


# Beside streams of any dtype, raw numbers are float32; float64 has no tanh here.
@body((torch.float32,), lambda *args: _refuses(Gates(*args)))
def gates_forward(gates: Gates) -> tuple[Tensor, Tensor]:
    """Run `_open` over all tokens."""
    post, raw = results = gates.results()
    z, bias, scale = (tensor.contiguous() for tensor in gates[:3])
    tokens, columns, block = _blocks(z, gates.streams)
    if tokens:
        with torch.cuda.device_of(z):  # Triton launches on the current device
            _open[(triton.cdiv(tokens, block),)](
                z, bias, scale, post, raw, tokens, gates.gate, gates.squashed, gates.streams, z.shape[1], columns,
                block, **ROUNDED,
            )  # fmt: skip
    return results


@body((torch.float32,), lambda *args: _refuses(GatesPullback(*args)))
def gates_backward(pullback: GatesPullback) -> tuple[Tensor, Tensor]:
    """Run `_close` over all tokens."""
    grad_z, grad_parameters = pullback.results()
    grad_post, grad_raw, z, post, scale = (tensor.contiguous() for tensor in pullback[:5])
    n = post.shape[1]
    tokens, columns, block = _blocks(z, n)
    if not tokens:
        return grad_z, grad_parameters.zero_()
    blocks = triton.cdiv(tokens, block)
    sums = z.new_empty(blocks, grad_parameters.numel())
    with torch.cuda.device_of(z):
        _close[(blocks,)](
            grad_post, grad_raw, z, post, scale, grad_z, sums, tokens, pullback.gate, pullback.squashed, n,
            z.shape[1], columns, triton.next_power_of_2(n), block, **ROUNDED,
        )  # fmt: skip
    return grad_z, sums.sum(0)


def _blocks(z: Tensor, n: int) -> tuple[int, int, int]:
    """Return tokens, columns that hold the raw numbers of write and mixer, and tokens of a block."""
    tokens, m = z.shape
    columns = triton.next_power_of_2(m - n)
    return tokens, columns, max(1, min(64, _NUMBERS // columns))


@triton.jit
def _squashed(numbers, column, GATE: tl.constexpr, SQUASHED: tl.constexpr, N: tl.constexpr):
    """Bound the raw numbers (BT, columns) of the write, of the mixer, or of neither by tanh."""
    if GATE == "tanh":
        if SQUASHED:
            return tanh(numbers)
        else:
            return tl.where(column < N, tanh(numbers), numbers)
    elif SQUASHED:
        return tl.where(column < N, numbers, tanh(numbers))
    else:
        return numbers


@triton.jit(do_not_specialize=["tokens"])
def _open(
    z, bias, scale, post, raw, tokens, GATE: tl.constexpr, SQUASHED: tl.constexpr, N: tl.constexpr, M: tl.constexpr,
    COLUMNS: tl.constexpr, BT: tl.constexpr,
):  # fmt: skip
    t, inside = token_block(tl.program_id(0), tokens, BT)
    column = tl.arange(0, COLUMNS)[None, :]
    inside, t = inside[:, None], t[:, None]
    writes, there = column < N, column < M - N
    numbers = tl.load(z + t * M + N + column, mask=inside & there, other=0.0)
    numbers = _squashed(numbers, column, GATE, SQUASHED, N)
    factor = tl.where(writes, tl.load(scale), tl.load(scale + 1))
    shifted = tl.load(bias + column, mask=there, other=0.0) + factor * numbers
    tl.store(raw + t * (M - 2 * N) + (column - N), shifted, mask=inside & there & (column >= N))
    if GATE == "softmax":
        exponent = tl.where(writes, shifted, float("-inf"))
        weights = tl.exp(exponent - tl.max(exponent, axis=1, keep_dims=True))
        weights = weights * (N / tl.sum(weights, axis=1, keep_dims=True))
    elif GATE == "sigmoid":
        weights = 2.0 / (1.0 + tl.exp(-shifted))
    else:
        weights = 1.0 + shifted
    tl.store(post + t * N + column, weights, mask=inside & writes)


@triton.jit(do_not_specialize=["tokens"])
def _close(
    grad_post, grad_raw, z, post, scale, grad_z, parameter_sums, tokens, GATE: tl.constexpr, SQUASHED: tl.constexpr,
    N: tl.constexpr, M: tl.constexpr, COLUMNS: tl.constexpr, N2: tl.constexpr, BT: tl.constexpr,
):  # fmt: skip
    block = tl.program_id(0)
    t, inside = token_block(block, tokens, BT)
    column = tl.arange(0, COLUMNS)[None, :]
    inside, t = inside[:, None], t[:, None]
    writes, there = column < N, column < M - N
    numbers = tl.load(z + t * M + N + column, mask=inside & there, other=0.0)
    numbers = _squashed(numbers, column, GATE, SQUASHED, N)
    slope = tl.load(grad_post + t * N + column, mask=inside & writes, other=0.0)
    if GATE != "tanh":
        weights = tl.load(post + t * N + column, mask=inside & writes, other=0.0)
        if GATE == "softmax":
            pulled = weights * (slope - tl.sum(weights * slope, axis=1, keep_dims=True) / N)
        else:
            pulled = weights * (1.0 - 0.5 * weights) * slope
        slope = tl.where(writes, pulled, 0.0)  # what is not finite would be NaN times zero in the mixer's numbers
    mixing = inside & there & (column >= N)
    slope += tl.load(grad_raw + t * (M - 2 * N) + (column - N), mask=mixing, other=0.0)
    place = parameter_sums + block.to(tl.int64) * (M - N + 2) + tl.arange(0, COLUMNS)
    tl.store(place, tl.sum(slope, axis=0), mask=tl.arange(0, COLUMNS) < M - N)
    products = slope * numbers
    last = parameter_sums + block.to(tl.int64) * (M - N + 2) + (M - N)
    tl.store(last, tl.sum(tl.where(writes, products, 0.0)))
    tl.store(last + 1, tl.sum(tl.where(writes, 0.0, products)))
    pulled = slope * tl.where(writes, tl.load(scale), tl.load(scale + 1))
    bent = pulled * (1.0 - numbers * numbers)
    if GATE == "tanh":
        pulled = tl.where(writes, bent, pulled)
    if SQUASHED:
        pulled = tl.where(writes, pulled, bent)
    tl.store(grad_z + t * M + N + column, pulled, mask=inside & there)
    reads = tl.arange(0, N2)[None, :]
    tl.store(grad_z + t * M + reads, tl.zeros([BT, N2], tl.float32), mask=inside & (reads < N))
