"""The results that are kept."""

import json
from pathlib import Path

import pytest

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


@pytest.mark.parametrize("path", sorted(RESULTS.rglob("*.json")), ids=lambda path: str(path.relative_to(RESULTS)))
def test_published_results_are_json_which_has_no_nan(path):
    def refuse(name):
        pytest.fail(f"{path} holds {name}")

    assert json.loads(path.read_text(), parse_constant=refuse)


@pytest.mark.parametrize("path", sorted(RESULTS.glob("kernels-cpu*.json")), ids=lambda path: path.name)
def test_nothing_takes_less_time_than_its_branch(path):
    parts = json.loads(path.read_text())["parts"]
    assert all(row.get("over_branch_ms", 1) > 0 for part in parts.values() for row in part["rows"])
