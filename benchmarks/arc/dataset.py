"""The samples that a model of ARC tasks is trained on, with what is held out from them.

One sample is one (input, output) pair with a puzzle id. There is one id for each task in each of its variants: the
id's embedding is all that a model is told about the task. `build` makes arrays of samples, `Batches` in its own module
draws from them.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from benchmarks.arc import augment
from benchmarks.arc.augment import Augmentation, same_up_to_symmetry
from benchmarks.arc.images import Variants
from benchmarks.arc.tasks import Grid, Pair, Task

SPLITS = ("demos", "published")


class HeldOut(NamedTuple):
    """One pair that is never trained on: ``tasks[task].tests[test]``."""

    task: int
    test: int
    input: Grid
    output: Grid


@dataclass(frozen=True)
class Split:
    """What trains and what is held out.

    Parameters
    ----------
    name : str
        ``"demos"``: the demonstrations of every task train, the tests of every task are held out.
        ``"published"``, as the recipe of the tiny recursive model: the demonstrations of every task and the tests of
        training and extra tasks train, the tests of evaluation tasks are held out.
    tasks, pairs, held_out : int
        Number of tasks, of pairs that train before augmentation, and of pairs held out.
    left_out : tuple of str
        Pairs that the rule would train on but that equal a held-out pair, as ``"40853293 test 0"``; not in ``pairs``.
    rows_left_out : int
        Augmented rows of other pairs that coincide with a held-out pair in a variant in which it is evaluated.
    """

    name: str
    tasks: int
    pairs: int
    held_out: int
    left_out: tuple[str, ...]
    rows_left_out: int

    def describe(self) -> str:
        """Return the split as a paragraph for a report."""
        rule = {
            "demos": "Trained on the demonstrations of all tasks; held out: every test of every task.",
            "published": "Trained on the demonstrations of all tasks and the tests of all but the evaluation tasks; "
            "held out: the tests of the evaluation tasks.",
        }[self.name]
        counts = f"{_count(self.tasks, 'task')}, {_count(self.pairs, 'training pair')}, {self.held_out} held out."
        pairs = f"{_count(len(self.left_out), 'pair')} equal to a held-out pair"
        if self.left_out:
            pairs += f" ({', '.join(self.left_out)})"
        rows = f"{_count(self.rows_left_out, 'augmented row')} equal to a held-out pair in one of its variants"
        return f"{rule} {counts} Left out of training: {pairs}, {rows}."


@dataclass(eq=False)
class ArcData:
    """Training arrays and held-out pairs of a list of tasks; made by `build`.

    Row ``r`` is one pair of one task in one variant. Rows are sorted by id, ids by task and then in the order of
    `augment.variants`, so the identity variant of a task has its lowest id.

    Parameters
    ----------
    inputs, labels : ndarray of uint8, shape (N, side * side)
        Tokens of the pairs after augmentation, not translated. Labels equal to `PAD` carry no loss.
    ids : ndarray of int64, shape (N,)
        Puzzle id, 0 to ``num_ids - 1``.
    group : ndarray of int64, shape (N,)
        Index of the task in ``tasks``.
    from_test : ndarray of bool, shape (N,)
    pair : ndarray of int64, shape (N,)
        Provenance: the row comes from ``tasks[group].tests[pair]`` where ``from_test``, else from ``.demos[pair]``.
    extent : ndarray of int64, shape (N, 2)
        Rows and columns of the square that the two grids take together; ``side - extent`` is their room to move.
    side : int
    tasks : list of Task
    augmentations : list of (int, Augmentation), length num_ids
        Task index and variant behind each id.
    held_out : list of HeldOut
    split : Split
    """

    inputs: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.uint8]
    ids: npt.NDArray[np.int64]
    group: npt.NDArray[np.int64]
    from_test: npt.NDArray[np.bool_]
    pair: npt.NDArray[np.int64]
    extent: npt.NDArray[np.int64]
    side: int
    tasks: list[Task]
    augmentations: list[tuple[int, Augmentation]]
    held_out: list[HeldOut]
    split: Split

    @property
    def num_ids(self) -> int:
        """Number of puzzle ids, those without a training row included."""
        return len(self.augmentations)

    @cached_property
    def sha256(self) -> str:
        """Hash of what trains and of what is held out: equal hashes and seeds mean equal samples and equal scores."""
        digest = hashlib.sha256(f"{self.side} {len(self.ids)} {self.num_ids}".encode())
        for array in (self.inputs, self.labels, self.ids, self.group):
            # In place: these may be gigabytes.
            digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
        for index, augmentation in self.augmentations:
            digest.update(f"{self.tasks[index].id} {augmentation};".encode())
        for held in self.held_out:
            digest.update(
                f"{self.tasks[held.task].id} {held.test} {held.input.tolist()} {held.output.tolist()};".encode()
            )
        return digest.hexdigest()

    @cached_property
    def _first_id(self) -> npt.NDArray[np.int64]:
        return np.searchsorted([task for task, _ in self.augmentations], np.arange(len(self.tasks) + 1))

    def ids_of(self, task: int) -> range:
        """Ids of a task, by its index; the first one is the identity variant."""
        return range(int(self._first_id[task]), int(self._first_id[task + 1]))

    def variants_of(self, held: HeldOut) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
        """Return a held-out pair as it is evaluated: once under every id of its task.

        Returns
        -------
        inputs, labels : ndarray of uint8, shape (V, side * side)
        ids : ndarray of int64, shape (V,)
            ``augmentations[id][1].invert`` leads back from a predicted grid.
        """
        ids = np.array(self.ids_of(held.task), dtype=np.int64)
        shown = Variants([self.augmentations[id][1] for id in ids], self.side)
        return shown.encode(held.input), shown.encode(held.output), ids


def build(tasks: Sequence[Task], *, side: int | None, variants: int, seed: int, split: str = "demos") -> ArcData:
    """Make the training arrays of tasks and set the held-out pairs apart.

    Parameters
    ----------
    tasks : sequence of Task
    side : int or None
        Side of the square that the model sees; None for the largest side of any grid of the tasks.
    variants : int
        Variants wanted for each task, the identity included; see `augment.variants`.
    seed : int
        Of the choice of variants.
    split : str
        ``"demos"`` or ``"published"``, see `Split`.

    Raises
    ------
    ValueError
        No tasks, an id twice, a grid larger than ``side``, a test without output, nothing left to train on or to hold
        out.

    Notes
    -----
    No held-out output reaches the arrays, in three steps. Rows are made from the pairs that the split trains on, never
    from others. Of those pairs, one equal to a held-out pair of whatever task is left out in every variant. In
    ARC-AGI-1 that is the test of training task 40853293, which is also the test of evaluation task 070dd51e: the
    published recipe trains on one of its 419 answers. Last, a row equal to a held-out pair in one of the variants in
    which that is evaluated is left out: some demonstrations are recoloured or turned copies of a test.

    Memory is ``2 side^2`` bytes a row, and little more while they are made.
    """
    tasks = list(tasks)
    side = _check(tasks, side, split)
    held_out = [
        HeldOut(index, test, pair.input, _solved(pair, f"{task.id} test {test}"))
        for index, task in enumerate(tasks)
        if split == "demos" or task.split == "evaluation"
        for test, pair in enumerate(task.tests)
    ]
    if not held_out:
        raise ValueError("tasks: split 'published' holds out the tests of evaluation tasks, and there are none")
    chosen = [augment.variants(task, variants, seed) for task in tasks]
    sources, left_out = _training_pairs(tasks, held_out)
    evaluated = _Evaluated(held_out, chosen, sources, side)

    most = sum(len(several) * len(pairs) for several, pairs in zip(chosen, sources, strict=True))
    inputs, labels = (np.empty((most, side**2), dtype=np.uint8) for _ in range(2))
    # Of every row: id, task, whether it comes from a test, pair, rows, columns.
    provenance = np.empty((most, 6), dtype=np.int64)
    filled = first_id = 0
    for index, (several, pairs) in enumerate(zip(chosen, sources, strict=True)):
        images, count = Variants(several, side), len(several) * len(pairs)
        # Rows of one variant stand together, so pairs are the inner dimension.
        block = slice(filled, filled + count)
        shape = len(several), len(pairs)
        rows = [array[block].reshape(*shape, array.shape[1]) for array in (inputs, labels, provenance)]
        keep = np.ones(shape, dtype=bool)
        for place, source in enumerate(pairs):
            rows[0][:, place], rows[1][:, place] = images.encode(source.input), images.encode(source.output)
            rows[2][:, place, 0] = first_id + np.arange(len(several))
            rows[2][:, place, 1:4] = index, source.from_test, source.pair
            rows[2][:, place, 4:] = images.extent(source.input, source.output)
            keep[:, place] = ~evaluated.has(source, rows[0][:, place], rows[1][:, place])
        if not keep.all():
            stay = filled + np.flatnonzero(keep)
            for array in (inputs, labels, provenance):
                array[filled : filled + len(stay)] = array[stay]
        filled += int(keep.sum())
        first_id += len(several)
    if not filled:
        raise ValueError("tasks: every pair to train on equals a held-out pair, so nothing is left")
    ids, group, from_test, pair, height, width = provenance[:filled].T.copy()
    return ArcData(
        inputs=inputs[:filled],
        labels=labels[:filled],
        ids=ids,
        group=group,
        from_test=from_test.astype(bool),
        pair=pair,
        extent=np.stack([height, width], axis=1),
        side=side,
        tasks=tasks,
        augmentations=[(index, variant) for index, several in enumerate(chosen) for variant in several],
        held_out=held_out,
        split=Split(split, len(tasks), sum(map(len, sources)), len(held_out), left_out, most - filled),
    )


def _check(tasks: list[Task], side: int | None, split: str) -> int:
    """Check the arguments of `build` and return the side."""
    if split not in SPLITS:
        raise ValueError(f"split: expected one of {', '.join(SPLITS)}, got {split!r}")
    if not tasks:
        raise ValueError("tasks: expected at least one task, got none")
    seen: set[str] = set()
    for task in tasks:
        if task.id in seen:
            raise ValueError(f"tasks: the id {task.id} occurs twice")
        seen.add(task.id)
    largest = max(tasks, key=lambda task: task.max_side)
    if side is not None and side < largest.max_side:
        raise ValueError(f"side: task {largest.id} has a grid of side {largest.max_side}, got side {side}")
    return largest.max_side if side is None else side


def _solved(pair: Pair, name: str) -> Grid:
    if pair.output is None:
        raise ValueError(f"tasks: {name} has no output")
    return pair.output


class _Source(NamedTuple):
    from_test: bool
    pair: int
    input: Grid
    output: Grid


def _training_pairs(tasks: list[Task], held_out: list[HeldOut]) -> tuple[list[list[_Source]], tuple[str, ...]]:
    """Return the pairs that train, task by task, with the names of those left out because they equal a held-out one."""
    held_tasks = {held.task for held in held_out}
    held_pairs = {_key(held.input, held.output) for held in held_out}
    sources: list[list[_Source]] = []
    left_out = []
    for index, task in enumerate(tasks):
        sources.append([])
        for from_test, pairs in ((False, task.demos), (True, () if index in held_tasks else task.tests)):
            for position, pair in enumerate(pairs):
                name = f"{task.id} {'test' if from_test else 'demonstration'} {position}"
                output = _solved(pair, name)
                if _key(pair.input, output) in held_pairs:
                    left_out.append(name)
                else:
                    sources[-1].append(_Source(from_test, position, pair.input, output))
    return sources, tuple(left_out)


class _Evaluated:
    """The rows that evaluation feeds: each held-out pair in each variant of its task.

    Only a pair that is a held-out one but for a symmetry can have a row among them, so no others are looked at.
    """

    def __init__(
        self, held_out: list[HeldOut], chosen: list[list[Augmentation]], sources: list[list[_Source]], side: int
    ) -> None:
        alike = {same_up_to_symmetry(held.input, held.output) for held in held_out}
        self.suspects = {
            symmetry
            for pairs in sources
            for pair in pairs
            if (symmetry := same_up_to_symmetry(pair.input, pair.output)) in alike
        }
        self.keys: set[bytes] = set()
        for held in held_out:
            if same_up_to_symmetry(held.input, held.output) in self.suspects:
                images = Variants(chosen[held.task], side)
                self.keys.update(map(_key, images.encode(held.input), images.encode(held.output)))

    def has(
        self, source: _Source, inputs: npt.NDArray[np.uint8], labels: npt.NDArray[np.uint8]
    ) -> npt.NDArray[np.bool_]:
        """Say of the images of a pair, (V, side * side), which are fed in evaluation, shape (V,)."""
        if same_up_to_symmetry(source.input, source.output) not in self.suspects:
            return np.zeros(len(inputs), dtype=bool)
        return np.array([_key(*row) in self.keys for row in zip(inputs, labels, strict=True)])


def _key(source: npt.NDArray[np.uint8], target: npt.NDArray[np.uint8]) -> bytes:
    """Hash of a pair's content, equal only for equal pairs."""
    digest = hashlib.blake2b(digest_size=16)
    for array in (source, target):
        digest.update(bytes(array.shape) if array.ndim == 2 else b"")
        digest.update(array.tobytes())
    return digest.digest()


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
