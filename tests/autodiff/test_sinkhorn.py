"""Laws of the Sinkhorn map; the truth is a dense solve at a long-converged solution in float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jpmhc import autodiff, kernels
from jpmhc.autodiff import sinkhorn, sinkhorn_residual

LOGITS = torch.tensor([[2 * math.sin(1 + 4 * i + j) for j in range(4)] for i in range(4)], dtype=torch.float64)
COTANGENT = torch.tensor([[math.cos(1 + 4 * i + j) for j in range(4)] for i in range(4)], dtype=torch.float64)


def swept(logits, iterations, rows=1.0, columns=1.0):
    """Sweeps as in the textbook: rows first, columns last, in the log domain."""
    rows, columns = (torch.atleast_1d(torch.as_tensor(sums, dtype=logits.dtype)).log() for sums in (rows, columns))
    for _ in range(iterations):
        logits = logits - logits.logsumexp(-1, keepdim=True) + rows.unsqueeze(-1)
        logits = logits - logits.logsumexp(-2, keepdim=True) + columns.unsqueeze(-2)
    return logits.exp()


def dense_pullback(matrix, cotangent):
    """Solve the (n + m) system of the potentials with a pseudo-inverse, in float64."""
    matrix, cotangent = matrix.double(), cotangent.double()
    n, m = matrix.shape[-2:]
    weighted = matrix * cotangent
    system = torch.cat(
        [
            torch.cat([torch.diag_embed(matrix.sum(-1)), matrix], -1),
            torch.cat([matrix.mT, torch.diag_embed(matrix.sum(-2))], -1),
        ],
        -2,
    )
    right_side = torch.cat([weighted.sum(-1), weighted.sum(-2)], -1)
    # Equal weight on (1, -1) fixes the constant that the potentials leave open.
    null = torch.cat([torch.ones(n), -torch.ones(m)]).to(matrix)
    potentials = torch.linalg.solve(system + null[:, None] * null, right_side)
    u, v = potentials[..., :n], potentials[..., n:]
    return weighted - matrix * (u.unsqueeze(-1) + v.unsqueeze(-2))


def pullback(logits, cotangent, **options):
    logits = logits.detach().clone().requires_grad_()
    matrix = sinkhorn(logits, **options)
    return matrix.detach(), torch.autograd.grad(matrix, logits, cotangent)[0]


def test_reference_values_to_the_printed_digits():
    expected = torch.tensor(
        [
            [0.315977180540, 0.455646068064, 0.193185645915, 0.035191105481],
            [0.004931247467, 0.024167361028, 0.309852791086, 0.661048600419],
            [0.574183788781, 0.106811308142, 0.084556143133, 0.234448759945],
            [0.104907783212, 0.413375262766, 0.412405419867, 0.069311534155],
        ],
        dtype=torch.float64,
    )
    expected_gradient = torch.tensor(
        [
            [2.151585580360e-01, -9.142654252287e-02, -1.094359598983e-01, -1.429605561477e-02],
            [-1.893710268545e-04, 1.723064590356e-02, 2.214583360441e-01, -2.384996109208e-01],
            [-3.178197270154e-01, -4.342851955637e-02, 5.453225219098e-02, 3.067159943808e-01],
            [1.028505400063e-01, 1.176244161757e-01, -1.665546283367e-01, -5.392032784525e-02],
        ],
        dtype=torch.float64,
    )
    matrix, gradient = pullback(LOGITS, COTANGENT)
    torch.testing.assert_close(matrix, expected, rtol=0, atol=6e-13)
    torch.testing.assert_close(gradient, expected_gradient, rtol=0, atol=6e-13)

    jacobian = torch.func.jacrev(sinkhorn)(LOGITS).reshape(16, 16)
    eigenvalues = torch.linalg.eigvalsh(jacobian)
    printed = [
        *[0.0] * 7,
        0.008411508963,
        0.043146145175,
        0.055076800939,
        0.114167573430,
        0.119795594968,
        0.161858189979,
        0.249213337319,
        0.298433646490,
        0.391594052360,
    ]
    torch.testing.assert_close(eigenvalues, torch.tensor(printed, dtype=torch.float64), rtol=0, atol=6e-13)
    hessian = torch.func.hessian(lambda x: 0.5 * sinkhorn(x).square().sum())(LOGITS).reshape(16, 16)
    assert abs(hessian.trace().item() - 0.184707394547) < 6e-13
    assert sinkhorn_residual(sinkhorn(LOGITS, iterations=20)).item() == pytest.approx(8.151e-09, rel=1e-3)


@pytest.mark.parametrize(("dtype", "scale"), [(torch.float64, 50.0), (torch.float32, 20.0)])
@pytest.mark.parametrize("shape", [(2, 2), (3, 3), (4, 4), (8, 8), (16, 16), (3, 7), (16, 5)])
def test_extreme_logits_are_solved_to_round_off(dtype, scale, shape):
    logits = (2 * torch.rand(100, *shape, generator=torch.Generator().manual_seed(1), dtype=dtype) - 1) * scale
    residual = sinkhorn_residual(sinkhorn(logits))
    assert residual.max() <= 10 * torch.finfo(dtype).eps * max(shape) ** 0.5


@pytest.mark.parametrize(("dtype", "scale"), [(torch.float64, 50.0), (torch.float32, 20.0)])
@pytest.mark.parametrize("share", [0.1, 0.3, 0.5])
@pytest.mark.parametrize("n", [4, 8, 16])
def test_binary_extreme_logits_are_solved_to_round_off(n, share, dtype, scale):
    high = torch.rand(200, n, n, generator=torch.Generator().manual_seed(n)) < share
    residual = sinkhorn_residual(sinkhorn(torch.where(high, scale, -scale).to(dtype)))
    assert residual.max() <= 10 * torch.finfo(dtype).eps * n**0.5


@pytest.mark.parametrize("scale", [1.0, 2.0, 4.0, 8.0])
@pytest.mark.parametrize("shape", [(2, 2), (4, 4), (8, 8), (16, 16), (3, 5), (9, 4)])
def test_gradient_agrees_with_a_dense_solve_at_a_long_converged_solution(scale, shape):
    generator = torch.Generator().manual_seed(0)
    logits = scale * torch.randn(24, *shape, generator=generator, dtype=torch.float64)
    cotangent = torch.randn(24, *shape, generator=generator, dtype=torch.float64)
    matrix, gradient = pullback(logits, cotangent)
    converged = swept(matrix.log(), 20, columns=shape[0] / shape[1])
    truth = dense_pullback(converged, cotangent)
    assert (gradient - truth).norm() <= 1e-8 * truth.norm()


@pytest.mark.parametrize("n", [2, 4, 8, 16])
def test_gradient_near_a_permutation_is_exact_where_the_unrolled_one_is_not(n):
    generator = torch.Generator().manual_seed(0)
    noise, cotangent = torch.randn(2, 24, n, n, generator=generator, dtype=torch.float64)
    logits = noise - 8 * (1 - torch.eye(n, dtype=torch.float64))
    matrix, gradient = pullback(logits, cotangent)
    truth = dense_pullback(swept(matrix.log(), 20), cotangent)
    per_matrix = (gradient - truth).norm(dim=(-2, -1)) / truth.norm(dim=(-2, -1))
    assert per_matrix.max() <= 1e-8
    if n == 4:
        unrolled = torch.func.grad(lambda x: (swept(x, 20) * cotangent).sum())(logits)
        assert (unrolled - truth).norm() > 0.5 * truth.norm()


def test_solution_agrees_with_ten_thousand_sweeps():
    logits = 2 * torch.randn(8, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(sinkhorn(logits), swept(logits, 10_000), rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("iterations", [1, 2, 20])
@pytest.mark.parametrize("shape", [(4, 4), (3, 6)])
def test_iterations_give_what_that_many_sweeps_give(iterations, shape):
    logits = 3 * torch.randn(16, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = swept(logits, iterations, columns=shape[0] / shape[1])
    torch.testing.assert_close(sinkhorn(logits, iterations=iterations), expected, rtol=1e-12, atol=1e-15)


def test_derivative_of_iterations_is_that_of_the_equation_with_the_actual_marginals():
    logits = 3 * torch.randn(16, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    cotangent = torch.randn(16, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    matrix, gradient = pullback(logits, cotangent, iterations=3)
    assert sinkhorn_residual(matrix).max() > 1e-2
    torch.testing.assert_close(gradient, dense_pullback(matrix, cotangent), rtol=1e-9, atol=1e-12)


def test_marginals_are_met_and_their_gradients_are_those_of_the_sweeps():
    generator = torch.Generator().manual_seed(0)
    logits, raw_rows, raw_columns = (
        torch.randn(6, *shape, generator=generator, dtype=torch.float64) for shape in ((3, 5), (3,), (5,))
    )
    cotangent = torch.randn(6, 3, 5, generator=generator, dtype=torch.float64)

    def loss(solve):
        def evaluate(logits, raw_rows, raw_columns):
            rows, columns = 2 * raw_rows.softmax(-1), 2 * raw_columns.softmax(-1)
            return (cotangent * solve(logits, rows, columns)).sum()

        return evaluate

    implicit = loss(lambda logits, rows, columns: sinkhorn(logits, row_marginals=rows, column_marginals=columns))
    unrolled = loss(lambda logits, rows, columns: swept(logits, 300, rows, columns))
    arguments = (logits, raw_rows, raw_columns)
    for computed, expected in zip(
        torch.func.grad(implicit, (0, 1, 2))(*arguments),
        torch.func.grad(unrolled, (0, 1, 2))(*arguments),
        strict=True,
    ):
        torch.testing.assert_close(computed, expected, rtol=1e-9, atol=1e-12)
    arguments = tuple(argument.requires_grad_() for argument in arguments)
    torch.autograd.gradcheck(implicit, arguments, check_forward_ad=True)
    torch.autograd.gradgradcheck(implicit, arguments, check_fwd_over_rev=True)
    rows, columns = 2 * raw_rows.softmax(-1), 2 * raw_columns.softmax(-1)
    matrix = sinkhorn(logits, row_marginals=rows, column_marginals=columns)
    assert sinkhorn_residual(matrix, row_marginals=rows, column_marginals=columns).max() < 1e-14


def test_one_marginal_alone_spreads_the_other_equally_and_broadcasts():
    logits = torch.randn(2, 5, 3, 4, dtype=torch.float64)
    rows = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    matrix = sinkhorn(logits, row_marginals=rows)
    torch.testing.assert_close(matrix.sum(-1), rows.expand(2, 5, 3))
    torch.testing.assert_close(matrix.sum(-2), torch.full((2, 5, 4), 1.5, dtype=torch.float64))
    transposed = sinkhorn(logits.mT, column_marginals=rows)
    torch.testing.assert_close(transposed, matrix.mT, rtol=1e-11, atol=1e-14)


def test_a_batch_equals_its_matrices_one_by_one():
    scales = torch.tensor([0.1, 1.0, 5.0, 30.0, 2.0], dtype=torch.float64)[:, None, None]
    logits = scales * torch.randn(5, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    cotangent = torch.randn(5, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    matrix, gradient = pullback(logits, cotangent)
    for index in range(5):
        alone, gradient_alone = pullback(logits[index], cotangent[index])
        torch.testing.assert_close(matrix[index], alone, rtol=1e-12, atol=1e-15)
        torch.testing.assert_close(gradient[index], gradient_alone, rtol=1e-9, atol=1e-14)


def test_forbidden_entries_are_zero_and_their_gradients_too():
    logits = torch.randn(4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    logits[[0, 1, 2], [1, 3, 0]] = -math.inf
    matrix, gradient = pullback(logits, torch.randn(4, 4, dtype=torch.float64))
    assert (matrix[[0, 1, 2], [1, 3, 0]] == 0).all()
    assert (gradient[[0, 1, 2], [1, 3, 0]] == 0).all()
    torch.testing.assert_close(matrix, swept(logits, 2000), rtol=1e-10, atol=1e-14)
    allowed = torch.isfinite(logits)
    values = logits[allowed].requires_grad_()

    def scaled(values):
        return sinkhorn(torch.full_like(logits, -math.inf).masked_scatter(allowed, values))

    torch.autograd.gradcheck(scaled, (values,), check_forward_ad=True)
    torch.autograd.gradgradcheck(scaled, (values,))


def test_a_permutation_pattern_is_its_permutation():
    logits = torch.full((3, 3), -math.inf)
    logits[[0, 1, 2], [2, 0, 1]] = torch.tensor([5.0, -3.0, 0.0])
    torch.testing.assert_close(sinkhorn(logits), (logits > -math.inf).float())


@pytest.mark.parametrize(
    "pattern",
    [
        [[1, 1], [0, 1]],  # the limit of the sweeps is the identity, which is zero where the logits are finite
        [[1, 0, 0], [1, 0, 0], [1, 1, 1]],  # two rows share one column
        [[0, 0], [1, 1]],  # an empty row
    ],
)
def test_patterns_without_a_doubly_stochastic_matrix_are_refused(pattern):
    logits = torch.where(torch.tensor(pattern) > 0, 0.0, -math.inf)
    batch = torch.stack([torch.zeros_like(logits), logits])
    with pytest.raises(ValueError, match="matrix 1 of the batch is finite"):
        sinkhorn(batch)


def test_a_pattern_may_fit_some_marginals_and_not_others():
    logits = torch.tensor([[0.0, 0.0], [-math.inf, 0.0]])
    matrix = sinkhorn(logits, row_marginals=torch.tensor([1.5, 0.5]), column_marginals=torch.tensor([1.0, 1.0]))
    torch.testing.assert_close(matrix, torch.tensor([[1.0, 0.5], [0.0, 0.5]]))
    with pytest.raises(ValueError, match="with these marginals"):
        sinkhorn(logits, row_marginals=torch.tensor([0.5, 1.5]), column_marginals=torch.tensor([1.0, 1.0]))


def test_random_float32_marginals_with_a_forbidden_entry_are_met():
    generator = torch.Generator().manual_seed(0)
    rows, columns = torch.rand(2, 50, 4, generator=generator) * 0.5 + 0.5
    columns = columns * (rows.sum(-1, keepdim=True) / columns.sum(-1, keepdim=True))
    logits = torch.randn(50, 4, 4, generator=generator)
    logits[:, 0, 1] = -math.inf
    marginals = {"row_marginals": rows, "column_marginals": columns}
    assert sinkhorn_residual(sinkhorn(logits, **marginals), **marginals).max() <= 1e-5


def test_a_marginal_a_billion_times_smaller_is_met_beside_a_forbidden_entry():
    logits = torch.randn(3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    logits[1, 2] = -math.inf
    rows = torch.tensor([1e-9, 1.0, 1.0], dtype=torch.float64)
    matrix = sinkhorn(logits, row_marginals=rows)
    assert sinkhorn_residual(matrix, row_marginals=rows) <= 1e-13
    assert (matrix[logits > -math.inf] > 0).all()


def test_what_the_residual_reports_where_patterns_are_not_checked():
    def unchecked(pattern):
        logits = torch.where(torch.tensor(pattern) > 0, 0.0, -math.inf).double()
        matrix = kernels.sinkhorn_forward(logits, None, None, 1e-14, 128)
        return matrix, sinkhorn_residual(matrix), sinkhorn_residual(matrix, logits=logits)

    _, residual, _ = unchecked([[1, 0, 0], [1, 0, 0], [1, 1, 1]])  # two rows share one column
    assert residual > 0.1
    _, *residuals = unchecked([[0, 0], [1, 1]])  # an empty row
    assert all(residual.isnan() for residual in residuals)
    matrix, residual, informed = unchecked([[1, 1], [0, 1]])  # the identity has the marginals, a zero at a finite logit
    assert residual < 1e-12
    assert 0 < matrix[0, 1] < 1e-12
    assert informed == math.inf


def test_nan_stays_in_its_matrix():
    logits = torch.randn(3, 4, 4)
    logits[1, 2, 2] = math.nan
    matrix = sinkhorn(logits)
    assert matrix[1].isnan().all()
    torch.testing.assert_close(matrix[[0, 2]], sinkhorn(logits[[0, 2]]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_computed_and_returned_in_float32(dtype):
    logits = torch.randn(5, 4, 4).to(dtype).requires_grad_()
    matrix = sinkhorn(logits)
    assert matrix.dtype == torch.float32
    torch.testing.assert_close(matrix, sinkhorn(logits.detach().float()))
    matrix[..., 0, 0].sum().backward()
    assert logits.grad.dtype == dtype


@pytest.mark.parametrize("shape", [(0, 4, 4), (3, 0, 2, 5), (1, 1), (7, 1, 3), (2, 3, 1)])
def test_empty_batches_and_single_rows(shape):
    logits = torch.randn(shape, requires_grad=True)
    matrix = sinkhorn(logits)
    assert matrix.shape == shape
    torch.testing.assert_close(matrix.sum(-1), torch.ones(shape[:-1]))
    matrix.square().sum().backward()
    assert logits.grad.shape == shape


def test_non_contiguous_logits_are_read_and_not_written():
    logits = torch.randn(4, 5, 4, dtype=torch.float64).transpose(0, 1).mT
    before = logits.clone()
    torch.testing.assert_close(sinkhorn(logits), sinkhorn(logits.contiguous()), rtol=0, atol=0)
    single = torch.randn(1, 4, 4)
    kept = single.clone()
    sinkhorn(single)
    torch.testing.assert_close(logits, before, rtol=0, atol=0)
    torch.testing.assert_close(single, kept, rtol=0, atol=0)


@pytest.mark.parametrize("options", [{}, {"iterations": 10}, {"iterations": 1000}])
def test_nothing_but_the_result_is_saved(options):
    saved = []
    logits = torch.randn(64, 4, 4, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        matrix = sinkhorn(logits, **options)
    assert [tensor.shape for tensor in saved] == [matrix.shape]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="memory is counted on a GPU")
def test_peak_memory_on_a_gpu_does_not_grow_with_the_sweeps():
    def peak(iterations):
        logits = torch.randn(4096, 4, 4, device="cuda", requires_grad=True)
        torch.cuda.reset_peak_memory_stats()
        sinkhorn(logits, iterations=iterations).square().sum().backward()
        return torch.cuda.max_memory_allocated()

    assert peak(10) == peak(100) == peak(1000)


def test_peak_memory_does_not_grow_with_the_sweeps():
    from torch.profiler import ProfilerActivity, profile

    def peak(iterations):
        logits = torch.randn(256, 4, 4, requires_grad=True)
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
            sinkhorn(logits, iterations=iterations).square().sum().backward()
        alive = highest = 0
        for event in record.profiler.kineto_results.events():
            if event.name() == "[memory]":
                alive += event.nbytes()
                highest = max(highest, alive)
        return highest

    # The first call compiles and the first record starts the profiler, of which torch 2.11 once lost the rest.
    peak(10)
    peaks = [peak(iterations) for iterations in (10, 100, 1000)]
    assert peaks[0] == peaks[1] == peaks[2] > 0


@given(
    n=st.integers(1, 6),
    m=st.integers(1, 6),
    batch=st.integers(0, 3),
    scale=st.sampled_from([0.0, 1e-3, 1.0, 10.0, 40.0]),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=60, deadline=None)
def test_laws_hold_for_any_shape_and_scale(n, m, batch, scale, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(batch, n, m, generator=generator, dtype=torch.float64)
    first, second = torch.randn(2, batch, n, m, generator=generator, dtype=torch.float64)
    matrix, gradient = pullback(logits, first)
    _, other = pullback(logits, second)
    tight = {"rtol": 0, "atol": 1e-12}
    torch.testing.assert_close(matrix.sum(-1), torch.ones(batch, n, dtype=torch.float64), **tight)
    torch.testing.assert_close(matrix.sum(-2), torch.full((batch, m), n / m, dtype=torch.float64), **tight)
    # The derivative is symmetric, positive, at most 1/2 in norm for marginals of one, and blind to shifts.
    torch.testing.assert_close((gradient * second).sum((-2, -1)), (other * first).sum((-2, -1)), **tight)
    torch.testing.assert_close(gradient.sum(-1), torch.zeros(batch, n, dtype=torch.float64), **tight)
    torch.testing.assert_close(gradient.sum(-2), torch.zeros(batch, m, dtype=torch.float64), **tight)
    assert ((gradient * first).sum((-2, -1)) >= -1e-12).all()
    if n == m:
        assert (gradient.norm(dim=(-2, -1)) <= 0.5 * first.norm(dim=(-2, -1)) + 1e-12).all()
    shifts = torch.randn(batch, n, 1, generator=generator, dtype=torch.float64) + 3 * torch.rand(m, dtype=torch.float64)
    shifted, shifted_gradient = pullback(logits + shifts, first)
    torch.testing.assert_close(shifted, matrix, rtol=1e-6, atol=1e-10)
    torch.testing.assert_close(shifted_gradient, gradient, rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([[0.0]],), TypeError, "logits: expected a tensor, got list"),
        (
            (torch.zeros(2, 2, dtype=torch.int64),),
            TypeError,
            "logits: expected a floating-point tensor, got torch.int64",
        ),
        ((torch.zeros(2),), ValueError, r"logits: expected shape \(..., n, m\) with n, m >= 1, got \(2,\)"),
        ((torch.zeros(3, 0, 2),), ValueError, "logits: expected shape"),
    ],
)
def test_wrong_logits_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        sinkhorn(*arguments)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"iterations": 0}, "iterations: expected a positive integer, got 0"),
        ({"max_steps": 2.5}, "max_steps: expected a positive integer, got 2.5"),
        ({"tol": 0.0}, "tol: expected a positive number, got 0.0"),
        ({"tol": 1e-3, "iterations": 3}, "tol: has no effect"),
        ({"row_marginals": torch.ones(3)}, r"row_marginals: expected a shape that broadcasts to \(5, 2\), got \(3,\)"),
        ({"row_marginals": torch.tensor([1.0, -1.0])}, "row_marginals: expected positive numbers, got -1"),
        (
            {"row_marginals": torch.ones(2), "column_marginals": torch.tensor([1.0, 2.0])},
            "row_marginals: expected the total of column_marginals, 3, got 2",
        ),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        autodiff.sinkhorn(torch.zeros(5, 2, 2), **options)
