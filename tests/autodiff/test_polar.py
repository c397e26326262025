"""Laws of the polar map; the truth is a singular value decomposition and a dense Kronecker solve in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jpmhc.autodiff import orthogonality_residual, polar


def with_singular_values(values, m, seed=0, batch=()):
    generator = torch.Generator().manual_seed(seed)
    values = torch.as_tensor(values, dtype=torch.float64)
    n = len(values)
    left = torch.linalg.qr(torch.randn(*batch, m, n, generator=generator, dtype=torch.float64))[0]
    right = torch.linalg.qr(torch.randn(*batch, n, n, generator=generator, dtype=torch.float64))[0]
    return left @ (values.unsqueeze(-1) * right.mT), left @ right.mT


def dense_pullback(matrix, factor, cotangent):
    """Differentiate ``A = U H``, ``U^T U = I``, ``H = H^T`` and solve for dU and dH together by a pseudo-inverse."""
    m, n = matrix.shape
    symmetric = factor.mT @ matrix
    eye_m, eye_n = torch.eye(m, dtype=torch.float64), torch.eye(n, dtype=torch.float64)
    # Row-major vectors of dU and dH: dU H + U dH = dA, U^T dU + dU^T U = 0, dH = dH^T.
    swap = torch.zeros(n * n, n * n, dtype=torch.float64)
    for i in range(n):
        for j in range(n):
            swap[i * n + j, j * n + i] = 1
    product = torch.kron(factor.mT.contiguous(), eye_n)
    system = torch.cat(
        [
            torch.cat([torch.kron(eye_m, symmetric.mT.contiguous()), torch.kron(factor.contiguous(), eye_n)], 1),
            torch.cat([product + swap @ product, torch.zeros(n * n, n * n, dtype=torch.float64)], 1),
            torch.cat([torch.zeros(n * n, m * n, dtype=torch.float64), torch.eye(n * n) - swap], 1),
        ]
    )
    jacobian = torch.linalg.pinv(system)[: m * n, : m * n]
    return (jacobian.mT @ cotangent.flatten()).view(m, n)


@pytest.mark.parametrize("shape", [(1, 1), (4, 4), (16, 16), (5, 1), (7, 3), (64, 16), (3, 7)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_result_is_the_factor_of_the_singular_value_decomposition(shape, dtype):
    matrix = torch.randn(20, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    factor = polar(matrix.to(dtype))
    assert orthogonality_residual(factor.double()).max() <= 8 * torch.finfo(dtype).eps
    error = (factor.double() - left @ right).abs().amax((-2, -1)) * values[:, -1] / values[:, 0]
    assert error.max() <= 8 * torch.finfo(dtype).eps


@pytest.mark.parametrize("condition", [1.0, 1e3, 1e8, 1e14])
@pytest.mark.parametrize(("m", "n"), [(6, 6), (9, 4), (32, 16)])
def test_result_is_orthonormal_at_any_condition_number(m, n, condition):
    values = torch.logspace(0, -torch.tensor(condition).log10().item(), n, dtype=torch.float64)
    for scale in (1e-20, 1.0, 1e20):
        matrix, factor = with_singular_values(values * scale, m, batch=(10,))
        result = polar(matrix)
        assert orthogonality_residual(result).max() <= 4e-15
        assert (result - factor).abs().max() <= 1e-13 * condition


@pytest.mark.parametrize(
    ("dtype", "exponent"),
    [*((torch.float32, e) for e in (-100, -60, 63, 115)), *((torch.float64, e) for e in (-900, -530, 530, 900))],
)
@pytest.mark.parametrize(("m", "n"), [(1, 1), (4, 4), (6, 2)])
def test_the_scale_of_the_matrix_changes_neither_the_factor_nor_its_scaled_gradient(m, n, dtype, exponent):
    values = torch.linspace(0.5, 2.0, n, dtype=torch.float64)
    matrix = with_singular_values(values, m, batch=(10,))[0].to(dtype)
    cotangent = torch.randn(10, m, n, generator=torch.Generator().manual_seed(1), dtype=dtype)
    factors, gradients = [], []
    for scale in (1.0, 2.0**exponent):
        argument = (scale * matrix).requires_grad_()
        factors.append(polar(argument))
        gradients.append(scale * torch.autograd.grad(factors[-1], argument, cotangent)[0])
    tight = {"rtol": 0, "atol": 32 * torch.finfo(dtype).eps}
    torch.testing.assert_close(factors[1], factors[0], **tight)
    torch.testing.assert_close(gradients[1], gradients[0], **tight)


def test_no_orthonormal_matrix_is_nearer():
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(6, 3, generator=generator, dtype=torch.float64)
    distance = (matrix - polar(matrix)).norm()
    others = polar(polar(matrix) + 0.1 * torch.randn(500, 6, 3, generator=generator, dtype=torch.float64))
    assert ((matrix - others).norm(dim=(-2, -1)) > distance).all()


@pytest.mark.parametrize("values", [[3.0, 2.0, 1.0], [1.0, 1.0, 1.0], [2.0, 2.0, 0.1]])
@pytest.mark.parametrize("m", [3, 5])
def test_gradient_agrees_with_a_dense_solve_at_equal_singular_values_too(values, m):
    matrix, factor = with_singular_values(values, m)
    cotangent = torch.randn(m, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    argument = matrix.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(polar(argument), argument, cotangent)
    torch.testing.assert_close(gradient, dense_pullback(matrix, factor, cotangent), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("values", [[1.0, 1.0, 1.0], [2.0, 2.0, 0.5]])
@pytest.mark.parametrize("m", [3, 5])
def test_two_derivatives_exist_at_equal_singular_values(values, m):
    argument = with_singular_values(values, m)[0].requires_grad_()
    torch.autograd.gradcheck(polar, (argument,), check_forward_ad=True, check_batched_grad=True)
    torch.autograd.gradgradcheck(polar, (argument,), check_fwd_over_rev=True)


def test_tangent_of_forward_mode_equals_the_symmetric_pullback():
    matrix, tangent, cotangent = torch.randn(
        3, 8, 6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    _, pushed = torch.func.jvp(polar, (matrix,), (tangent,))
    _, pull = torch.func.vjp(polar, matrix)
    torch.testing.assert_close(pushed, pull(tangent)[0], rtol=1e-11, atol=1e-12)
    torch.testing.assert_close((pushed * cotangent).sum(), (pull(cotangent)[0] * tangent).sum())


@given(
    m=st.integers(1, 6),
    n=st.integers(1, 6),
    scale=st.sampled_from([1e-6, 1.0, 1e6]),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=50, deadline=None)
def test_laws_hold_for_any_shape_and_scale(m, n, scale, seed):
    generator = torch.Generator().manual_seed(seed)
    values = 0.5 + torch.rand(min(m, n), generator=generator, dtype=torch.float64)
    matrix = scale * with_singular_values(values, max(m, n), seed)[0]
    matrix = (matrix if m >= n else matrix.mT).requires_grad_()
    factor = polar(matrix)
    assert factor.shape == (m, n)
    assert orthogonality_residual(factor) <= 1e-14
    torch.testing.assert_close(polar(factor), factor, rtol=0, atol=1e-14)
    torch.testing.assert_close(polar(-matrix), -factor, rtol=0, atol=1e-13)
    torch.testing.assert_close(polar(3 * matrix), factor, rtol=0, atol=1e-13)
    cotangent = torch.randn(m, n, generator=generator, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(factor, matrix, cotangent)
    # U does not change along the matrix itself, nor with its scale.
    assert (gradient * matrix).sum().abs() <= 1e-12


def test_dependent_columns_leave_their_neighbours_alone():
    matrix = torch.randn(3, 4, 2, dtype=torch.float64)
    matrix[1, :, 1] = 0.0
    factor = polar(matrix)
    torch.testing.assert_close(factor[[0, 2]], polar(matrix[[0, 2]]), rtol=0, atol=1e-15)


def test_no_iterate_is_saved():
    saved = []
    matrix = torch.randn(9, 5, 3, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        factor = polar(matrix)
    assert len(saved) == 2
    assert saved[0].data_ptr() == matrix.data_ptr()
    torch.testing.assert_close(saved[1], factor.detach(), rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(0, 4, 4), (2, 0, 5, 3), (0, 2, 3)])
def test_empty_batches(shape):
    matrix = torch.randn(shape, requires_grad=True)
    polar(matrix).sum().backward()
    assert matrix.grad.shape == shape


def test_strides_and_low_precision():
    strided = torch.randn(3, 4, 5).transpose(0, 1)[::2].mT
    torch.testing.assert_close(polar(strided), polar(strided.contiguous()), rtol=0, atol=1e-6)
    half = torch.randn(4, 3).to(torch.bfloat16).requires_grad_()
    factor = polar(half)
    assert factor.dtype == torch.float32
    factor.sum().backward()
    assert half.grad.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("matrix", "error", "message"),
    [
        (torch.zeros(3), ValueError, "matrix: expected shape"),
        (torch.zeros(3, 0), ValueError, "matrix: expected shape"),
        (torch.zeros(3, 3, dtype=torch.int64), TypeError, "matrix: expected a floating-point tensor"),
    ],
)
def test_wrong_arguments_are_refused(matrix, error, message):
    with pytest.raises(error, match=message):
        polar(matrix)
