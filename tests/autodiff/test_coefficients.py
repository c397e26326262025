"""Small matrices are computed in float32 at least."""

import pytest
import torch

from jpmhc.autodiff.coefficients import as_coefficients, as_matrices


@pytest.mark.parametrize(
    ("given", "used"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_precision_is_raised_and_never_lowered(given, used):
    assert as_coefficients("x", torch.zeros(2, dtype=given)).dtype == used


def test_integers_and_empty_matrices_are_refused():
    with pytest.raises(TypeError, match=r"x: expected a floating-point tensor, got torch\.int64"):
        as_coefficients("x", torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"x: expected shape \(\.\.\., n, m\) with n, m >= 1, got \(4, 0, 2\)"):
        as_matrices("x", torch.zeros(4, 0, 2))
