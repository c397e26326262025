"""Which patterns carry a matrix with given marginals, against enumeration of permutations."""

import itertools
import math

import pytest
import torch

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


def test_staircase_of_sixteen_is_accepted():
    band = torch.ones(16, 16).tril(1) > 0  # entries of its doubly stochastic matrices are as small as 2^-15
    check_scalable(torch.where(band, 0.0, -math.inf), None, None)


def test_finite_logits_need_no_look_and_other_devices_get_none():
    check_scalable(torch.randn(3, 4, 4), None, None)
    check_scalable(torch.full((2, 2), -math.inf, device="meta"), None, None)
    check_scalable(torch.zeros(0, 4, 4), None, None)
