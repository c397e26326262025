"""A primitive is one operation for tracing, a batch for vmap, and no derivative."""

import pytest
import torch

from jpmhc import kernels

MATRIX = torch.rand(3, 4, 4, dtype=torch.float64) + 0.1
CALLS = {
    "sinkhorn_forward": lambda x: kernels.sinkhorn_forward(x, None, None, 1e-14, 64),
    "sinkhorn_sweeps": lambda x: kernels.sinkhorn_sweeps(x, None, None, 3),
    "sinkhorn_adjoint": lambda x: kernels.sinkhorn_adjoint(x, x),
    "sinkhorn_scaled": lambda x: kernels.sinkhorn_scaled(x, 1e-30, 1e-14, 64),
    "birkhoff_retraction": lambda x: kernels.birkhoff_retraction(x, 0.1 * x, True, 1e-30, 1e-14, 64),
    "orthonormalise": kernels.orthonormalise,
    "sinkhorn_potentials": lambda x: kernels.sinkhorn_potentials(x, x),
    "sinkhorn_inverse": kernels.sinkhorn_inverse,
    "cayley_forward": lambda x: kernels.cayley_forward(x, 1.0),
    "cayley_iterated": lambda x: kernels.cayley_iterated(x, 0.1, 2),
    "cayley_adjoint": lambda x: kernels.cayley_adjoint(x, x, 1.0),
    "polar_forward": kernels.polar_forward,
    "polar_adjoint": lambda x: kernels.polar_adjoint(x, kernels.polar_forward(x), x),
    "sylvester": lambda x: kernels.sylvester(x @ x.mT, x),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_schema_shape_rule_and_aliasing_are_what_torch_expects(call):
    from torch._subclasses.fake_tensor import FakeTensorMode

    result = call(MATRIX)
    with FakeTensorMode() as mode:
        fake = call(mode.from_tensor(MATRIX))
    assert (fake.shape, fake.dtype, fake.stride()) == (result.shape, result.dtype, result.stride())
    single = MATRIX[:1].clone()
    call(single)
    torch.testing.assert_close(single, MATRIX[:1], rtol=0, atol=0)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_vmap_is_a_batch(call):
    torch.testing.assert_close(torch.vmap(call)(MATRIX), call(MATRIX), rtol=1e-12, atol=1e-12)


def test_vmap_over_one_argument_repeats_the_other():
    cotangents = torch.randn(5, 3, 4, 4, dtype=torch.float64)
    mapped = torch.vmap(kernels.sinkhorn_adjoint, in_dims=(None, 0))(MATRIX, cotangents)
    expected = torch.stack([kernels.sinkhorn_adjoint(MATRIX, cotangent) for cotangent in cotangents])
    torch.testing.assert_close(mapped, expected)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_tracing_sees_one_operation(call):
    torch._dynamo.reset()
    traced = torch.compile(call, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(traced(MATRIX), call(MATRIX), rtol=1e-12, atol=1e-12)


def test_a_backward_through_a_primitive_raises():
    raw = MATRIX.clone().requires_grad_()
    with pytest.raises(RuntimeError):
        kernels.cayley_forward(raw, 1.0).sum().backward()


def test_autocast_is_off_inside():
    raw = torch.randn(5, 6, 6)
    expected = kernels.cayley_forward(raw, 1.0)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(kernels.cayley_forward(raw, 1.0), expected, rtol=0, atol=0)


def test_the_plain_body_is_there_to_read():
    body = kernels.cayley_forward.__wrapped__
    with kernels.backend("reference"):
        torch.testing.assert_close(body(MATRIX, 1.0), kernels.cayley_forward(MATRIX, 1.0), rtol=0, atol=0)
