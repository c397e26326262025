"""From predictions in many variants of a test to ranked answers, and from answers to scores.

Votes are those of one call and are never carried from one checkpoint to the next unless `pool` is asked to. The
published evaluator does carry them by default, which silently scores an ensemble of checkpoints.
"""

import hashlib
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from benchmarks.arc.augment import Augmentation
from benchmarks.arc.encode import PAD, decode
from benchmarks.arc.tasks import Grid


class Candidate(NamedTuple):
    """One proposed answer: the grid, how many variants voted for it, and their mean score."""

    grid: Grid
    votes: int
    score: float


class Ballot(NamedTuple):
    """A candidate without its grid: a name that equal grids share, votes, mean score, whether it is the truth."""

    name: str
    votes: int
    score: float
    right: bool


class Score(NamedTuple):
    """The mean of n values with its standard error, which is NaN for n = 1."""

    mean: float
    standard_error: float
    n: int


def vote(predictions: Iterable[tuple[npt.ArrayLike, Augmentation, float]]) -> list[Candidate]:
    """Rank the answers to one test input by the variants that agree on them.

    Parameters
    ----------
    predictions : iterable of (prediction, augmentation, score)
        For each variant what was predicted for the augmented input, either tokens of shape (side * side,) or a grid
        (h, w); the augmentation, which is undone; and how sure the model is, such as its halting probability.

    Returns
    -------
    list of Candidate
        The distinct grids, best first: by votes, then by mean score, then by shape and cells so that the order never
        depends on that of the predictions. Tokens without a grid in them (see `decode`) are no vote, so the list may
        be empty.
    """
    scores: dict[tuple[tuple[int, ...], bytes], list[float]] = {}
    for prediction, augmentation, score in predictions:
        if not math.isfinite(score):
            raise ValueError(f"predictions: expected a finite score, got {score}")
        grid = _as_grid(np.asarray(prediction))
        if grid is not None:
            original = augmentation.invert(grid)
            scores.setdefault((original.shape, original.tobytes()), []).append(float(score))
    # fsum is exact up to one rounding, so the mean does not depend on the order either.
    ranked = sorted((-len(values), -math.fsum(values) / len(values), *key) for key, values in scores.items())
    return [
        Candidate(np.frombuffer(cells, dtype=np.uint8).reshape(shape), -votes, -score)
        for votes, score, shape, cells in ranked
    ]


def ballot(candidates: Sequence[Candidate], truth: Grid) -> list[Ballot]:
    """Return a ranking without its grids, each candidate with a name that equal grids share.

    A thousand variants of four hundred tests may give as many grids; their names are enough to pool votes.
    """
    return [Ballot(_name(c.grid), c.votes, c.score, np.array_equal(c.grid, truth)) for c in candidates]


def pool(ballots: Iterable[Sequence[Ballot]]) -> list[Ballot]:
    """Add up the votes for one test of several checkpoints, as the published evaluator does, and rank them anew."""
    merged: dict[str, Ballot] = {}
    for ballot in ballots:
        for entry in ballot:
            before = merged.get(entry.name)
            if before is not None:
                votes = before.votes + entry.votes
                score = (before.votes * before.score + entry.votes * entry.score) / votes
                entry = Ballot(entry.name, votes, score, entry.right)
            merged[entry.name] = entry
    return sorted(merged.values(), key=lambda entry: (-entry.votes, -entry.score, entry.name))


def pass_at(ballots: Sequence[Sequence[Ballot]], tasks: Sequence[int | str], k: int) -> Score:
    """Return the mean over tasks of the fraction of a task's tests that are solved within ``k`` candidates.

    This is how ARC is scored: a task with two tests, one of them solved, counts one half.

    Parameters
    ----------
    ballots : sequence, one entry a test
        Ranked, from `ballot` or `pool`.
    tasks : sequence, one entry a test
        Which task the test belongs to.
    k : int
        Attempts allowed.
    """
    if k < 1:
        raise ValueError(f"k: expected at least 1, got {k}")
    return _mean_over_tasks([any(entry.right for entry in ballot[:k]) for ballot in ballots], tasks)


def clustered(values: Sequence[float], tasks: Sequence[int | str]) -> Score:
    """Return the mean of values with a standard error that holds when values of one task hang together.

    The error is that of the mean of the tasks' sums over the mean of their sizes, linearised.
    """
    if not len(values) or len(values) != len(tasks):
        raise ValueError(f"tasks: expected one entry for each of {len(values)} values, got {len(tasks)}")
    _, place = np.unique(np.asarray(tasks), return_inverse=True)
    array = np.asarray(values, dtype=np.float64)
    mean, number = float(array.mean()), int(place.max()) + 1
    residuals = np.bincount(place, weights=array - mean)
    error = math.sqrt(number / (number - 1) * float(residuals @ residuals)) / len(array) if number > 1 else math.nan
    return Score(mean, error, len(array))


def mean_score(values: Sequence[float]) -> Score:
    """Return the mean of independent values with its standard error, ``s / sqrt(n)`` with s over ``n - 1``."""
    if not values:
        raise ValueError("values: expected at least one, got none")
    n = len(values)
    return Score(float(np.mean(values)), float(np.std(values, ddof=1) / math.sqrt(n)) if n > 1 else math.nan, n)


def token_accuracy(predicted: npt.NDArray[np.integer], labels: npt.NDArray[np.integer]) -> npt.NDArray[np.float64]:
    """Return the fraction of labelled tokens that are right, row by row.

    Parameters
    ----------
    predicted, labels : ndarray of int, shape (N, L)
        Positions whose label is `PAD` do not count, as they do not in the loss.

    Returns
    -------
    ndarray of float64, shape (N,)
        Exactly 1 where, and only where, all labelled tokens are right.
    """
    labelled = labels != PAD
    return ((predicted == labels) & labelled).sum(axis=1) / labelled.sum(axis=1)


def _as_grid(prediction: npt.NDArray[np.integer]) -> Grid | None:
    if prediction.ndim == 1:
        return decode(prediction, math.isqrt(prediction.size))
    if prediction.ndim == 2:
        return prediction.astype(np.uint8)
    raise ValueError(f"predictions: expected tokens (side * side,) or a grid (h, w), got shape {prediction.shape}")


def _mean_over_tasks(solved: Sequence[bool], tasks: Sequence[int | str]) -> Score:
    if len(tasks) != len(solved):
        raise ValueError(f"tasks: expected one entry for each of {len(solved)} tests, got {len(tasks)}")
    by_task: dict[int | str, list[bool]] = {}
    for task, hit in zip(tasks, solved, strict=True):
        by_task.setdefault(task, []).append(hit)
    return mean_score([sum(hits) / len(hits) for hits in by_task.values()])


def _name(grid: Grid) -> str:
    return hashlib.blake2b(bytes(grid.shape) + grid.tobytes(), digest_size=8).hexdigest()
