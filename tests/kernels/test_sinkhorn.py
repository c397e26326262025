"""The Sinkhorn primitives against dense algebra, on the path that looks at its data and on the one that does not."""

import math

import pytest
import torch

from jpmhc import kernels
from jpmhc.kernels.sinkhorn import _marginal, _newton, _potentials


@pytest.fixture(autouse=True, params=["reference", "auto"])
def _bodies(request):
    with kernels.backend(request.param):
        yield


def positive(*shape, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(*shape, generator=generator, dtype=torch.float64)).exp()


def system(matrix):
    return torch.cat(
        [
            torch.cat([torch.diag_embed(matrix.sum(-1)), matrix], -1),
            torch.cat([matrix.mT, torch.diag_embed(matrix.sum(-2))], -1),
        ],
        -2,
    )


@pytest.mark.parametrize("shape", [(3, 4, 4), (2, 5, 3, 6), (1, 7, 2), (0, 4, 4), (5, 1, 3), (5, 1, 1), (2, 20, 24)])
def test_potentials_have_the_marginals_asked_for(shape):
    matrix, imbalance = positive(*shape), torch.randn(shape, dtype=torch.float64)
    potentials = kernels.sinkhorn_potentials(matrix, imbalance)
    torch.testing.assert_close((matrix * potentials).sum(-1), imbalance.sum(-1), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close((matrix * potentials).sum(-2), imbalance.sum(-2), rtol=1e-10, atol=1e-12)
    # A sum of a column and a row: all its 2 x 2 differences vanish.
    differences = potentials.diff(dim=-1).diff(dim=-2)
    torch.testing.assert_close(differences, torch.zeros_like(differences), rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", [(3, 4, 4), (2, 3, 6), (2, 16, 16), (2, 20, 20)])
def test_adjoint_is_the_projection_of_the_dense_system(shape):
    matrix, cotangent = positive(*shape), torch.randn(shape, dtype=torch.float64)
    n = shape[-2]
    weighted = matrix * cotangent
    right_side = torch.cat([weighted.sum(-1), weighted.sum(-2)], -1)
    solution = (torch.linalg.pinv(system(matrix), hermitian=True) @ right_side.unsqueeze(-1)).squeeze(-1)
    expected = weighted - matrix * (solution[..., :n, None] + solution[..., None, n:])
    torch.testing.assert_close(kernels.sinkhorn_adjoint(matrix, cotangent), expected, rtol=1e-9, atol=1e-11)


def test_inverse_gives_the_potentials():
    matrix, imbalance = positive(4, 5, 3), torch.randn(4, 5, 3, dtype=torch.float64)
    inverse = kernels.sinkhorn_inverse(matrix)
    columns = matrix.sum(-2)
    conditional = matrix / columns.unsqueeze(-2)
    right_side = imbalance.sum(-1) - (conditional * imbalance.sum(-2).unsqueeze(-2)).sum(-1)
    u = (inverse @ right_side.unsqueeze(-1)).squeeze(-1)
    v = imbalance.sum(-2) / columns - (conditional.mT @ u.unsqueeze(-1)).squeeze(-1)
    expected = kernels.sinkhorn_potentials(matrix, imbalance)
    torch.testing.assert_close(u.unsqueeze(-1) + v.unsqueeze(-2), expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(inverse, inverse.mT, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    "logits",
    [
        15 * torch.randn(64, 4, 4, generator=torch.Generator().manual_seed(0)),
        100 * torch.rand(64, 4, 4, generator=torch.Generator().manual_seed(0)) - 50,
        50 * torch.eye(4).expand(64, 4, 4) + torch.randn(64, 4, 4, generator=torch.Generator().manual_seed(0)),
    ],
    ids=["normal 15", "uniform 50", "permutation 50"],
)
def test_float32_adjoint_keeps_its_precision_where_rows_are_nearly_disconnected(logits):
    matrix = kernels.sinkhorn_forward(logits, None, None, 2e-6, 64)
    cotangent = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1))
    truth = kernels.sinkhorn_adjoint(matrix.double(), cotangent.double())
    assert (kernels.sinkhorn_adjoint(matrix, cotangent) - truth).abs().max() <= 2e-6


@pytest.mark.parametrize("marginals", [False, True])
@pytest.mark.parametrize("scale", [1.0, 8.0])
def test_the_schedule_that_never_looks_gives_the_same_result(marginals, scale):
    logits = scale * torch.randn(5, 3, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows = columns = None
    if marginals:
        rows = positive(32, 5)
        columns = positive(32, 3, seed=1)
        columns = columns * (rows.sum(-1, keepdim=True) / columns.sum(-1, keepdim=True))
    expected = kernels.sinkhorn_forward(logits.movedim(-1, 0), rows, columns, 1e-14, 64)
    rows, columns = _marginal(rows, 1.0), _marginal(columns, 5 / 3)
    start = torch.log_softmax(logits, 0) + (math.log(columns) if isinstance(columns, float) else columns.log())
    for logarithmic in (start.clone(), None):
        if logarithmic is None and scale > 1:
            continue
        blind = _newton(start.exp(), logarithmic, rows, columns, 1e-14, 64, reads=False)
        torch.testing.assert_close(blind.movedim(-1, 0), expected, rtol=1e-10, atol=1e-13)


def test_entries_that_underflow_come_back():
    # Row shifts of 400 make whole rows of exp(logits) underflow in float32 after the first normalisation of columns.
    logits = torch.randn(16, 4, 4, generator=torch.Generator().manual_seed(0))
    shifted = logits + torch.tensor([0.0, 64.0, -64.0, 128.0])[:, None] * torch.tensor([1.0, 0.0, 0.0, 0.0])
    truth = kernels.sinkhorn_forward(shifted.double(), None, None, 1e-14, 200)
    result = kernels.sinkhorn_forward(shifted, None, None, 2e-6, 200)
    torch.testing.assert_close(result.double(), truth, rtol=0, atol=1e-5)


def test_too_few_steps_return_the_last_iterate_with_exact_columns():
    logits = 20 * torch.randn(16, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    matrix = kernels.sinkhorn_forward(logits, None, None, 1e-14, 1)
    torch.testing.assert_close(matrix.sum(-2), torch.ones(16, 4, dtype=torch.float64), rtol=0, atol=1e-14)
    assert (matrix.sum(-1) - 1).abs().max() > 1e-3


def test_last_potential_is_the_ground():
    matrix = positive(4, 3, 8)
    potentials = _potentials(matrix, torch.randn(4, 3, 8, dtype=torch.float64))
    assert potentials.shape == (4, 3, 8)


@pytest.mark.parametrize("scale", [1.0, 20.0])
@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize(("dtype", "tol"), [(torch.float64, 1e-13), (torch.float32, 2e-6)])
def test_large_matrices_are_scaled_by_sweeps_or_where_those_are_slow_by_newton(scale, given, dtype, tol):
    logits = scale * torch.randn(3, 20, 24, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    rows, columns = torch.ones(3, 20, dtype=dtype), torch.full((3, 24), 20 / 24, dtype=dtype)
    if given:
        rows, columns = rows.clone(), columns.clone()
        rows[:, 0] += 0.5
        columns += 0.5 / 24
    eps = torch.finfo(dtype).eps
    result = kernels.sinkhorn_forward(logits, *((rows, columns) if given else (None, None)), 4 * eps, 128).double()
    torch.testing.assert_close(result.sum(-1), rows.double(), rtol=tol, atol=0)
    torch.testing.assert_close(result.sum(-2), columns.double(), rtol=tol, atol=0)
    # A scaling: the logarithm differs from the logits by a column and a row, where it did not underflow.
    change = (torch.where(result > 1e-30, result, torch.nan).log() - logits.double()).diff(dim=-1).diff(dim=-2)
    assert change[change.isfinite()].abs().max() < 100 * scale * eps
    assert change.isfinite().double().mean() > 0.5


@pytest.mark.parametrize("name", ["numba", "reference"])
@pytest.mark.parametrize("shape", [(3, 20, 24), (2, 40, 17), (0, 20, 20), (5, 4, 4)])
@pytest.mark.parametrize(("dtype", "tol"), [(torch.float64, 1e-14), (torch.float32, 1e-6)])
def test_scaling_a_positive_matrix_is_scaling_its_logarithm(name, shape, dtype, tol):
    matrix = positive(*shape).to(dtype)
    eps = torch.finfo(dtype).eps
    with kernels.backend(name):
        result = kernels.sinkhorn_scaled(matrix, eps**2, 4 * eps, 128)
    expected = kernels.sinkhorn_forward(matrix.double().log(), None, None, 1e-15, 128)
    assert (result.dtype, result.is_contiguous()) == (dtype, True)
    torch.testing.assert_close(result.double(), expected, rtol=10 * tol, atol=tol)
    torch.testing.assert_close(result.sum(-1), torch.ones(shape[:-1], dtype=dtype), rtol=0, atol=tol)


@pytest.mark.parametrize("name", ["numba", "reference"])
def test_what_no_sweep_finishes_is_finished_by_newton_and_nan_stays_in_its_matrix(name):
    matrix = 1e-6 * positive(4, 20, 20) / 20
    matrix[1] += torch.eye(20, dtype=torch.float64)  # next to a permutation: sweeps are slow
    matrix[2, 3, 3] = float("nan")
    matrix[3, 0, 0] = -1.0  # raised to the least number there is
    with kernels.backend(name):
        result = kernels.sinkhorn_scaled(matrix, 1e-30, 1e-15, 128)
    assert result[2].isnan().any()
    assert 1e-30 <= result[3, 0, 0] < 1e-20  # its row and its column are scaled with it
    for k in (0, 1, 3):
        torch.testing.assert_close(result[k].sum(0), torch.ones(20, dtype=torch.float64), rtol=0, atol=1e-13)
        torch.testing.assert_close(result[k].sum(1), torch.ones(20, dtype=torch.float64), rtol=0, atol=1e-13)


def test_a_large_matrix_does_not_depend_on_its_neighbours():
    logits = torch.randn(6, 32, 32, generator=torch.Generator().manual_seed(0)) * torch.arange(6.0)[:, None, None]
    with kernels.backend("numba"):
        together = kernels.sinkhorn_forward(logits, None, None, 5e-7, 128)
        alone = torch.cat([kernels.sinkhorn_forward(one, None, None, 5e-7, 128) for one in logits.split(1)])
    torch.testing.assert_close(together, alone, rtol=0, atol=0)
