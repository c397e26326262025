import pytest
import torch

from jpmhc.manifolds import algebra

D = {"dtype": torch.float64}


@pytest.mark.parametrize("length", [0.0, 1e-9, 0.5, 3.0, 60.0])
def test_exponential_of_a_skew_matrix(length):
    w = torch.randn(4, 5, 5, generator=torch.Generator().manual_seed(0), **D)
    w = w - w.mT
    w = length * w / torch.linalg.matrix_norm(w, keepdim=True)
    torch.testing.assert_close(
        algebra.exponential(w), torch.linalg.matrix_exp(w), rtol=0, atol=1e-15 * (2 + 5 * length)
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("length", [0.0, 1e-20, 1e-3, 0.3, 1.9])
def test_terms_that_are_left_out_where_no_derivative_is_asked_for_are_round_off(length, dtype):
    w = torch.randn(4, 5, 5, generator=torch.Generator().manual_seed(0), **D)
    w = (length * w / torch.linalg.matrix_norm(w, keepdim=True)).to(dtype)
    assert algebra._enough_terms(w) <= (14 if length < 1 else algebra._EXPONENTIAL_DEGREE)
    with_derivative = algebra.divided_exponential(w.clone().requires_grad_())
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(algebra.divided_exponential(w), with_derivative.detach(), rtol=0, atol=4 * eps)


def test_what_is_out_of_range_is_nan():
    assert algebra.exponential(1e3 * torch.eye(2)).isnan().all()
    assert algebra.sine_and_versine(1e6 * torch.eye(2))[0].isnan().all()


@pytest.mark.parametrize("scale", [0.0, 1e-6, 0.1, 1.0, 10.0, 100.0])
def test_trigonometric_functions_of_a_matrix(scale):
    q = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0), **D)).Q
    angles = scale * torch.tensor([0.2, 0.2, 1.0], **D)
    sine, versine = algebra.sine_and_versine(q @ torch.diag(angles**2) @ q.mT)
    expected_sine = torch.sinc(angles / torch.pi)
    expected_versine = 2 * (torch.sinc(angles / 2 / torch.pi) / 2) ** 2
    tol = 1e-14 * (1 + scale)
    torch.testing.assert_close(sine, q @ torch.diag(expected_sine) @ q.mT, rtol=0, atol=tol)
    torch.testing.assert_close(versine, q @ torch.diag(expected_versine) @ q.mT, rtol=0, atol=tol)


def test_angle_over_sine_on_its_whole_range():
    angle = torch.linspace(1e-4, torch.pi / 2, 200, **D)
    torch.testing.assert_close(
        algebra.angle_over_sine(torch.diag(angle.cos())).diagonal(), angle / angle.sin(), rtol=1e-14, atol=0
    )
    torch.testing.assert_close(algebra.scalar_angle_over_sine(angle.cos()), angle / angle.sin(), rtol=4e-15, atol=0)
    torch.testing.assert_close(algebra.angle_over_sine(torch.eye(2, **D)), torch.eye(2, **D), rtol=0, atol=2e-14)


def test_root_has_zero_derivatives_at_zero():
    zero = torch.zeros((), **D)
    assert torch.func.grad(algebra.root)(zero) == 0
    assert torch.func.grad(torch.func.grad(algebra.root))(zero) == 0


def test_root_keeps_nan_and_takes_round_off_below_zero_for_zero():
    values = torch.tensor([-1e-20, 0.0, 4.0, float("nan"), float("inf")], **D)
    expected = torch.tensor([0.0, 0.0, 2.0, float("nan"), float("inf")], **D)
    torch.testing.assert_close(algebra.root(values), expected, equal_nan=True, rtol=0, atol=0)
    assert torch.func.grad(algebra.root)(values[3]).isnan()
