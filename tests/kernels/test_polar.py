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
    matrix = torch.randn(4, 6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(kernels.polar_forward(matrix), kernels.polar_newton(matrix), rtol=0, atol=1e-14)


@pytest.mark.parametrize("distance", [0.0, 1e-9, 1e-4, 0.1, 0.3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_forward_near_a_solution_is_the_factor_of_the_singular_vectors(distance, dtype):
    generator = torch.Generator().manual_seed(0)
    basis, noise = torch.randn(2, 7, 6, 3, dtype=torch.float64, generator=generator)
    matrix = torch.linalg.qr(basis).Q + distance * noise / noise.norm(dim=(-2, -1), keepdim=True)
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    result = kernels.polar_forward(matrix.to(dtype)).double()
    torch.testing.assert_close(result, u @ vh, rtol=0, atol=20 * torch.finfo(dtype).eps)


def test_forward_of_a_matrix_with_nan_leaves_its_neighbours_alone():
    matrix = torch.randn(4, 6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = kernels.polar_forward(matrix)
    matrix[1, 2, 0] = float("nan")
    result = kernels.polar_forward(matrix)
    assert result[1].isnan().all()
    torch.testing.assert_close(result[[0, 2, 3]], expected[[0, 2, 3]], rtol=0, atol=1e-14)
