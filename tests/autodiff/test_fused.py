import pytest
import torch

from jpmhc import kernels
from jpmhc.autodiff import fused


@pytest.fixture(autouse=True)
def _bodies():
    pytest.importorskip("numba")
    with kernels.backend("numba"):
        yield


def arguments():
    generator = torch.Generator().manual_seed(0)
    x = torch.linalg.qr(torch.randn(2, 6, 3, dtype=torch.float64, generator=generator)).Q
    u, v = (torch.randn(2, 6, 3, dtype=torch.float64, generator=generator) for _ in range(2))
    return x, u, v


def transport(x, u, v):
    return fused(kernels.cayley_transport, kernels.plain_cayley_transport, (x, u, v))


def scalar(function):
    def loss(*tensors):
        y, moved = function(*tensors)
        return (y.sin() * moved).sum()

    return loss


def test_gradients_of_both_orders_and_modes():
    leaves = [t.requires_grad_() for t in arguments()]
    torch.autograd.gradcheck(transport, leaves, check_forward_ad=True, check_batched_grad=True, fast_mode=True)
    torch.autograd.gradgradcheck(transport, leaves, fast_mode=True)


@pytest.mark.parametrize("argnum", range(3))
def test_transforms_equal_those_of_the_plain_expression(argnum):
    args = arguments()
    for transform in (torch.func.grad, torch.func.jacfwd, torch.func.hessian):
        expected = transform(scalar(kernels.plain_cayley_transport), argnums=argnum)(*args)
        torch.testing.assert_close(
            transform(scalar(transport), argnums=argnum)(*args), expected, rtol=1e-11, atol=1e-11
        )


def test_vmap_and_broadcast_batches():
    x, u, v = arguments()
    mapped = torch.func.vmap(transport, in_dims=(None, 0, 0))(x[0], u, v)
    torch.testing.assert_close(mapped, transport(x[0].expand(2, 6, 3), u, v), rtol=0, atol=1e-15)
    torch.testing.assert_close(transport(x[:1], u, v), mapped, rtol=0, atol=1e-15)


def test_compiled_code_runs_the_plain_expression():
    x, u, v = (t.requires_grad_() for t in arguments())
    torch._dynamo.reset()
    compiled = torch.compile(scalar(transport), fullgraph=True, backend="aot_eager")
    results = [torch.autograd.grad(f(x, u, v), (x, u, v)) for f in (compiled, scalar(transport))]
    torch.testing.assert_close(*results, rtol=1e-11, atol=1e-11)


def test_unused_results_and_constants_are_allowed():
    x, u, v = arguments()
    u.requires_grad_()
    (gradient,) = torch.autograd.grad(transport(x, u, v)[0].sum(), u)
    (expected,) = torch.autograd.grad(kernels.plain_cayley_retraction(x, u).sum(), u)
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-12)
