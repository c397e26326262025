import pytest
import torch

from jpmhc import layers


def test_both_call_patterns_add_the_branch():
    residual = layers.Residual(lambda x, scale=1.0: scale * x.sin())
    x = torch.randn(3, 4)
    torch.testing.assert_close(residual(x, scale=2.0), x + 2 * x.sin())
    u, write = residual.read(x)
    assert torch.equal(write(u.sin()), residual(x))


def test_without_a_branch_only_read_works():
    with pytest.raises(TypeError, match="branch: this Residual wraps none"):
        layers.Residual()(torch.zeros(2))
