import pytest
import torch

from jpmhc import layers


def test_expanding_and_reducing_returns_the_vectors():
    x = torch.randn(2, 3, 5)
    streams = layers.expand_streams(x, 4)
    assert streams.shape == (2, 3, 4, 5)
    assert streams.is_contiguous()
    torch.testing.assert_close(layers.reduce_streams(streams), x)


def test_reduction_is_the_mean():
    x = torch.randn(2, 3, 5)
    torch.testing.assert_close(layers.reduce_streams(x), (x[:, 0] + x[:, 1] + x[:, 2]) / 3)


def test_bad_shapes_are_named():
    with pytest.raises(ValueError, match="streams: expected at least 1, got 0"):
        layers.expand_streams(torch.zeros(3), 0)
    with pytest.raises(ValueError, match="x: expected shape"):
        layers.expand_streams(torch.tensor(0.0), 2)
    with pytest.raises(ValueError, match=r"x: expected shape \(\.\.\., n, d\) with n >= 1, got \(3,\)"):
        layers.reduce_streams(torch.zeros(3))
