"""Residuals measure what they say."""

import pytest
import torch

from jpmhc.autodiff import cayley_contraction, orthogonality_residual, sinkhorn_residual


def test_sinkhorn_residual_is_the_worst_relative_error_of_a_sum():
    matrix = torch.full((2, 2, 4), 0.25)
    matrix[1, 0, 0] += 0.1
    torch.testing.assert_close(sinkhorn_residual(matrix), torch.tensor([0.0, 0.2]))
    doubled = sinkhorn_residual(2 * matrix[0], row_marginals=torch.tensor([2.0, 2.0]))
    torch.testing.assert_close(doubled, torch.tensor(0.0))
    columns = torch.tensor([0.5, 0.5, 0.5, 1.0])
    both = sinkhorn_residual(matrix[0], row_marginals=torch.tensor([1.0, 1.25]), column_marginals=columns)
    torch.testing.assert_close(both, torch.tensor(0.5))
    torch.testing.assert_close(sinkhorn_residual(matrix[0], column_marginals=torch.full((4,), 0.5)), torch.tensor(0.0))


def test_orthogonality_residual_looks_along_the_short_side():
    tall = torch.linalg.qr(torch.randn(6, 3, dtype=torch.float64))[0]
    assert orthogonality_residual(tall) < 1e-15
    assert orthogonality_residual(tall.mT) < 1e-15
    torch.testing.assert_close(orthogonality_residual(2 * tall), torch.tensor(3.0, dtype=torch.float64))


def test_cayley_contraction_is_the_spectral_norm():
    raw = torch.randn(5, 4, 4, dtype=torch.float64)
    expected = torch.linalg.svdvals(0.3 * (raw - raw.mT) / 2)[:, 0]
    torch.testing.assert_close(cayley_contraction(raw, step=0.3), expected)


@pytest.mark.parametrize("residual", [sinkhorn_residual, orthogonality_residual, cayley_contraction])
def test_what_is_not_a_matrix_is_refused(residual):
    with pytest.raises(ValueError, match="expected shape"):
        residual(torch.zeros(3))
