"""The Cayley primitives against dense algebra."""

import pytest
import torch

from jpmhc import kernels


@pytest.fixture(autouse=True, params=["reference", "auto"])
def _bodies(request):
    with kernels.backend(request.param):
        yield


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 9, 16])
def test_forward_is_the_solve(n):
    raw = torch.randn(2, 7, n, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    b = 0.3 / 2 * (raw - raw.mT)
    identity = torch.eye(n, dtype=torch.float64)
    expected = torch.linalg.solve(identity - b, identity + b)
    torch.testing.assert_close(kernels.cayley_forward(raw, 0.3), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 8, 9, 16])
def test_adjoint_is_that_of_the_solve(n):
    raw, cotangent = torch.randn(2, 7, n, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    raw.requires_grad_()
    b = 0.3 / 2 * (raw - raw.mT)
    identity = torch.eye(n, dtype=torch.float64)
    rotation = torch.linalg.solve(identity - b, identity + b)
    (expected,) = torch.autograd.grad(rotation, raw, cotangent)
    computed = kernels.cayley_adjoint(rotation.detach(), cotangent, 0.3)
    torch.testing.assert_close(computed, expected, rtol=1e-11, atol=1e-13)


def test_iterations_converge_to_the_transform():
    raw = 0.3 * torch.randn(5, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(
        kernels.cayley_iterated(raw, 0.5, 60), kernels.cayley_forward(raw, 0.5), rtol=0, atol=1e-13
    )
