"""Tokens last and back is a copy of the same numbers."""

import pytest
import torch

from jpmhc.kernels.layout import tokens_first, tokens_last


@pytest.mark.parametrize("shape", [(2, 3), (1, 2, 3), (0, 2, 3), (4, 5, 2, 3), (5, 1, 1), (4, 0, 2, 2)])
def test_round_trip_copies(shape):
    matrix = torch.randn(shape)
    moved = tokens_last(matrix)
    assert moved.shape == (*shape[-2:], matrix[..., 0, 0].numel())
    assert moved.is_contiguous()
    back = tokens_first(moved, matrix.shape)
    torch.testing.assert_close(back, matrix, rtol=0, atol=0)
    moved += 1
    torch.testing.assert_close(back, matrix, rtol=0, atol=0)


def test_the_token_axis_is_the_flattened_batch():
    matrix = torch.randn(4, 5, 2, 3)
    torch.testing.assert_close(tokens_last(matrix)[..., 7], matrix[1, 2], rtol=0, atol=0)
