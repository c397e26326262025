import math

import numpy as np
import pytest
from scipy import stats

from benchmarks.arc.paired import Difference, mcnemar, over_seeds, over_tasks


def test_the_interval_over_seeds_is_students():
    rng = np.random.default_rng(0)
    first, second = rng.normal(1, 1, 6), rng.normal(0, 1, 6)
    found = over_seeds(first, second)
    reference = stats.ttest_rel(first, second).confidence_interval(0.95)
    assert found == pytest.approx((np.mean(first - second), reference.low, reference.high, 6))


def test_the_bootstrap_covers_the_true_difference_as_often_as_it_says():
    rng = np.random.default_rng(1)
    hits = 0
    for repeat in range(200):
        first, second = rng.random((2, 80))
        found = over_tasks(first + 0.1, second, seed=repeat)
        hits += found.low < 0.1 < found.high
    assert 0.90 <= hits / 200 <= 0.985


def test_one_pair_has_no_interval():
    for test in (over_seeds, over_tasks):
        found = test([2.0], [1.0])
        assert found.mean == 1
        assert math.isnan(found.low)
        assert found.sign == 0


def test_the_sign_is_that_of_an_interval_without_zero():
    assert [Difference(0, *bounds, 3).sign for bounds in ((0.1, 2), (-2, -0.1), (-1, 1))] == [1, -1, 0]


def test_mcnemar_is_the_binomial_test_of_the_tests_that_differ():
    first = [True] * 9 + [False] * 2 + [True] * 20 + [False] * 30
    second = [False] * 9 + [True] * 2 + [True] * 20 + [False] * 30
    found = mcnemar(first, second)
    tail = sum(math.comb(11, k) for k in (0, 1, 2)) / 2**11
    assert found == pytest.approx((9, 2, 2 * tail))
    assert mcnemar([True], [True]).p == 1


def test_seeds_of_one_task_are_one_answer():
    # Ten seeds that solve the same two tasks are no twenty answers.
    assert mcnemar([1.0, 1.0, 0.3, 0.0], [0.0, 0.9, 0.4, 0.0])[:2] == (2, 1)
    rng = np.random.default_rng(0)
    # Two equal arms whose seeds agree: a test that counts every seed finds a difference far too often.
    alarms = 0
    for _ in range(200):
        first, second = (np.repeat(rng.random(40) < 0.4, 6).reshape(40, 6).mean(1) for _ in range(2))
        alarms += mcnemar(first, second).p < 0.05
    assert alarms / 200 < 0.06


def test_values_without_a_partner_are_refused():
    for test in (over_seeds, over_tasks):
        with pytest.raises(ValueError, match="as many values as first, 1, and at least one, got 2"):
            test([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="as many values as first, 1, and at least one, got 2"):
        mcnemar([True], [True, False])
