"""Batches by grid side: tasks of small grids are trained on a corner of the square, at a fraction of the cost.

A bucket is a side. A task belongs to the smallest bucket that holds all the grids it is trained on, in whatever
variant, and its samples are the top-left ``bucket x bucket`` tokens of the square. As in `encode`, the end-of-grid mark
is there where it is still inside. The tokens keep the positions that they have in the whole square, so that the same
weights serve every bucket.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.arc.dataset import ArcData
from benchmarks.arc.encode import FIRST_COLOUR, PAD

_GOLDEN = (5**0.5 - 1) / 2

Sides = npt.NDArray[np.int64]


def task_sides(data: ArcData, buckets: Sequence[int]) -> Sides:
    """Return the bucket of every task, by its training rows alone; one without any is in the first.

    Parameters
    ----------
    data : ArcData
    buckets : sequence of int
        Sides, rising.

    Raises
    ------
    ValueError
        If a grid of any task, held out or not, is larger than the last bucket.
    """
    largest = max(data.tasks, key=lambda task: task.max_side)
    if buckets[-1] < largest.max_side:
        raise ValueError(
            f"buckets: task {largest.id} has a grid of side {largest.max_side}, got {buckets[-1]} as the last"
        )
    needed = np.zeros(len(data.tasks), dtype=np.int64)
    np.maximum.at(needed, data.group, data.extent.max(1))
    return np.array(buckets)[np.searchsorted(buckets, needed)]


def id_sides(data: ArcData, buckets: Sequence[int]) -> Sides | None:
    """Return the bucket of every puzzle id, (num_ids,), or None where there are no buckets."""
    if not buckets:
        return None
    return task_sides(data, buckets)[[task for task, _ in data.augmentations]]


def divide(data: ArcData, buckets: Sequence[int]) -> dict[int, ArcData]:
    """Return the rows of every bucket as data of that side, in rising order; a bucket without rows is dropped.

    Puzzle ids, tasks and what is held out stay those of the whole. Without buckets there is one part, the data itself.
    Memory is ``2 bucket^2`` bytes a row.
    """
    if not buckets:
        return {data.side: data}
    sides = task_sides(data, buckets)[data.group]
    parts = {}
    for side in np.unique(sides).tolist():
        rows = np.flatnonzero(sides == side)
        own = {name: getattr(data, name)[rows] for name in ("ids", "group", "from_test", "pair", "extent")}
        grids = {name: _corner(getattr(data, name), rows, data.side, side) for name in ("inputs", "labels")}
        parts[side] = dataclasses.replace(data, side=side, **own, **grids)
    return parts


def holding(inputs: npt.NDArray[np.uint8], buckets: Sequence[int]) -> Sides:
    """Return the smallest bucket that holds the grid in the corner of every row of tokens (N, side * side)."""
    whole = round(inputs.shape[1] ** 0.5)
    squares = inputs.reshape(-1, whole, whole) >= FIRST_COLOUR
    place = np.arange(1, whole + 1)
    needed = np.maximum((squares.any(2) * place).max(1), (squares.any(1) * place).max(1))
    return np.array(buckets)[np.searchsorted(buckets, needed)]


def crop(tokens: npt.NDArray[Any], side: int) -> npt.NDArray[Any]:
    """Return the corner of every square of tokens, (N, whole * whole) to (N, side * side)."""
    return _corner(tokens, slice(None), round(tokens.shape[1] ** 0.5), side)


def widen(tokens: npt.NDArray[np.uint8], whole: int) -> npt.NDArray[np.uint8]:
    """Put every square of tokens, (N, side * side), into the corner of a whole one; what is outside is `PAD`."""
    side = round(tokens.shape[1] ** 0.5)
    square = np.full((len(tokens), whole, whole), PAD, dtype=np.uint8)
    square[:, :side, :side] = tokens.reshape(-1, side, side)
    return square.reshape(len(tokens), -1)


def pick(shares: Sequence[float], seed: int, step: int) -> int:
    """Return the index of the bucket that a step works on.

    Parameters
    ----------
    shares : sequence of float
        Part of the steps that each bucket should get, one in sum.
    seed, step : int
        The choice depends on nothing else: no state to save, and the same in all processes.

    Notes
    -----
    Multiples of the golden ratio, modulo one, spread so evenly over the unit interval that after N steps every bucket
    is within O(log N) steps of its share; independent draws would be off by O(sqrt N).
    """
    place = (np.random.default_rng(seed).random() + step * _GOLDEN) % 1.0
    return min(int(np.searchsorted(np.cumsum(shares), place, side="right")), len(shares) - 1)


def _corner(tokens: npt.NDArray[Any], rows: slice | npt.NDArray[np.int64], whole: int, side: int) -> npt.NDArray[Any]:
    return tokens.reshape(-1, whole, whole)[rows, :side, :side].reshape(-1, side * side)
