"""Blocks: a few dozen small matrices as one tensor (tokens, rows, columns) in registers, padded to powers of two."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

DTYPES = (torch.float32, torch.float64)
# With products and sums in one instruction threads that sum ``a b + c d`` of each other's products find two results,
# and it is not defined which of them a third one gets. A launch passes these on.
ROUNDED = {"enable_fp_fusion": False}


def launch(kernel, matrices, *options) -> Tensor:
    """Run ``kernel(*matrices, result, tokens, *options, N, M, padded N, padded M, BLOCK)`` and return the result.

    Fractions among the options are constants of the kernel, or those that vary from call to call, which it would be
    compiled for one by one, arguments marked ``tl.float64``: without the mark they would arrive in float32.
    """
    n, m = matrices[0].shape[-2:]
    matrices = [matrix.contiguous() for matrix in matrices]
    result = torch.empty_like(matrices[0])
    tokens = result.numel() // (n * m)
    if tokens:
        n2, m2 = triton.next_power_of_2(n), triton.next_power_of_2(m)
        block = max(1, 1024 // (n2 * m2))
        with torch.cuda.device_of(result):  # Triton launches on the current device
            kernel[(triton.cdiv(tokens, block),)](*matrices, result, tokens, *options, n, m, n2, m2, block, **ROUNDED)
    return result


@triton.jit
def token_block(block, tokens, BLOCK: tl.constexpr):
    """Return the tokens of a block, 64-bit since all addresses are made of them, and which of them there are."""
    token = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    return token, token < tokens


@triton.jit
def numbers_of(source, t, inside, COUNT: tl.constexpr):
    """Load so many numbers a token, each as a vector (BT,)."""
    loaded = ()
    for k in tl.static_range(COUNT):
        loaded = loaded + (tl.load(source + t * COUNT + k, mask=inside, other=0.0),)
    return loaded


@triton.jit
def places(tokens, N: tl.constexpr, M: tl.constexpr, N2: tl.constexpr, M2: tl.constexpr, BLOCK: tl.constexpr):
    """Return offsets of a block's numbers in contiguous storage, which are there, and their rows and columns."""
    token, there = token_block(tl.program_id(0), tokens, BLOCK)
    token = token[:, None, None]
    i = tl.arange(0, N2)[None, :, None]
    j = tl.arange(0, M2)[None, None, :]
    return token * (N * M) + i * M + j, there[:, None, None] & (i < N) & (j < M), i, j


@triton.jit
def column(x, j, k):
    """Return column k of every matrix, (tokens, rows, 1)."""
    return tl.sum(tl.where(j == k, x, 0.0), axis=2, keep_dims=True)


@triton.jit
def row(x, i, k):
    """Return row k of every matrix, (tokens, 1, columns)."""
    return tl.sum(tl.where(i == k, x, 0.0), axis=1, keep_dims=True)


@triton.jit
def product(x, y, i, j, K: tl.constexpr):
    """Return ``x y`` of square matrices of size K."""
    result = column(x, j, 0) * row(y, i, 0)
    if K <= 4:
        for k in tl.static_range(1, K):
            result += column(x, j, k) * row(y, i, k)
    else:  # unrolled it would take minutes to compile
        for k in range(1, K):
            result += column(x, j, k) * row(y, i, k)
    return result
