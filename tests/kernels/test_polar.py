"""The polar primitives against dense algebra."""

import pytest
import torch

from jpmhc import kernels


@pytest.mark.parametrize("n", [1, 2, 4, 16])
@pytest.mark.parametrize("condition", [1.0, 1e2, 1e6])
def test_sylvester_solves_its_equation(n, condition):
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(8, n, n, generator=generator, dtype=torch.float64))[0]
    values = torch.logspace(0, -torch.tensor(condition).log10().item(), n, dtype=torch.float64)
    symmetric = basis @ (values.unsqueeze(-1) * basis.mT)
    right_side = torch.randn(8, n, n, generator=generator, dtype=torch.float64)
    sums = values.unsqueeze(-1) + values
    expected = basis @ ((basis.mT @ right_side @ basis) / sums) @ basis.mT
    error = (kernels.sylvester(symmetric, right_side) - expected).norm() / expected.norm()
    assert error <= 1e-14 * condition


@pytest.mark.parametrize("shape", [(3, 3), (6, 3), (5, 1)])
def test_adjoint_is_symmetric_and_tangent(shape):
    matrix, first, second = torch.randn(3, 9, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    factor = kernels.polar_forward(matrix)
    symmetric = factor.mT @ matrix
    torch.testing.assert_close(symmetric, symmetric.mT, rtol=0, atol=1e-13)
    assert (torch.linalg.eigvalsh(symmetric) > 0).all()
    images = [kernels.polar_adjoint(matrix, factor, direction) for direction in (first, second)]
    torch.testing.assert_close((images[0] * second).sum((-2, -1)), (images[1] * first).sum((-2, -1)))
    moved = factor.mT @ images[0]
    torch.testing.assert_close(moved, -moved.mT, rtol=0, atol=1e-11)


def test_forward_is_the_newton_iteration_in_plain_operations():
    matrix = torch.randn(4, 6, 3, dtype=torch.float64)
    torch.testing.assert_close(kernels.polar_forward(matrix), kernels.polar_newton(matrix), rtol=0, atol=0)
