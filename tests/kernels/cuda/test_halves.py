"""Coefficients beside bfloat16 streams are two halves of sixteen bits together, on tensor cores that the interpreter
does not have: here it is taught them."""

import numpy as np
import pytest
import torch

from jpmhc import kernels
from jpmhc.kernels.bodies import interpreted
from jpmhc.kernels.boundary import Boundary, Pullback, boundary_backward, boundary_forward
from tests.kernels.boundaries import TOLERANCE, deviation
from tests.kernels.interpreter import run_again

pytest.importorskip("triton")
# Tokens, streams, width, raw numbers: parts of one width and of two, groups that are not full.
SIZES = [(7, 3, 5, 12), (66, 4, 40, 24), (17, 8, 31, 80), (3, 16, 20, 290), (9, 1, 20, 3)]


@pytest.fixture
def halves(monkeypatch):
    from triton.runtime import interpreter

    from jpmhc.kernels.cuda import boundary

    plain = interpreter.InterpreterBuilder.create_dot

    def wide(factor):
        if factor.dtype.scalar != interpreter.tl.bfloat16:
            return factor
        numbers = (factor.data.astype(np.uint32) << 16).view(np.float32)
        return interpreter.TensorHandle(numbers, interpreter.tl.float32)

    def dot(self, left, right, *others):
        return plain(self, wide(left), wide(right), *others)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", dot)
    monkeypatch.setattr(boundary, "_precision", lambda _: "halves")


@pytest.mark.skipif(interpreted(), reason="the process that this test starts")
def test_in_the_interpreter():
    assert run_again(__file__) > 0


@pytest.mark.skipif(not interpreted(), reason="of Triton's interpreter")
@pytest.mark.parametrize("sizes", SIZES)
def test_boundary_of_halves_agrees_with_float64(sizes, halves):
    tokens, n, d, m = sizes
    for form in ("write post-norm, read softmax norm", "read sigmoid norm"):
        error = deviation(form, "triton", torch.bfloat16, tokens=tokens, n=n, d=d, m=m)
        assert error < TOLERANCE[torch.bfloat16]


@pytest.mark.skipif(not interpreted(), reason="of Triton's interpreter")
@pytest.mark.parametrize("sizes", SIZES)
def test_sums_over_halves_have_sixteen_bits(sizes, halves):
    tokens, n, d, m = sizes
    draw = torch.Generator().manual_seed(0)

    def normal(*shape, dtype=torch.float32):
        return torch.randn(shape, generator=draw).to(dtype)

    x, weight, scale = normal(tokens, n, d, dtype=torch.bfloat16), normal(m, n * d), normal(1)
    boundary = Boundary(x, None, None, None, weight, normal(n), scale, "sigmoid", False, 0.0, -1.0)
    flat = x.double().flatten(1)
    with kernels.backend("triton"):
        _, _, z, pre, _, _ = boundary_forward(boundary)
        grad_z = normal(tokens, m)
        pullback = Pullback(None, None, grad_z, x, None, None, None, weight, scale, x, z, pre, None, None, "sigmoid")
        grad_weight = boundary_backward(pullback)[4]
    exact = (flat @ weight.double().t(), grad_z.double().t() @ flat)
    for found, wanted in zip((z, grad_weight), exact, strict=True):
        assert (found - wanted).abs().max() < 2.0**-15 * wanted.abs().max()
