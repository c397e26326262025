"""Laws of the Cayley map; the truth is a linear solve in float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jpmhc.autodiff import cayley, cayley_contraction, orthogonality_residual

RAW = torch.tensor([[math.sin(1 + 4 * i + j) for j in range(4)] for i in range(4)], dtype=torch.float64)
COTANGENT = torch.tensor([[math.cos(1 + 4 * i + j) for j in range(4)] for i in range(4)], dtype=torch.float64)


def solved(raw, step=1.0):
    raw = raw.double()
    b = step / 2 * (raw - raw.mT)
    identity = torch.eye(raw.shape[-1], dtype=torch.float64)
    return torch.linalg.solve(identity - b, identity + b)


def published(raw, step, iterations):
    w = raw - raw.mT
    identity = torch.eye(raw.shape[-1], dtype=raw.dtype)
    y = identity + step * w
    for _ in range(iterations):
        y = identity + step / 2 * w @ (identity + y)
    return y


def test_reference_values_to_the_printed_digits():
    expected = torch.tensor(
        [
            [-0.092360032138, 0.823415197301, 0.040086956490, -0.558435379643],
            [-0.737566769420, -0.090203710366, 0.668201644969, 0.036947434887],
            [0.184297211914, -0.534447407443, 0.175842747314, -0.805903117363],
            [0.643039207819, 0.167978189563, 0.721788698857, 0.193144969497],
        ],
        dtype=torch.float64,
    )
    unconstrained = torch.tensor(
        [
            [0.033477481646, -0.723844992510, -0.194207893690, -0.569124830130],
            [0.687365421523, -0.074698956196, 0.110101489235, -0.171433479873],
            [-0.126280086020, -0.033559329148, -0.033329522383, -0.005320706817],
            [0.775090069278, -0.098020145706, 0.120332522613, -0.204048174736],
        ],
        dtype=torch.float64,
    )
    raw = RAW.clone().requires_grad_()
    rotation = cayley(raw)
    (gradient,) = torch.autograd.grad(rotation, raw, COTANGENT)
    torch.testing.assert_close(rotation, expected, rtol=0, atol=6e-13)
    torch.testing.assert_close(gradient, unconstrained - unconstrained.mT, rtol=0, atol=2e-12)
    assert cayley_contraction(RAW).item() == pytest.approx(1.153560674582, abs=6e-13)
    for iterations, distance, defect in (
        (2, 5.521416784188e-03, 1.072968835269e-02),
        (3, 1.273857854043e-03, 5.711208086998e-04),
        (4, 2.938944650861e-04, 5.728298964889e-04),
        (5, 6.780501948012e-05, 3.049064082548e-05),
    ):
        y = cayley(RAW, step=0.2, iterations=iterations)
        assert torch.linalg.matrix_norm(y - solved(RAW, 0.2), 2).item() == pytest.approx(distance, rel=1e-10)
        error = y.mT @ y - torch.eye(4, dtype=torch.float64)
        assert torch.linalg.matrix_norm(error, 2).item() == pytest.approx(defect, rel=1e-10)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-14), (torch.float32, 1e-6)])
@pytest.mark.parametrize("scale", [0.0, 1e-3, 1.0, 30.0, 1e3])
@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 8, 16])
def test_result_is_orthogonal_and_the_transform(n, scale, dtype, tolerance):
    raw = scale * (2 * torch.rand(200, n, n, generator=torch.Generator().manual_seed(n), dtype=dtype) - 1)
    rotation = cayley(raw)
    assert orthogonality_residual(rotation.double()).max() <= tolerance
    torch.testing.assert_close(torch.linalg.det(rotation), torch.ones(200, dtype=dtype), rtol=0, atol=20 * tolerance)
    if scale <= 30:
        torch.testing.assert_close(rotation.double(), solved(raw), rtol=0, atol=20 * tolerance * max(1.0, scale))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 4e-15), (torch.float32, 1e-6)])
@pytest.mark.parametrize("scale", [1.0, 100.0, 1e4])
@pytest.mark.parametrize("n", [2, 3, 4])
def test_result_is_orthogonal_for_entries_of_mixed_size(n, scale, dtype, tolerance):
    generator = torch.Generator().manual_seed(0)
    raw = torch.randn(20_000, n, n, generator=generator) * torch.exp(
        14 * torch.rand(20_000, n, n, generator=generator) - 7
    )
    raw = (raw / raw.abs().amax((1, 2), keepdim=True) * scale).to(dtype)
    assert orthogonality_residual(cayley(raw).double()).max() <= tolerance


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7, 16])
@pytest.mark.parametrize("step", [1.0, 0.1, -0.7])
def test_gradient_is_that_of_the_solve(n, step):
    raw, cotangent = torch.randn(2, 5, n, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    raw.requires_grad_()
    (gradient,) = torch.autograd.grad(cayley(raw, step=step), raw, cotangent)
    (truth,) = torch.autograd.grad(solved(raw, step), raw, cotangent)
    torch.testing.assert_close(gradient, truth, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("n", [2, 4, 6])
def test_float32_gradient_is_right_at_huge_entries(n):
    raw, cotangent = torch.randn(2, 50, n, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    raw = raw * 100
    gradients = []
    for dtype in (torch.float32, torch.float64):
        argument = raw.to(dtype).requires_grad_()
        gradients.append(torch.autograd.grad(cayley(argument), argument, cotangent.to(dtype))[0].double())
    assert (gradients[0] - gradients[1]).abs().max() <= 1e-5


@pytest.mark.parametrize("n", [3, 4, 6])
@pytest.mark.parametrize("iterations", [1, 2, 5])
def test_iterations_are_the_published_ones_and_their_derivative_that_of_the_equation(n, iterations):
    raw, cotangent = torch.randn(2, 5, n, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    raw.requires_grad_()
    y = cayley(raw, step=0.1, iterations=iterations)
    torch.testing.assert_close(y, published(raw, 0.1, iterations), rtol=0, atol=1e-14)
    (gradient,) = torch.autograd.grad(y, raw, cotangent)
    e = y.detach() + torch.eye(n, dtype=torch.float64)
    by_equation = 0.1 / 4 * e.mT @ cotangent @ e.mT
    torch.testing.assert_close(gradient, by_equation - by_equation.mT, rtol=1e-11, atol=1e-13)
    (exact,) = torch.autograd.grad(cayley(raw, step=0.1), raw, cotangent)
    (unrolled,) = torch.autograd.grad(published(raw, 0.1, iterations), raw, cotangent)
    assert (gradient - exact).norm() < (unrolled - exact).norm()


@pytest.mark.parametrize("iterations", range(1, 7))
def test_distance_and_defect_of_the_iterations_follow_their_law(iterations):
    b = 0.3
    raw = torch.zeros(4, 4, dtype=torch.float64)
    raw[0, 1], raw[2, 3] = b, b / 2  # largest singular value of B is b
    assert cayley_contraction(raw, step=2.0).item() == pytest.approx(b)
    y = cayley(raw, step=2.0, iterations=iterations)
    distance = torch.linalg.matrix_norm(y - cayley(raw, step=2.0), 2).item()
    assert distance == pytest.approx(2 * b ** (iterations + 2) / math.sqrt(1 + b**2), rel=1e-9)
    order = iterations + 2 + iterations % 2
    sign = (-1) ** (iterations // 2)
    defect = abs(sign * 4 * b**order + 4 * b ** (2 * iterations + 4)) / (1 + b**2)
    assert orthogonality_residual(y).item() == pytest.approx(defect, rel=1e-9)


def test_two_iterations_at_step_one_tenth_miss_orthogonality_by_what_the_docstring_says():
    raw = torch.tensor([[0.0, 1.0], [0.0, 0.0]], dtype=torch.float64)
    for b, defect in ((0.1, 4e-4), (0.5, 0.19)):
        assert orthogonality_residual(cayley(raw, step=2 * b, iterations=2)).item() == pytest.approx(defect, rel=0.05)
    growing = [orthogonality_residual(cayley(raw, step=2.4, iterations=s)).item() for s in (2, 4, 8)]
    assert growing == sorted(growing)
    assert growing[-1] > 1


@given(
    n=st.integers(1, 7),
    scale=st.sampled_from([0.0, 1e-8, 1.0, 1e3, 1e6]),
    seed=st.integers(0, 2**31),
    double=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_laws_hold_for_any_size_and_scale(n, scale, seed, double):
    dtype = torch.float64 if double else torch.float32
    raw = (scale * torch.randn(3, n, n, generator=torch.Generator().manual_seed(seed))).to(dtype).requires_grad_()
    rotation = cayley(raw)
    tolerance = 1e-14 if double else 1e-6
    if double or n <= 4 or scale <= 1e3:  # one polish does not mend what an LU factorisation in float32 loses beyond
        assert orthogonality_residual(rotation).max() <= tolerance
    if scale <= 1:
        torch.testing.assert_close(cayley(-raw), rotation.mT, rtol=0, atol=tolerance)
        torch.testing.assert_close(cayley(raw.mT), rotation.mT, rtol=0, atol=tolerance)
        torch.testing.assert_close(cayley(raw, step=-1.0), rotation.mT, rtol=0, atol=tolerance)
    (gradient,) = torch.autograd.grad(rotation[:, 0, 0].sum(), raw)
    assert gradient.isfinite().all()
    torch.testing.assert_close(gradient, -gradient.mT, rtol=0, atol=0)


def test_only_the_result_is_saved():
    saved = []
    raw = torch.randn(64, 4, 4, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        rotation = cayley(raw)
    assert [tensor.shape for tensor in saved] == [rotation.shape]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_computed_and_returned_in_float32(dtype):
    raw = torch.randn(5, 6, 6).to(dtype).requires_grad_()
    rotation = cayley(raw)
    assert rotation.dtype == torch.float32
    assert orthogonality_residual(rotation).max() < 1e-6
    rotation.sum().backward()
    assert raw.grad.dtype == dtype


@pytest.mark.parametrize("n", [3, 6])
@pytest.mark.parametrize("options", [{}, {"iterations": 2}])
def test_empty_batches_and_strides(n, options):
    empty = torch.randn(2, 0, n, n, requires_grad=True)
    cayley(empty, **options).sum().backward()
    assert empty.grad.shape == empty.shape
    strided = torch.randn(n, 4, n).transpose(0, 1)[::2]
    torch.testing.assert_close(cayley(strided, **options), cayley(strided.contiguous(), **options), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("raw", "options", "error", "message"),
    [
        (torch.zeros(2, 3), {}, ValueError, r"raw: expected square matrices \(..., n, n\), got \(2, 3\)"),
        (torch.zeros(3), {}, ValueError, "raw: expected shape"),
        (torch.zeros(3, 3), {"iterations": 0}, ValueError, "iterations: expected a positive integer, got 0"),
        (torch.zeros(3, 3, dtype=torch.int32), {}, TypeError, "raw: expected a floating-point tensor"),
        (None, {}, TypeError, "raw: expected a tensor, got NoneType"),
    ],
)
def test_wrong_arguments_are_refused(raw, options, error, message):
    with pytest.raises(error, match=message):
        cayley(raw, **options)
