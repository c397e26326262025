"""The polar primitives against dense algebra."""

import pytest
import torch

from jpmhc import kernels
from jpmhc.kernels import polar
from tests.kernels.ways import way


@pytest.fixture(autouse=True, params=["reference", "auto"])
def _bodies(request):
    with kernels.backend(request.param):
        yield


@pytest.mark.parametrize("solve", [kernels.sylvester, polar._by_sign])
@pytest.mark.parametrize("n", [1, 2, 4, 16])
@pytest.mark.parametrize("condition", [1.0, 1e2, 1e6])
def test_sylvester_solves_its_equation(n, condition, solve):
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(8, n, n, generator=generator, dtype=torch.float64))[0]
    values = torch.logspace(0, -torch.tensor(condition).log10().item(), n, dtype=torch.float64)
    symmetric = basis @ (values.unsqueeze(-1) * basis.mT)
    right_side = torch.randn(8, n, n, generator=generator, dtype=torch.float64)
    sums = values.unsqueeze(-1) + values
    expected = basis @ ((basis.mT @ right_side @ basis) / sums) @ basis.mT
    error = (solve(symmetric, right_side) - expected).norm() / expected.norm()
    assert error <= 1e-14 * condition


def test_a_matrix_that_is_not_finite_keeps_its_derivative_to_itself():
    matrix, direction = torch.randn(2, 4, 5, 3, generator=torch.Generator().manual_seed(0))
    factor = kernels.polar_forward(matrix)
    expected = kernels.polar_adjoint(matrix, factor, direction)
    for bad in (torch.nan, torch.inf):
        spoilt, of_spoilt = matrix.clone(), factor.clone()
        spoilt[1, 2, 0] = of_spoilt[1, 2, 0] = bad
        found = kernels.polar_adjoint(spoilt, of_spoilt, direction)
        assert found[1].isnan().all()
        torch.testing.assert_close(found[[0, 2, 3]], expected[[0, 2, 3]])
    huge = torch.diag_embed(torch.tensor([[3e38, 1e38, 2e38], [1.0, 2.0, 3.0]]))
    assert kernels.sylvester(huge, huge)[0].diagonal().sub(0.5).abs().max() < 1e-6


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
@pytest.mark.parametrize("batch", [7, 40])
def test_forward_near_a_solution_is_the_factor_of_the_singular_vectors(distance, dtype, batch):
    generator = torch.Generator().manual_seed(0)
    basis, noise = torch.randn(2, batch, 6, 3, dtype=torch.float64, generator=generator)
    matrix = torch.linalg.qr(basis).Q + distance * noise / noise.norm(dim=(-2, -1), keepdim=True)
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    result = kernels.polar_forward(matrix.to(dtype)).double()
    torch.testing.assert_close(result, u @ vh, rtol=0, atol=20 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("batch", [4, 30])
def test_forward_of_a_matrix_with_nan_leaves_its_neighbours_alone(batch):
    matrix = torch.randn(batch, 6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = kernels.polar_forward(matrix)
    matrix[1, 2, 0] = float("nan")
    result = kernels.polar_forward(matrix)
    assert result[1].isnan().all()
    torch.testing.assert_close(result[[0, 2, 3]], expected[[0, 2, 3]], rtol=0, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", ["numba", "tiles"])
def test_body_finds_the_factor_at_any_spectrum_and_of_every_matrix_alone(dtype, name):
    generator = torch.Generator().manual_seed(0)
    u, v = torch.linalg.qr(torch.randn(2, 40, 4, 4, dtype=torch.float64, generator=generator)).Q
    exponents = torch.linspace(0, 3, 40, dtype=torch.float64)[:, None] * torch.tensor([0.0, -0.3, -1.0, -1.0])
    values = 10**exponents * torch.logspace(-9, 9, 40, dtype=torch.float64)[:, None]
    matrix = ((u * values.unsqueeze(-2)) @ v.mT).to(dtype)
    with way(name):
        result = kernels.polar_forward(matrix)
        alone = torch.cat([kernels.polar_forward(one) for one in matrix.split(1)])
    assert torch.equal(result, alone)
    strided = matrix.movedim(0, -1).contiguous().movedim(-1, 0)
    with way(name):
        assert torch.equal(kernels.polar_forward(strided), result)
        assert kernels.polar_forward(matrix[:0]).shape == (0, 4, 4)
    eps = torch.finfo(dtype).eps
    error = (result.double() - u @ v.mT).abs().amax((-2, -1))
    assert (error <= 20 * eps * 10 ** torch.linspace(0, 3, 40, dtype=torch.float64)).all()
    assert (result.mT @ result - torch.eye(4, dtype=dtype)).abs().max() <= 8 * eps


def test_large_matrices_are_near_where_no_direction_is_far_though_many_are_a_little():
    generator = torch.Generator().manual_seed(0)
    x, noise = torch.randn(2, 1, 128, 128, dtype=torch.float64, generator=generator)
    matrix = torch.linalg.qr(x).Q + 0.1 * noise / 128**0.5
    assert torch.linalg.matrix_norm(matrix.mT @ matrix - torch.eye(128)) > 0.9
    u, _, vh = torch.linalg.svd(matrix)
    near = polar._near(matrix)
    assert near is not None
    torch.testing.assert_close(near, u @ vh, rtol=0, atol=1e-13)


@pytest.mark.parametrize("condition", [1.0, 5.0, 9.0, 30.0, 1e5])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_forward_of_tall_matrices_is_the_factor_of_the_singular_vectors(condition, dtype):
    # Through their Gram matrix up to a condition of 10, which squares it.
    generator = torch.Generator().manual_seed(0)
    left = torch.linalg.qr(torch.randn(3, 80, 20, dtype=torch.float64, generator=generator)).Q
    right = torch.linalg.qr(torch.randn(3, 20, 20, dtype=torch.float64, generator=generator)).Q
    values = 7 * torch.logspace(0, -torch.tensor(condition).log10().item(), 20, dtype=torch.float64)
    matrix = (left * values) @ right.mT
    result = kernels.polar_forward(matrix.to(dtype)).double()
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(result, left @ right.mT, rtol=0, atol=4 * condition * eps)
    torch.testing.assert_close(result.mT @ result, torch.eye(20).double().expand(3, 20, 20), rtol=0, atol=20 * eps)


def test_tall_matrices_that_are_steep_or_huge_leave_their_neighbours_alone():
    matrix = torch.randn(4, 40, 20, generator=torch.Generator().manual_seed(0))
    expected = kernels.polar_forward(matrix[:1])
    matrix[1, :, 3] *= 1e-4
    matrix[2] *= 1e25  # whose squares float32 does not hold
    matrix[3, 0, 0] = float("nan")
    result = kernels.polar_forward(matrix)
    assert result[3].isnan().all()
    torch.testing.assert_close(kernels.polar_forward(1e-22 * matrix[:1]), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(result[:1], expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(kernels.polar_forward(matrix[:2])[:1], expected, rtol=0, atol=0)
    u, _, vh = torch.linalg.svd(matrix[:3].double(), full_matrices=False)
    torch.testing.assert_close(result[[0, 2]].double(), (u @ vh)[[0, 2]], rtol=0, atol=2e-6)
    torch.testing.assert_close(result[:3].mT @ result[:3], torch.eye(20).expand(3, 20, 20), rtol=0, atol=3e-6)


@pytest.mark.parametrize("shape", [(3, 4, 0), (3, 0, 0), (0, 4, 2)])
def test_nothing_has_a_polar_factor_of_nothing(shape):
    x = torch.empty(shape)
    assert kernels.polar_forward(x).shape == shape
    assert kernels.polar_adjoint(x, x, x).shape == shape
    square = torch.empty(shape[0], shape[2], shape[2])
    assert kernels.sylvester(square, square).shape == square.shape
