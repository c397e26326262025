"""Laws of reading a comparison: everything is read, or the file (and line) at fault is named."""

import json

import numpy as np
import pytest

from benchmarks.arc import results
from tests.benchmarks.arc.synthetic import write_comparison, write_json


@pytest.fixture
def written(tmp_path):
    return tmp_path, write_comparison(tmp_path, arms=("plain", "cayley"), seeds=(0, 1), steps=5)


def test_metrics_are_the_training_lines_of_the_log(written):
    folder, comparison = written
    run = comparison["runs"][0]
    entries = [json.loads(line) for line in (folder / run["metrics"]).read_text().splitlines()]
    entries = [entry for entry in entries if entry["kind"] == "train"]
    metrics = results.read_metrics(folder, run)
    assert set(metrics) == {"step", *results.CURVES}
    for name, column in metrics.items():
        np.testing.assert_array_equal(column, [entry[name] for entry in entries])


def test_runs_come_in_the_order_of_the_seeds(written):
    _, comparison = written
    comparison["seeds"] = [1, 0]
    assert [run["seed"] for run in results.complete_runs(comparison, "cayley")] == [1, 0]


def test_runs_that_do_not_count_are_named_with_the_reason(written):
    _, comparison = written
    comparison["runs"][2].update(complete=False, steps=3)
    del comparison["runs"][3]
    assert results.missing_runs(comparison, "plain") == []
    assert results.missing_runs(comparison, "cayley") == [
        "cayley seed 0 (stopped at step 3)",
        "cayley seed 1 (not run)",
    ]
    assert results.complete_runs(comparison, "cayley") == []


def cut_in_the_middle(lines):
    lines[2] = lines[2][:20]


def end_early(lines):
    lines[-1] = lines[-1][:-10]


def repeat_a_step(lines):
    lines[2] = lines[1]


def use_a_word_for_a_number(lines):
    lines[2] = lines[2].replace('"gradient_norm": ', '"gradient_norm": "large", "was": ')


def drop_a_key(lines):
    lines[2] = lines[2].replace('"loss"', '"lost"')


def drop_the_kind(lines):
    lines[2] = lines[2].replace('"kind"', '"sort"')


def invent_a_kind(lines):
    lines[2] = lines[2].replace('"train"', '"trial"')


def leave_a_blank(lines):
    lines[2] = ""


def write_a_list(lines):
    lines[2] = "[]"


@pytest.mark.parametrize(
    ("damage", "line", "fault"),
    [
        (cut_in_the_middle, 3, "malformed or cut off"),
        (end_early, 7, "malformed or cut off"),
        (repeat_a_step, 3, "step 2 follows step 2"),
        (use_a_word_for_a_number, 3, "gradient_norm: expected a number, got 'large'"),
        (drop_a_key, 3, "loss: expected a number, got None"),
        (drop_the_kind, 3, "kind missing"),
        (invent_a_kind, 3, "kind: expected train, evaluation or probe, got 'trial'"),
        (leave_a_blank, 3, "malformed or cut off"),
        (write_a_list, 3, "expected an object, got list"),
    ],
)
def test_a_damaged_line_of_a_log_is_named(written, damage, line, fault):
    folder, comparison = written
    run = comparison["runs"][0]
    path = folder / run["metrics"]
    lines = path.read_text().splitlines()
    damage(lines)
    path.write_text("\n".join(lines))
    with pytest.raises(ValueError, match="line") as caught:
        results.read_metrics(folder, run)
    assert str(caught.value).startswith(f"{path}, line {line}: ")
    assert fault in str(caught.value)


@pytest.mark.parametrize("kept", [0, 3])
def test_a_log_cut_between_two_lines_is_noticed(written, kept):
    folder, comparison = written
    run = comparison["runs"][0]
    path = folder / run["metrics"]
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:kept]))
    with pytest.raises(ValueError, match=f"the training lines end at step {kept}, expected step 5") as caught:
        results.read_metrics(folder, run)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("metrics", results.read_metrics),
        ("evaluation", results.read_evaluation),
    ],
)
def test_a_missing_file_is_named(written, name, read):
    folder, comparison = written
    run = comparison["runs"][0]
    path = folder / run[name]
    path.unlink()
    with pytest.raises(ValueError, match="cannot be read") as caught:
        read(folder, run)
    assert str(path) in str(caught.value)


def no_pass(evaluation):
    del evaluation["held_out"]["pass@2"]


def odd_error(evaluation):
    evaluation["train"]["exact_se"] = "small"


def ragged_candidate(evaluation):
    evaluation["predictions"][0]["candidates"] = [{"grid": [[1, 2], [3]], "votes": 1}]


def colour_ten(evaluation):
    evaluation["predictions"][0]["truth"] = [[10]]


def empty_grid(evaluation):
    evaluation["predictions"][0]["input"] = [[]]


def no_votes(evaluation):
    evaluation["predictions"][0]["candidates"] = [{"grid": [[1]]}]


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (no_pass, "held_out: pass@2: expected a number, got None"),
        (odd_error, "train: exact_se: expected a number, got 'small'"),
        (ragged_candidate, "prediction 0: candidate 0: its rows differ in length"),
        (colour_ten, "prediction 0: truth: expected colours 0 to 9, got 10"),
        (empty_grid, "prediction 0: input: expected a grid, a list of rows of cells"),
        (no_votes, "prediction 0: votes missing"),
    ],
)
def test_a_damaged_evaluation_is_named(written, damage, fault):
    folder, comparison = written
    run = comparison["runs"][0]
    evaluation = results.read_evaluation(folder, run)
    damage(evaluation)
    write_json(folder / run["evaluation"], evaluation)
    with pytest.raises(ValueError, match=fault.split(":")[0]) as caught:
        results.read_evaluation(folder, run)
    assert str(caught.value) == f"{folder / run['evaluation']}: {fault}"


def no_split(comparison):
    del comparison["split"]


def strange_arm(comparison):
    comparison["runs"][1]["arm"] = "free"


def twice(comparison):
    comparison["runs"][1]["seed"] = 0


def no_evaluation(comparison):
    del comparison["runs"][1]["evaluation"]


def no_baseline(comparison):
    comparison["copy"]["train"] = {}


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (no_split, "split missing"),
        (strange_arm, "run 1: arm 'free' with seed 1 is not among the arms and seeds"),
        (twice, "run 1: arm 'plain' with seed 0 is listed twice"),
        (no_evaluation, "run 1: evaluation missing"),
        (no_baseline, "copy: train: count: expected a number, got None"),
    ],
)
def test_a_damaged_comparison_is_named(written, damage, fault):
    folder, comparison = written
    damage(comparison)
    write_json(folder / "comparison.json", comparison)
    with pytest.raises(ValueError, match=r"comparison\.json") as caught:
        results.read_comparison(folder)
    assert str(caught.value) == f"{folder / 'comparison.json'}: {fault}"


def test_a_folder_without_a_comparison_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"comparison\.json: cannot be read"):
        results.read_comparison(tmp_path)
