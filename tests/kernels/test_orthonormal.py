"""Orthonormal columns against the definition: Q of ``matrix = Q R``, R triangular with a positive diagonal."""

import pytest
import torch

from jpmhc import kernels
from tests.kernels.ways import way

D = {"dtype": torch.float64}


def normal(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), **D)


def check(matrix, result, tol):
    p = matrix.shape[-1]
    assert (result.mT @ result - torch.eye(p, dtype=result.dtype)).abs().max() <= tol
    triangle = result.double().mT @ matrix.double()
    size = matrix.double().abs().amax((-2, -1), keepdim=True)
    assert (triangle.tril(-1) / size).abs().max() <= 10 * tol
    assert (triangle.diagonal(dim1=-2, dim2=-1) > 0).all()


@pytest.mark.parametrize("name", ["numba", "tiles", "reference"])
@pytest.mark.parametrize(("dtype", "tol"), [(torch.float64, 1e-14), (torch.float32, 4e-6)])
def test_is_the_factor_of_the_definition(name, dtype, tol):
    matrix = normal((37, 4, 4)).to(dtype)
    with way(name):
        check(matrix, kernels.orthonormalise(matrix), tol)


@pytest.mark.parametrize("shape", [(2, 24, 24), (3, 48, 12), (5, 1), (0, 3, 2)])
@pytest.mark.parametrize("distance", [0.02, 3.0])
@pytest.mark.parametrize(("dtype", "tol"), [(torch.float64, 1e-14), (torch.float32, 4e-6)])
def test_near_orthonormal_columns_take_another_way_to_the_same_factor(shape, distance, dtype, tol):
    matrix = torch.linalg.qr(normal(shape)).Q + distance * normal(shape, 1) / shape[-2]
    matrix = matrix.to(dtype)
    with kernels.backend("reference"):
        result = kernels.orthonormalise(matrix)
    assert result.is_contiguous()
    if matrix.numel():
        check(matrix, result, tol)
    torch.testing.assert_close(result, kernels.plain_orthonormalise(matrix), rtol=0, atol=10 * tol)


@pytest.mark.parametrize("name", ["numba", "tiles"])
def test_hard_matrices_are_handed_to_the_factorisation(name):
    matrix = normal((40, 4, 4)).float()
    matrix[3, :, 2] = matrix[3, :, 0]  # dependent
    matrix[5] *= 1e25  # its squares overflow
    matrix[6] *= 1e-25
    matrix[7, 0, 0] = float("nan")
    with way(name):
        result = kernels.orthonormalise(matrix)
    assert result[7].isnan().any()
    assert result[[k for k in range(40) if k != 7]].isfinite().all()
    good = [k for k in range(40) if k not in (3, 7)]
    check(matrix[good], result[good], 4e-6)
    alone = torch.cat([kernels.plain_orthonormalise(matrix[k : k + 1]) for k in good])
    torch.testing.assert_close(result[good], alone, rtol=0, atol=4e-4)


def test_operation_is_registered_as_torch_asks_and_has_a_body_for_small_matrices():
    torch.library.opcheck(torch.ops.jpmhc.orthonormalise.default, (normal((3, 4, 2)),))
    pytest.importorskip("numba")
    assert kernels.choice("orthonormalise", normal((200, 4, 4))).backend == "numba"
    assert kernels.choice("orthonormalise", normal((200, 32, 16))).backend == "reference"
    assert kernels.choice("orthonormalise", normal((2, 4, 4))).backend == "numba"
