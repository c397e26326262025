"""Tokens last: a batch of small matrices laid out so that one elementwise operation serves all of them."""

import math

import torch
from torch import Size, Tensor


def tokens_last(matrix: Tensor) -> Tensor:
    """Copy ``(..., n, m)`` to a new contiguous ``(n, m, N)``, N the product of the batch dimensions.

    A sum over a row or a column of n <= 16 numbers then runs over the tokens with full vector width: on a CPU
    one sweep of Sinkhorn over (4096, 4, 4) takes a seventh of its time in the batch-first layout.
    """
    *batch, n, m = matrix.shape
    tokens = math.prod(batch)
    return matrix.reshape(tokens, n * m).t().clone(memory_format=torch.contiguous_format).view(n, m, tokens)


def tokens_first(matrix: Tensor, shape: Size) -> Tensor:
    """Copy ``(n, m, N)`` back to a new contiguous tensor of the given shape ``(..., n, m)``."""
    n, m, tokens = matrix.shape
    return matrix.reshape(n * m, tokens).t().clone(memory_format=torch.contiguous_format).view(shape)
