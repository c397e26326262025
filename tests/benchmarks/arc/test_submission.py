import pytest

from benchmarks.arc.submission import submission


def prediction(task, test, *grids):
    return {"task": task, "test": test, "candidates": [{"grid": grid, "votes": 1, "score": 0.5} for grid in grids]}


def test_every_test_has_two_attempts():
    answers = submission([prediction("b", 1), prediction("b", 0, [[1]], [[2]], [[3]]), prediction("a", 0, [[4]])])
    assert answers == {
        "a": [{"attempt_1": [[4]], "attempt_2": [[4]]}],
        "b": [{"attempt_1": [[1]], "attempt_2": [[2]]}, {"attempt_1": [[0]], "attempt_2": [[0]]}],
    }


def test_a_missing_test_is_named():
    with pytest.raises(ValueError, match=r"task a has tests \[1\], expected 0 to 1"):
        submission([prediction("a", 1, [[1]])])
