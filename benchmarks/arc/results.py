"""What a comparison has left on disk, read and checked; every fault is a `ValueError` that names the file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

CURVES = ("loss", "token_accuracy", "exact", "gradient_norm")
SCORES = ("token_accuracy", "exact")
ATTEMPTS = ("pass@1", "pass@2")

_COMPARISON = "comparison.json"
_KEYS = ("preset", "config", "split", "data_sha256", "git", "packages", "machine", "copy", "arms", "seeds", "runs")
_RUN_KEYS = ("arm", "seed", "steps", "complete", "seconds", "peak_memory_mib", "parameters", "mixing_parameters")
_COMPLETE_KEYS = ("segment_gflops", "metrics", "evaluation")
_PREDICTION_KEYS = ("task", "test", "input", "truth", "candidates")

Metrics = dict[str, npt.NDArray[np.float64]]


def read_comparison(folder: Path) -> dict[str, Any]:
    """Read ``comparison.json`` of a folder.

    Raises
    ------
    ValueError
        If it is missing, is no JSON, lacks a key, or lists a run twice or one that was not asked for.
    """
    path = folder / _COMPARISON
    comparison = _object(_read(path), str(path), _KEYS)
    for part in ("held_out", "train"):
        where = f"{path}: copy: {part}"
        scores = _object(comparison["copy"].get(part), where, ())
        for name in ("count", *SCORES):
            _number(scores, name, where)
    seen = set()
    for index, run in enumerate(comparison["runs"]):
        where = f"{path}: run {index}"
        _object(run, where, _RUN_KEYS)
        if run["complete"]:
            _object(run, where, _COMPLETE_KEYS)
        key = run["arm"], run["seed"]
        if run["arm"] not in comparison["arms"] or run["seed"] not in comparison["seeds"]:
            raise ValueError(f"{where}: arm {key[0]!r} with seed {key[1]} is not among the arms and seeds")
        if key in seen:
            raise ValueError(f"{where}: arm {key[0]!r} with seed {key[1]} is listed twice")
        seen.add(key)
    return comparison


def complete_runs(comparison: dict[str, Any], arm: str) -> list[dict[str, Any]]:
    """Return the runs of an arm that reached their last step, in the order of the seeds."""
    runs = [run for run in comparison["runs"] if run["arm"] == arm and run["complete"]]
    return sorted(runs, key=lambda run: comparison["seeds"].index(run["seed"]))


def missing_runs(comparison: dict[str, Any], arm: str) -> list[str]:
    """Return the runs of an arm that were asked for and do not count, each with the reason."""
    found = {run["seed"]: run for run in comparison["runs"] if run["arm"] == arm}
    reasons = {
        seed: found[seed].get("fault") or f"stopped at step {found[seed]['steps']}" if seed in found else "not run"
        for seed in comparison["seeds"]
        if seed not in found or not found[seed]["complete"]
    }
    return [f"{arm} seed {seed} ({reason})" for seed, reason in reasons.items()]


def read_metrics(folder: Path, run: dict[str, Any]) -> Metrics:
    """Read the training lines of a complete run's log.

    Returns
    -------
    dict of ndarray, each of shape (steps,)
        ``step`` and the `CURVES`, one entry a step.

    Raises
    ------
    ValueError
        If the log is missing, a line is malformed or cut off (its number is named), the steps do not rise, or the last
        one is not the run's.
    """
    path = folder / run["metrics"]
    columns: dict[str, list[float]] = {name: [] for name in ("step", *CURVES)}
    last = 0.0
    for number, line in enumerate(_text(path).splitlines(), 1):
        where = f"{path}, line {number}"
        entry = _object(_parse(line, where), where, ("kind", "step"))
        if entry["kind"] in ("evaluation", "probe"):
            continue
        if entry["kind"] != "train":
            raise ValueError(f"{where}: kind: expected train, evaluation or probe, got {entry['kind']!r}")
        values = {name: _number(entry, name, where) for name in columns}
        if values["step"] <= last:
            raise ValueError(f"{where}: step {values['step']:g} follows step {last:g}")
        last = values["step"]
        for name, column in columns.items():
            column.append(values[name])
    if last != run["steps"]:
        raise ValueError(f"{path}: the training lines end at step {last:g}, expected step {run['steps']}")
    return {name: np.array(column) for name, column in columns.items()}


def read_probes(folder: Path, run: dict[str, Any]) -> list[dict[str, Any]]:
    """Read the looks at the mixers along the recursion from a complete run's log, oldest first; there may be none."""
    path = folder / run["metrics"]
    lines = (_parse(line, f"{path}, line {number}") for number, line in enumerate(_text(path).splitlines(), 1))
    return [entry for entry in lines if entry.get("kind") == "probe"]


def read_evaluation(folder: Path, run: dict[str, Any]) -> dict[str, Any]:
    """Read the evaluation of a complete run.

    Raises
    ------
    ValueError
        If the file is missing, is no JSON, or a score or a part of a prediction is missing or malformed.
    """
    path = folder / run["evaluation"]
    evaluation = _object(_read(path), str(path), ("variants", "held_out", "train", "predictions"))
    for part, names in (("held_out", SCORES + ATTEMPTS), ("train", SCORES)):
        where = f"{path}: {part}"
        scores = _object(evaluation[part], where, ())
        for name in names:
            _number(scores, name, where)
            if scores.get(f"{name}_se") is not None:
                _number(scores, f"{name}_se", where)
    for index, prediction in enumerate(evaluation["predictions"]):
        where = f"{path}: prediction {index}"
        _object(prediction, where, _PREDICTION_KEYS)
        for name in ("input", "truth"):
            _check_grid(prediction[name], f"{where}: {name}")
        for rank, candidate in enumerate(prediction["candidates"]):
            _check_grid(_object(candidate, where, ("grid", "votes"))["grid"], f"{where}: candidate {rank}")
    return evaluation


def _read(path: Path) -> Any:
    return _parse(_text(path), str(path))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from error


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"{where}: malformed or cut off, not valid JSON ({error})") from error


def _object(value: Any, where: str, keys: Sequence[str]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{where}: expected an object, got {type(value).__name__}")
    absent = [key for key in keys if key not in value]
    if absent:
        raise ValueError(f"{where}: {', '.join(absent)} missing")
    return value


def _number(entry: dict[str, Any], name: str, where: str) -> float:
    value = entry.get(name)
    # To isinstance a bool is an int.
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{where}: {name}: expected a number, got {value!r}")
    return float(value)


def _check_grid(grid: Any, where: str) -> None:
    if not isinstance(grid, list) or not all(isinstance(row, list) and row for row in grid) or not grid:
        raise ValueError(f"{where}: expected a grid, a list of rows of cells")
    if any(len(row) != len(grid[0]) for row in grid):
        raise ValueError(f"{where}: its rows differ in length")
    strange = next((cell for row in grid for cell in row if type(cell) is not int or not 0 <= cell <= 9), None)
    if strange is not None:
        raise ValueError(f"{where}: expected colours 0 to 9, got {strange!r}")
