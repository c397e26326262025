"""One task file answered by the weights of a run, and the answer drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.arc import checkpoint, dataset
from benchmarks.arc.drawing import grid_svg
from benchmarks.arc.encode import encode
from benchmarks.arc.evaluation import SUBMITTED
from benchmarks.arc.files import write_json
from benchmarks.arc.palette import Ink
from benchmarks.arc.run import RunSpec, build_data, check_data, predictor
from benchmarks.arc.submission import submission
from benchmarks.arc.tasks import Task, load_task_file
from benchmarks.arc.vote import vote

_PAGE = Ink("#fdfdfc", "#14161a")
_CELL = 18


def predict(path: Path, folder: Path, out: Path, *, step: int | None = None, device: str = "cpu") -> dict[str, Any]:
    """Answer the tests of a task that the run was trained on, by the vote of its variants.

    Parameters
    ----------
    path : Path
        Task in the ARC JSON format; the outputs of its tests are not needed and not looked at.
    folder : Path
        Of the run.
    out : Path
        Folder for ``TASK-answer.json``, in the form of a submission, and ``TASK-answer.svg``.
    step : int, optional
        Of the checkpoint; the last one by default.
    device : str
        Where to run.

    Returns
    -------
    dict
        ``task``, the ``predictions`` of every test, and the ``files`` written.

    Raises
    ------
    ValueError
        If the file is no task, the run has no good checkpoint, or was not trained on this task's demonstrations: what
        the model knows of a task is the embedding that training gave it.
    """
    task = load_task_file(path, solved=False)
    spec = RunSpec.load(folder)
    _, files, _ = checkpoint.load_step(folder / "checkpoints", step)
    data = build_data(spec.preset, spec.extra_task_dirs)
    check_data(folder, data)
    place = _find(task, data, path)
    ready = predictor(spec, data, files["weights"], device)
    predictions = []
    for index, pair in enumerate(task.tests):
        if max(pair.input.shape) > data.side:
            raise ValueError(f"{path}: test {index} is {pair.input.shape}, the run was trained up to side {data.side}")
        ids = np.array(data.ids_of(place), dtype=np.int64)
        variants = [data.augmentations[id][1] for id in ids]
        tokens, scores = ready(np.stack([encode(v.apply(pair.input), data.side) for v in variants]), ids)
        ranking = vote(zip(tokens, variants, scores, strict=True))
        candidates = [{"grid": c.grid.tolist(), "votes": c.votes, "score": c.score} for c in ranking[:SUBMITTED]]
        predictions.append({"task": task.id, "test": index, "input": pair.input.tolist(), "candidates": candidates})
    out.mkdir(parents=True, exist_ok=True)
    paths = [out / f"{task.id}-answer.json", out / f"{task.id}-answer.svg"]
    write_json(paths[0], submission(predictions))
    paths[1].write_text(_drawing(predictions), encoding="utf-8")
    return {"task": task.id, "predictions": predictions, "files": paths}


def _find(task: Task, data: dataset.ArcData, path: Path) -> int:
    """Return the index of the trained task with these demonstrations."""
    wanted = [(pair.input.tolist(), pair.output.tolist()) for pair in task.demos if pair.output is not None]
    for index, known in enumerate(data.tasks):
        demos = [(pair.input.tolist(), pair.output.tolist()) for pair in known.demos if pair.output is not None]
        if demos == wanted:
            return index
    raise ValueError(
        f"{path}: the run was not trained on these demonstrations, so it has no embedding for this task; train with "
        "--extra-task-dirs and the folder of the file"
    )


def _drawing(predictions: list[dict[str, Any]]) -> str:
    """Draw every test's input beside its two best answers."""
    parts, top, width = [], 0, 0
    for prediction in predictions:
        left, height = 0, 0
        grids = [("input", prediction["input"])]
        grids += [(f"attempt {n}", c["grid"]) for n, c in enumerate(prediction["candidates"], 1)]
        for name, grid in grids:
            svg = grid_svg(grid, _CELL, f"{prediction['task']}, test {prediction['test'] + 1}: {name}")
            parts.append(f'<g transform="translate({left} {top + 16})">{svg}</g>')
            parts.append(f'<text x="{left}" y="{top + 11}" font-family="sans-serif" font-size="11">{name}</text>')
            left += len(grid[0]) * _CELL + 20
            height = max(height, len(grid) * _CELL + 30)
        top, width = top + height, max(width, left)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{top}" viewBox="0 0 {width} {top}">'
        f'<rect width="100%" height="100%" fill="{_PAGE.light}"/>{"".join(parts)}</svg>\n'
    )
