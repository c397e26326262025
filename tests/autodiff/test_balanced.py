import torch

from jpmhc import autodiff


def test_what_is_left_has_no_sums_and_is_orthogonal_to_what_was_removed():
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(3, 4, 4, dtype=torch.float64, generator=generator) + 0.1
    matrix = torch.randn(3, 4, 4, dtype=torch.float64, generator=generator)
    left = autodiff.balanced(weights, matrix)
    for dim in (-1, -2):
        assert left.sum(dim).abs().max() < 1e-14
    removed = (matrix - left) / weights
    assert removed.diff(dim=-1).diff(dim=-2).abs().max() < 1e-12  # a column plus a row
    assert ((matrix - left) * left / weights).sum((-2, -1)).abs().max() < 1e-13


def test_derivatives_of_both_orders_and_modes():
    generator = torch.Generator().manual_seed(0)
    weights = (torch.rand(1, 3, 3, dtype=torch.float64, generator=generator) + 0.1).requires_grad_()
    matrix = torch.randn(1, 3, 3, dtype=torch.float64, generator=generator, requires_grad=True)
    torch.autograd.gradcheck(autodiff.balanced, (weights, matrix), check_forward_ad=True, fast_mode=True)
    torch.autograd.gradgradcheck(autodiff.balanced, (weights, matrix), fast_mode=True)
