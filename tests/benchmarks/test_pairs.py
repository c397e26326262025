import math

import numpy as np
import pytest
from scipy import stats

from benchmarks import pairs


def test_a_paired_difference_is_the_one_sample_test_of_the_differences():
    a, b = np.array([0.3, 0.5, 0.45, 0.7]), np.array([0.2, 0.45, 0.5, 0.55])
    found = pairs.paired(a, b, relative=False)
    truth = stats.ttest_1samp(a - b, 0.0)
    interval = truth.confidence_interval(0.95)
    assert found.p == pytest.approx(truth.pvalue)
    assert (found.effect, found.low, found.high) == pytest.approx(((a - b).mean(), interval.low, interval.high))


def test_a_paired_ratio_is_the_difference_of_logarithms():
    a, b = [1.0, 2.0, 3.0], [2.0, 3.0, 9.0]
    ratio = pairs.paired(a, b, relative=True)
    logs = pairs.paired(np.log(a), np.log(b), relative=False)
    assert math.log(ratio.effect) == pytest.approx(logs.effect)
    assert math.log(ratio.low) == pytest.approx(logs.low)
    assert ratio.p == pytest.approx(logs.p)


@pytest.mark.parametrize("values", [[1.0], [1.0, 2.0]])
def test_without_scatter_there_is_no_interval(values):
    found = pairs.paired(values, [2 * v for v in values], relative=True)
    assert found.effect == pytest.approx(0.5)
    assert found.low is found.high is found.p is None


def test_holm_keeps_the_order_and_never_goes_beyond_one():
    corrected = pairs.holm([0.5, 0.001, 0.9, 0.02])
    assert corrected == pytest.approx([1.0, 0.004, 1.0, 0.06])


def test_the_error_of_a_single_value_is_unknown():
    assert pairs.mean_and_error([2.0]) == (2.0, None)
    assert pairs.mean_and_error([1.0, 3.0]) == (2.0, pytest.approx(1.0))
