from collections import namedtuple

import pytest
import torch
from torch import nn

from jpmhc import layers

Result = namedtuple("Result", ["y", "cache"])


class Branch(nn.Module):
    def __init__(self, wrap):
        super().__init__()
        self.wrap = wrap

    def forward(self, u):
        return self.wrap(u.sin())


@pytest.mark.parametrize("make", [lambda branch: layers.HyperConnection(4, branch, streams=2), layers.Residual])
@pytest.mark.parametrize(
    ("wrap", "parts"),
    [
        (lambda y: (y, "cache"), lambda out: (out[0], out[1])),
        (lambda y: [y, "cache"], lambda out: (out[0], out[1])),
        (lambda y: ("weights", y, "cache")[1:], lambda out: (out[0], out[1])),
        (lambda y: {"y": y, "cache": "cache"}, lambda out: (out["y"], out["cache"])),
        (lambda y: Result(y, "cache"), lambda out: (out.y, out.cache)),
        (lambda y: {"cache": "cache", "y": y}, lambda out: (out["y"], out["cache"])),
    ],
)
def test_the_first_tensor_is_written_and_the_rest_passed_through(make, wrap, parts):
    x = torch.randn(3, 2, 4)
    out = make(Branch(wrap))(x)
    assert type(out) is type(wrap(x))
    streams, rest = parts(out)
    torch.testing.assert_close(streams, make(Branch(lambda y: y))(x))
    assert rest == "cache"


@pytest.mark.parametrize("wrong", [None, (), {}, ("cache",), 3.0])
def test_an_output_without_a_tensor_is_refused(wrong):
    with pytest.raises(TypeError, match=f"branch: expected a tensor.*got {type(wrong).__name__}"):
        layers.HyperConnection(4, Branch(lambda y: wrong), streams=2)(torch.zeros(3, 2, 4))
