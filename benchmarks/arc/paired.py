"""Paired tests: differences over seeds, over tasks, and between right and wrong answers to the same tests."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import stats

CONFIDENCE = 0.95
_RESAMPLES = 10_000


class Difference(NamedTuple):
    """A mean difference with the bounds of its 95 % confidence interval, NaN where there is none, and its pairs."""

    mean: float
    low: float
    high: float
    n: int

    @property
    def sign(self) -> int:
        """1 or -1 where the interval lies on one side of zero, else 0."""
        return (self.low > 0) - (self.high < 0)


def over_seeds(first: Sequence[float], second: Sequence[float]) -> Difference:
    """Return ``mean(first - second)`` over paired seeds, with Student's interval.

    Parameters
    ----------
    first, second : sequence of float
        One value a seed, in the same order.

    Examples
    --------
    >>> over_seeds([1.0, 2.0, 3.0], [0.0, 1.0, 2.0])
    Difference(mean=1.0, low=1.0, high=1.0, n=3)
    """
    differences = _paired(first, second)
    n, mean = len(differences), float(differences.mean())
    if n == 1:
        return Difference(mean, math.nan, math.nan, 1)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1) * differences.std(ddof=1) / math.sqrt(n))
    return Difference(mean, mean - half, mean + half, n)


def over_tasks(first: Sequence[float], second: Sequence[float], seed: int = 0) -> Difference:
    """Return ``mean(first - second)`` over paired tasks, with the percentiles of a bootstrap over tasks.

    Parameters
    ----------
    first, second : sequence of float
        One value a task, averaged over its tests and over the seeds: tasks, not tests, are independent.
    seed : int
        Of the resampling.
    """
    differences = _paired(first, second)
    n, mean = len(differences), float(differences.mean())
    if n == 1:
        return Difference(mean, math.nan, math.nan, 1)
    picks = np.random.default_rng(seed).integers(n, size=(_RESAMPLES, n))
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(differences[picks].mean(1), [tail, 1 - tail])
    return Difference(mean, float(low), float(high), n)


class McNemar(NamedTuple):
    """Tasks that the first solved better, that the second solved better, and the two-sided exact p-value."""

    only_first: int
    only_second: int
    p: float


def mcnemar(first: Sequence[float], second: Sequence[float]) -> McNemar:
    """Compare the answers to the same tasks by the exact McNemar test.

    Parameters
    ----------
    first, second : sequence of float
        Solved or not, one value a task. Where there are several tests or seeds, the share of them: answers to one task
        are not independent, so that a task counts once, for the arm with the larger share (a sign test).

    Examples
    --------
    >>> mcnemar([True] * 5 + [False], [False] * 5 + [False])
    McNemar(only_first=5, only_second=0, p=0.0625)
    """
    differences = _paired(first, second)
    only_first, only_second = int((differences > 0).sum()), int((differences < 0).sum())
    together = only_first + only_second
    p = float(stats.binomtest(only_first, together).pvalue) if together else 1.0
    return McNemar(only_first, only_second, p)


def _paired(first: Sequence[float], second: Sequence[float]) -> npt.NDArray[np.float64]:
    if not len(first) or len(first) != len(second):
        raise ValueError(f"second: expected as many values as first, {len(first)}, and at least one, got {len(second)}")
    return np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
