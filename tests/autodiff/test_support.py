"""Which patterns carry a matrix with given marginals, against enumeration of permutations."""

import itertools
import math

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from jpmhc import kernels
from jpmhc.autodiff import sinkhorn_residual, support
from jpmhc.autodiff.support import check_scalable


def has_total_support(pattern):
    """Every allowed entry lies on a permutation of allowed entries (Birkhoff; Sinkhorn and Knopp)."""
    n = len(pattern)
    covered = torch.zeros(n, n, dtype=torch.bool)
    for permutation in itertools.permutations(range(n)):
        if all(pattern[i][j] for i, j in enumerate(permutation)):
            covered[range(n), permutation] = True
    return bool((covered == torch.tensor(pattern)).all()) and bool(covered.any())


@pytest.mark.parametrize("n", [2, 3])
def test_all_patterns_are_judged_as_by_enumeration(n):
    for flat in itertools.product([True, False], repeat=n * n):
        pattern = [list(flat[i * n : (i + 1) * n]) for i in range(n)]
        logits = torch.where(torch.tensor(pattern), 0.0, -math.inf)
        if has_total_support(pattern):
            check_scalable(logits, None, None)
        else:
            with pytest.raises(ValueError, match="no matrix with these marginals"):
                check_scalable(logits, None, None)


def test_random_larger_patterns_are_judged_as_by_enumeration():
    generator = torch.Generator().manual_seed(0)
    found = set()
    for _ in range(60):
        pattern = torch.rand(5, 5, generator=generator) < 0.55
        logits = torch.where(pattern, 0.0, -math.inf)
        fits = has_total_support(pattern.tolist())
        found.add(fits)
        try:
            check_scalable(logits, None, None)
            accepted = True
        except ValueError:
            accepted = False
        assert accepted == fits
    assert found == {True, False}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [0.0, 1.0, 8.0])
def test_the_residual_judges_patterns_as_by_enumeration_without_a_look_at_them(dtype, scale):
    generator = torch.Generator().manual_seed(0)
    patterns = torch.rand(200, 4, 4, generator=generator) < 0.6
    logits = torch.where(patterns, scale * torch.randn(patterns.shape, generator=generator), -math.inf).to(dtype)
    matrix = kernels.sinkhorn_forward(logits, None, None, 16 * torch.finfo(dtype).eps, 128)
    residual = sinkhorn_residual(matrix, logits=logits)
    supported = torch.tensor([has_total_support(pattern) for pattern in patterns.tolist()])
    assert 10 < supported.sum() < 190
    assert (residual[supported] < 1e-4).all()
    assert not (residual[~supported] < 0.1).any()


def test_staircase_of_sixteen_is_accepted():
    band = torch.ones(16, 16).tril(1) > 0  # entries of its doubly stochastic matrices are as small as 2^-15
    logits = torch.where(band, 0.0, -math.inf)
    check_scalable(logits, None, None)
    assert sinkhorn_residual(kernels.sinkhorn_forward(logits, None, None, 4e-6, 128), logits=logits) < 1e-4


def forbidding(n, *entries):
    logits = torch.zeros(n, n)
    for i, j in entries:
        logits[i, j] = -math.inf
    return logits


@pytest.mark.parametrize("scale", [1e-30, 1e-8, 1.0, 1e8, 1e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_scale_of_the_marginals_does_not_matter(scale, dtype):
    sums = scale * torch.ones(2, dtype=dtype)
    with pytest.raises(ValueError, match="no matrix with these marginals"):
        check_scalable(forbidding(2, (1, 0)), sums, sums)
    check_scalable(forbidding(2, (1, 0), (0, 1)), sums, sums)
    uneven = scale * torch.tensor([1.5, 0.5], dtype=dtype)
    check_scalable(forbidding(2, (1, 0)), uneven, sums)
    with pytest.raises(ValueError, match="no matrix with these marginals"):
        check_scalable(forbidding(2, (1, 0)), uneven.flip(0), sums)


def test_small_marginals_are_judged_beside_large_ones():
    rows = torch.tensor([1e-9, 1.0, 1.0], dtype=torch.float64)
    check_scalable(forbidding(3, (1, 2)), rows, rows)
    check_scalable(forbidding(3, (0, 1), (0, 2), (1, 0), (2, 0)), rows, rows)
    check_scalable(forbidding(3, (0, 1), (0, 2)), rows, rows.flip(0))
    with pytest.raises(ValueError, match="no matrix with these marginals"):
        check_scalable(forbidding(3, (1, 0), (2, 0)), rows, rows.flip(0))  # a small row alone to fill a large column
    with pytest.raises(ValueError, match="no matrix with these marginals"):
        check_scalable(forbidding(3, (1, 0), (2, 0)), rows, rows)  # the first column takes all of the small row


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_blocks_whose_totals_differ_by_rounding_are_accepted(dtype):
    generator = torch.Generator().manual_seed(0)
    blocks = forbidding(4, *itertools.product([0, 1], [2, 3]), *itertools.product([2, 3], [0, 1]))
    matrices = torch.rand(50, 4, 4, generator=generator, dtype=torch.float64) * (blocks == 0)
    rows, columns = (matrices.sum(dim).to(dtype) for dim in (-1, -2))
    check_scalable(blocks.expand(50, 4, 4), rows, columns)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(3, 5), (6, 6)])
def test_the_marginals_of_a_matrix_fit_its_own_pattern(shape, dtype):
    generator = torch.Generator().manual_seed(0)
    matrices = torch.exp(6 * torch.randn(40, *shape, generator=generator, dtype=torch.float64).clamp(-1, 1))
    forbidden = torch.rand(40, *shape, generator=generator) < 0.4
    forbidden[..., 0] = forbidden[..., 0, :] = False  # no empty row or column
    matrices = matrices.masked_fill(forbidden, 0.0)
    rows, columns = (matrices.sum(dim).to(dtype) for dim in (-1, -2))
    check_scalable(matrices.log().to(dtype), rows, columns)


def test_equal_patterns_with_shared_marginals_are_judged_once(monkeypatch):
    calls = []
    monkeypatch.setattr(support, "_fits", lambda *problem: calls.append(problem) or True)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(64, 3, 3, generator=generator)
    logits[::2, 0, 1] = -math.inf
    logits[1::4, 2, 1] = -math.inf
    rows = torch.rand(3, generator=generator).expand(64, 3)
    check_scalable(logits, rows, rows)
    assert len(calls) == 2
    check_scalable(logits, None, None)
    assert len(calls) == 4


def test_finite_logits_need_no_look_and_other_devices_get_none():
    check_scalable(torch.randn(3, 4, 4), None, None)
    check_scalable(torch.full((2, 2), -math.inf, device="meta"), None, None)
    check_scalable(torch.zeros(0, 4, 4), None, None)


def test_traced_logits_get_no_look():
    marginals = torch.tensor([1.0, 2.0, 3.0])
    logits = forbidding(3, (1, 0), (2, 0))  # no matrix fits

    def checked(logits, marginals):
        check_scalable(logits, marginals, marginals)
        return 2 * logits

    traced = make_fx(checked)(logits, marginals)
    torch.testing.assert_close(traced(torch.ones(3, 3), marginals), torch.full((3, 3), 2.0))
    with pytest.raises(ValueError, match="no matrix with these marginals"):
        checked(logits, marginals)
