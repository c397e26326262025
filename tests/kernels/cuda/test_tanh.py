"""The hyperbolic tangent of the gates has all digits of float32, small or large, on both sides of where its form
changes."""

import pytest
import torch

from jpmhc.kernels.bodies import interpreted
from tests.kernels.cuda.machine.launch import machine
from tests.kernels.interpreter import run_again

triton = pytest.importorskip("triton")
tl = triton.language
from jpmhc.kernels.cuda.streams import tanh  # noqa: E402


@triton.jit
def apply(source, target, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(target + place, tanh(tl.load(source + place)))


def applied(x):
    result = torch.empty_like(x)
    apply[(len(x) // 1024,)](x, result, 1024)
    return result


def assert_exact(x):
    x = torch.cat([x, -x])
    found, wanted = applied(x), x.double().tanh()
    spacing = torch.nextafter(wanted.float().abs(), torch.tensor(torch.inf)) - wanted.float().abs()
    assert ((found.double() - wanted).abs() / spacing).max() <= 4
    assert torch.equal(found[: len(x) // 2], -found[len(x) // 2 :])


@pytest.mark.skipif(interpreted(), reason="the process that this test starts")
def test_in_the_interpreter():
    assert run_again(__file__) > 0


@pytest.mark.skipif(not interpreted(), reason="of Triton's interpreter")
def test_every_size():
    exponents = torch.linspace(-37, 5, 1 << 17, dtype=torch.float64)
    assert_exact((10**exponents).float())
    assert_exact(torch.linspace(0.0, 1.0, 1 << 17))
    assert_exact(torch.linspace(0.62, 0.63, 1 << 15))


@pytest.mark.skipif(not interpreted(), reason="of Triton's interpreter")
def test_what_is_not_finite():
    x = torch.zeros(1024)
    x[:3] = torch.tensor([torch.nan, torch.inf, -torch.inf])
    torch.testing.assert_close(applied(x), x.tanh(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.skipif(interpreted(), reason="of the compiler")
def test_compiled():
    with machine():
        assert_exact((10 ** torch.linspace(-12, 2, 4096, dtype=torch.float64)).float())
        assert_exact(torch.linspace(0.5, 0.75, 4096))
