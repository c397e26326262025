"""Answers in the form that ARC Prize takes: two attempts for every test of every task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

# What stands where a model has no second answer, or none: the rules ask for two grids.
_NOTHING = [[0]]


def submission(predictions: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, list[list[int]]]]]:
    """Return ``{task: [{"attempt_1": grid, "attempt_2": grid}, one a test]}``.

    Parameters
    ----------
    predictions : sequence of dict
        As `evaluation.evaluate` returns them: ``task``, ``test`` and the best ``candidates``. With one candidate only
        both attempts are that one; without any they are a single black cell.

    Raises
    ------
    ValueError
        If a test of a task is missing.
    """
    by_task: dict[str, dict[int, dict[str, list[list[int]]]]] = {}
    for prediction in predictions:
        grids = [candidate["grid"] for candidate in prediction["candidates"]] or [_NOTHING]
        attempts = {"attempt_1": grids[0], "attempt_2": grids[min(1, len(grids) - 1)]}
        by_task.setdefault(prediction["task"], {})[prediction["test"]] = attempts
    for task, tests in by_task.items():
        if sorted(tests) != list(range(len(tests))):
            raise ValueError(f"predictions: task {task} has tests {sorted(tests)}, expected 0 to {max(tests)}")
    return {task: [tests[index] for index in sorted(tests)] for task, tests in sorted(by_task.items())}
