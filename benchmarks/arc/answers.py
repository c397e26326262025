"""What a run answered: an evaluation, its votes and a submission for every evaluated step, in the run's folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.arc import processes
from benchmarks.arc.dataset import ArcData
from benchmarks.arc.evaluation import Predictor, evaluate, pooled_attempts
from benchmarks.arc.files import write_json
from benchmarks.arc.submission import submission


def path(folder: Path, step: int) -> Path:
    """Return where the evaluation of a step is."""
    return folder / f"evaluation-{step:08d}.json"


def are_whole(folder: Path, step: int) -> bool:
    """Return whether the evaluation of a step is there and can be read."""
    try:
        json.loads(path(folder, step).read_text())
    except (OSError, ValueError):
        return False
    return True


def write(ready: Predictor, data: ArcData, folder: Path, step: int) -> dict[str, Any]:
    """Evaluate weights on the held-out pairs and write what they answer; all processes enter, the first one writes."""
    result = evaluate(ready, data, step)
    votes, answers = result.pop("votes"), submission(result["predictions"])

    def save() -> None:
        write_json(folder / f"votes-{step:08d}.json", votes)
        write_json(path(folder, step), {**result, "pooled": read_pooled(folder, step)})
        write_json(folder / f"submission-{step:08d}.json", answers)

    processes.on_first(save)
    return result


def read_pooled(folder: Path, step: int) -> dict[str, Any]:
    """Return pass@k of the votes of all evaluations up to a step, and how many they are."""
    paths = sorted(folder.glob("votes-????????.json"))
    return pooled_attempts([json.loads(p.read_text()) for p in paths if int(p.stem.partition("-")[2]) <= step])
