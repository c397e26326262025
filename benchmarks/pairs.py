"""Statistics over seeds: means with standard errors, paired comparisons, corrected p-values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats


def mean_and_error(values: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean and its standard error, None for a single value."""
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else None
    return float(np.mean(values)), error


@dataclass(frozen=True)
class Paired:
    """A paired comparison of two arms over the same seeds.

    Attributes
    ----------
    effect, low, high : float
        Mean and 95 % confidence interval (Student's t): of the difference of the values, or of their ratio (a
        geometric mean) where relative.
    p : float or None
        Two-sided paired t-test; None where it says nothing (one pair, or no scatter).
    pairs : int
        Number of seeds.
    """

    effect: float
    low: float | None
    high: float | None
    p: float | None
    pairs: int


def paired(values: Sequence[float], others: Sequence[float], relative: bool) -> Paired:
    """Compare values with others, pair by pair.

    Parameters
    ----------
    values, others : sequence of float
        One a seed, in the same order; positive where relative.
    relative : bool
        Compare ratios ``values / others`` instead of differences.

    Examples
    --------
    >>> result = paired([1.0, 2.0, 4.0], [2.0, 4.0, 8.0], relative=True)
    >>> round(result.effect, 9), result.p is None
    (0.5, True)
    """
    a, b = np.asarray(values, float), np.asarray(others, float)
    differences = np.log(a) - np.log(b) if relative else a - b
    back = math.exp if relative else float
    mean, count = float(differences.mean()), len(differences)
    spread = float(differences.std(ddof=1)) if count > 1 else 0.0
    # Equal differences up to round-off carry no information on their scatter.
    if spread <= 1e-12 * max(1.0, abs(mean)):
        return Paired(back(mean), None, None, None, count)
    error = spread / math.sqrt(count)
    half = float(stats.t.ppf(0.975, count - 1)) * error
    p = float(2 * stats.t.sf(abs(mean) / error, count - 1))
    return Paired(back(mean), back(mean - half), back(mean + half), p, count)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Return the p-values corrected for their number by Holm's method; None stays None and does not count.

    Examples
    --------
    >>> holm([0.01, None, 0.04, 0.03])
    [0.03, None, 0.06, 0.06]
    """
    order = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, i) in enumerate(order):
        largest = max(largest, min(1.0, p * (len(order) - rank)))
        corrected[i] = largest
    return corrected
