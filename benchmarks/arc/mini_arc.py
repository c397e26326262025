"""Mini-ARC: 149 tasks whose every grid is 5 x 5 (Kim, Phunyaphibarn, Ahn and Kim 2022, Apache-2.0).

The tasks travel as files inside the `arcle` package, which is located and never imported: it needs a game engine.
"""

import hashlib
import importlib.util
import json
from pathlib import Path
from typing import Any

from benchmarks.arc.tasks import Task, TaskError, parse_task
from benchmarks.extras import MissingExtra

MINI_ARC_SHA256 = "e234796c509715439f9f02b8b1714a4b74786235ba4d5d24c7bdbd79701ef11a"
_FOLDER = Path("arcs", "Mini-ARC", "data", "MiniARC")


def load_mini_arc() -> list[Task]:
    """Read the 149 tasks of Mini-ARC from the files of `arcle`.

    Returns
    -------
    list of Task
        By id, which is the last part of a file's name; the split is ``"extra"``.

    Raises
    ------
    MissingExtra
        `arcle` is not installed.
    TaskError
        The files' common SHA-256 is not ``MINI_ARC_SHA256``: results would not be comparable.

    Notes
    -----
    Cells stand in the files as integers, as strings of a digit and as null where a black cell was left untouched; all
    three become integers.
    """
    spec = importlib.util.find_spec("arcle")
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtra("arcle: not installed; pip install --no-deps arcle", name="arcle")
    return read_mini_arc(Path(spec.submodule_search_locations[0]) / _FOLDER)


def read_mini_arc(folder: Path) -> list[Task]:
    """Read the tasks from a folder that holds the files; see `load_mini_arc`."""
    # By id, because file systems sort what is not ASCII each in its own way.
    contents = {path.stem.rpartition("_")[2]: path.read_bytes() for path in folder.glob("*.json")}
    digest = hashlib.sha256()
    for id in sorted(contents):
        digest.update(id.encode() + b"\0" + contents[id] + b"\0")
    if digest.hexdigest() != MINI_ARC_SHA256:
        raise TaskError(f"{folder}: expected SHA-256 {MINI_ARC_SHA256}, got {digest.hexdigest()}; reinstall arcle")
    return [parse_task(_repaired(json.loads(contents[id])), id, "extra", str(folder)) for id in sorted(contents)]


def _repaired(task: dict[str, Any]) -> dict[str, Any]:
    return {
        part: [{name: _cells(pair[name]) for name in ("input", "output")} for pair in task[part]]
        for part in ("train", "test")
    }


def _cells(grid: list[list[int | str | None]]) -> list[list[int]]:
    return [[int(cell or 0) for cell in row] for row in grid]
