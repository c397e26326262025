"""The boundary where numbers are at an edge: no epsilon, raw numbers that are small or not finite, rounded streams."""

import pytest
import torch

from jpmhc import kernels, layers
from jpmhc.kernels.bodies import interpreted
from jpmhc.kernels.boundary import Boundary, Pullback, boundary_backward, boundary_forward
from jpmhc.kernels.primitive import choice
from tests.kernels.boundaries import TOLERANCE, boundary, function, results, tensors, truth
from tests.kernels.interpreter import bodies, run_again

BODIES = bodies("reference", "numba")
ROUNDING = [body for body in bodies("reference") if body[0] in ("reference", "triton")]


@pytest.mark.skipif(interpreted(), reason="the process that this test starts")
def test_triton_bodies_in_the_interpreter():
    assert run_again(__file__) > 0


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def forward(body, **fields):
    nothing = dict.fromkeys(("matrix", "post", "y", "weight", "bias", "scale"))
    given = Boundary(**(nothing | {"gate": "given", "normed": False, "eps": 0.0, "post_eps": -1.0} | fields))
    given = Boundary._make(t.to(body[1]) if isinstance(t, torch.Tensor) else t for t in given)
    with kernels.backend(body[0]):
        assert choice("boundary_forward", *given).backend == body[0]
        return [result.cpu() for result in boundary_forward(given)]


def pulled(body, z, gate):
    tokens, m = z.shape
    n, d = 4, 8
    x, weight, pre = normal(tokens, n, d), normal(m, n * d, seed=1), normal(tokens, n, seed=2).sigmoid()
    grads = (None, normal(tokens, d, seed=3), None)
    given = Pullback(*grads, x, None, None, None, weight, torch.ones(1), x, z, pre, None, None, gate)
    given = Pullback._make(t.to(body[1]) if isinstance(t, torch.Tensor) else t for t in given)
    with kernels.backend(body[0]):
        assert choice("boundary_backward", *given).backend == body[0]
        return [result.cpu() for result in boundary_backward(given)]


@pytest.mark.parametrize("body", BODIES, ids="-".join)
@pytest.mark.parametrize("n", [3, 4, 5])
@pytest.mark.parametrize("form", ["write post-norm, read softmax norm", "write post-norm, read given"])
def test_norms_need_no_epsilon(form, n, body):
    backend, device = body
    x, write, read = boundary(form, n=n, d=8, m=2 * n, dtype=torch.float32)
    write = write._replace(eps=0.0)
    read = read if read.eps is None else read._replace(eps=0.0)
    call = function(write, read)
    arguments = [a.detach().to(device).requires_grad_() for a in tensors(x, write, read)]
    cotangents = [normal(*o.shape).to(device) for o in call(*arguments)]
    wanted = truth(call, arguments, cotangents)
    with kernels.backend(backend):
        found = results(call, arguments, cotangents)
    for value, exact in zip(found, wanted, strict=True):
        error = (value.double() - exact).abs().max() / exact.abs().max()
        assert error < 3 * TOLERANCE[torch.float32]


@pytest.mark.parametrize("body", BODIES, ids="-".join)
@pytest.mark.parametrize("gate", ["softmax", "sigmoid", "tanh"])
@pytest.mark.parametrize("wrong", [torch.inf, torch.nan])
def test_the_read_does_not_see_raw_numbers_that_are_not_its_own_and_not_finite(wrong, gate, body):
    z = normal(3, 8, seed=4)
    expected = pulled(body, z, gate)
    z[0, 6] = wrong
    found = pulled(body, z, gate)
    for name in (5, 6):
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=0)


@pytest.mark.parametrize("body", BODIES, ids="-".join)
@pytest.mark.parametrize("size", [1e-30, 1e-5, 1e-2])
def test_a_gate_of_small_raw_numbers_keeps_their_digits(size, body):
    z = size * normal(3, 8, seed=4)
    slope = pulled(body, z, "tanh")
    wide = pulled(("reference", "cpu"), z, "tanh")
    torch.testing.assert_close(slope[6], wide[6], rtol=1e-5, atol=0)
    x, weight = normal(5, 4, 8), size * normal(4, 32, seed=1)
    *_, z, pre, _, _ = forward(body, x=x, weight=weight, bias=torch.zeros(4), scale=torch.ones(1), gate="tanh")
    torch.testing.assert_close(pre.double(), z.double().tanh(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("body", ROUNDING, ids="-".join)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_streams_are_read_as_they_are_stored(dtype, body):
    tokens, n, d = 64, 4, 64
    x, y = normal(tokens, n, d).to(dtype), normal(tokens, d, seed=1).to(dtype)
    fields = {"x": x, "y": y, "matrix": normal(tokens, n, n, seed=2), "post": normal(tokens, n, seed=3)}
    read = torch.tensor([1.0, -1.0, 0.0, 0.0]).expand(tokens, n)
    streams, u, *_ = forward(body, **fields, bias=read)
    wanted = (read.double().unsqueeze(2) * streams.double()).sum(1)
    # Relative to the difference, which rounding of the streams before it would not be; the interpreter truncates.
    torch.testing.assert_close(u.double(), wanted, rtol=torch.finfo(dtype).eps, atol=0)
    projected = {"weight": normal(n, n * d), "bias": normal(n), "scale": torch.ones(1), "gate": "softmax"}
    streams, *_, rms, _ = forward(body, **fields, **projected, normed=True)
    exact = streams.double().flatten(1).square().mean(1).rsqrt()
    torch.testing.assert_close(rms.double(), exact, rtol=2e-6, atol=0)


@pytest.mark.parametrize("body", BODIES, ids="-".join)
@pytest.mark.parametrize("sweeps", [3, None])
def test_a_stack_crosses_boundaries_with_mixers_whose_rows_are_normalised_last(sweeps, body):
    """Such a mixer is a transposed view: what is next to it in memory is a column."""
    n, d = 4, 8
    torch.manual_seed(0)
    made = [
        layers.HyperConnection(
            d,
            torch.nn.Linear(d, d),
            mixer=layers.Sinkhorn(n, iterations=sweeps, last="rows"),
            gate="sigmoid",
            layer_index=i,
            device=body[1],
        ).to(body[1])
        for i in range(3)
    ]
    stack = layers.HyperStack(made)
    with torch.no_grad():
        for parameter in layers.mixing_parameters(stack):
            parameter.add_(torch.randn_like(parameter))
    x = normal(64, n, d).to(body[1]).requires_grad_()
    wanted, found = [x, *stack.parameters()], {}
    for name, backend, run in (("plain", "reference", torch.nn.Sequential(*made)), ("fused", body[0], stack)):
        with kernels.backend(backend):
            out = run(x)
            found[name] = (out, *torch.autograd.grad(out.sin().sum(), wanted))
    assert (made[0].last[2].sum(-1) - 1).abs().max() < 1e-6
    for actual, expected in zip(found["fused"], found["plain"], strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=2e-5 * max(1.0, expected.abs().max().item()))
