"""Laws of the table of a comparison."""

import io
import json
import math
import statistics

import pytest
from rich.console import Console

from benchmarks.arc import results, table
from tests.benchmarks.arc.synthetic import ARMS, write_comparison, write_json


def test_the_baseline_is_first_and_the_arms_follow_as_they_were_asked_for(tmp_path):
    arms = ("sinkhorn", "plain", "cayley", "identity")
    rows = table.rows(write_comparison(tmp_path, arms), tmp_path)
    assert [row.arm for row in rows] == [table.COPY, *arms]


def test_the_order_ignores_how_well_an_arm_does(tmp_path):
    comparison = write_comparison(tmp_path)
    for exact, run in zip((0.0, 0.9, 0.1, 0.5), comparison["runs"], strict=True):
        path = tmp_path / run["evaluation"]
        evaluation = json.loads(path.read_text())
        evaluation["held_out"]["exact"] = exact
        write_json(path, evaluation)
    rows = table.rows(comparison, tmp_path)
    assert [row.arm for row in rows[1:]] == list(ARMS)
    assert [row.exact.mean for row in rows[1:]] == [0.0, 0.9, 0.1, 0.5]


def test_one_seed_shows_the_evaluation_and_its_own_errors(tmp_path):
    comparison = write_comparison(tmp_path)
    row = table.rows(comparison, tmp_path)[4]
    evaluation = results.read_evaluation(tmp_path, comparison["runs"][3])
    held_out = evaluation["held_out"]
    assert row.token_accuracy == table.Estimate(held_out["token_accuracy"], held_out["token_accuracy_se"])
    assert row.exact == table.Estimate(held_out["exact"], held_out["exact_se"])
    assert row.pass_1 == table.Estimate(held_out["pass@1"], held_out["pass@1_se"])
    assert row.pass_2 == table.Estimate(held_out["pass@2"], None)
    assert row.train_token_accuracy.mean == evaluation["train"]["token_accuracy"]
    assert row.mixing_parameters.mean == 1500
    assert "±" in "".join(table.caption([*table.rows(comparison, tmp_path)]))
    assert "the evaluation's standard error" in table.caption(table.rows(comparison, tmp_path))[0]


def test_several_seeds_show_their_mean_and_the_standard_error_over_them(tmp_path):
    comparison = write_comparison(tmp_path, seeds=(0, 1, 2))
    row = table.rows(comparison, tmp_path)[1]
    evaluations = [results.read_evaluation(tmp_path, run) for run in comparison["runs"][:3]]
    values = [evaluation["held_out"]["token_accuracy"] for evaluation in evaluations]
    assert row.token_accuracy.mean == pytest.approx(statistics.mean(values))
    assert row.token_accuracy.error == pytest.approx(statistics.stdev(values) / math.sqrt(3))
    assert row.seconds.mean == pytest.approx(41)
    assert "over the complete seeds of 3" in " ".join(table.caption(table.rows(comparison, tmp_path)))[:60]


def test_the_final_loss_is_the_mean_of_the_last_twenty_steps(tmp_path):
    comparison = write_comparison(tmp_path, steps=50)
    losses = results.read_metrics(tmp_path, comparison["runs"][0])["loss"].tolist()
    row = table.rows(comparison, tmp_path)[1]
    assert row.train_loss.mean == pytest.approx(statistics.mean(losses[30:]))


def test_the_gradient_ratio_is_the_99th_percentile_over_the_median(tmp_path):
    comparison = write_comparison(tmp_path, arms=("plain",), steps=101)
    path = tmp_path / comparison["runs"][0]["metrics"]
    # Norms 1, 2, ..., 101 in another order: the median is 51, the 99th percentile is the 100th of 101 values.
    entries = [json.loads(line) for line in path.read_text().splitlines()[:101]]
    path.write_text("".join(json.dumps({**e, "gradient_norm": float(102 - e["step"])}) + "\n" for e in entries))
    assert table.rows(comparison, tmp_path)[1].gradient_ratio.mean == pytest.approx(100 / 51)


def test_the_copy_baseline_comes_from_the_comparison(tmp_path):
    row = table.rows(write_comparison(tmp_path), tmp_path)[0]
    assert (row.token_accuracy.mean, row.exact.mean, row.train_token_accuracy.mean) == (0.61, 0.0, 0.63)
    assert row.train_loss is None


@pytest.fixture
def with_gaps(tmp_path):
    """Of plain all seeds, of identity one, of sinkhorn none begun, of cayley none complete."""
    comparison = write_comparison(tmp_path, seeds=(0, 1))
    for run in comparison["runs"]:
        if run["arm"] == "cayley" or (run["arm"] == "identity" and run["seed"] == 1):
            run.update(complete=False, steps=70, evaluation=None)
    comparison["runs"] = [run for run in comparison["runs"] if run["arm"] != "sinkhorn"]
    return table.rows(comparison, tmp_path)


def test_missing_runs_are_shown_and_never_dropped(with_gaps):
    assert [row.label for row in with_gaps] == [
        table.COPY,
        "plain",
        "identity (1 of 2 seeds)",
        "sinkhorn",
        "cayley",
    ]
    assert with_gaps[2].token_accuracy.error is None
    text = table.markdown_table(with_gaps)
    for reason in (
        "identity seed 1 (stopped at step 70)",
        "sinkhorn seed 0 (not run)",
        "sinkhorn seed 1 (not run)",
        "cayley seed 0 (stopped at step 70)",
        "cayley seed 1 (stopped at step 70)",
    ):
        assert reason in text
    for line in text.splitlines():
        if line.startswith(("| sinkhorn", "| cayley")):
            cells = [cell.strip() for cell in line.strip("|").split("|")][1:]
            assert set(cells) == {"missing"}


def test_a_comparison_without_any_complete_run_still_has_a_table(tmp_path):
    comparison = write_comparison(tmp_path)
    comparison["runs"] = []
    rows = table.rows(comparison, tmp_path)
    assert [row.complete for row in rows] == [0] * 5
    assert "plain seed 0 (not run)" in table.markdown_table(rows)


def test_a_damaged_log_stops_the_table_and_is_named(tmp_path):
    comparison = write_comparison(tmp_path)
    path = tmp_path / comparison["runs"][2]["metrics"]
    path.write_text(path.read_text()[:-30])
    with pytest.raises(ValueError, match=rf"{path}, line 122: malformed or cut off"):
        table.rows(comparison, tmp_path)


def test_markdown_tables_are_rectangular_and_emphasise_nothing(tmp_path):
    text = table.markdown_table(table.rows(write_comparison(tmp_path), tmp_path))
    blocks = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert len(blocks) == len(table.TABLES)
    for block in blocks:
        assert len(block) == 2 + 1 + len(ARMS)
        assert len({line.count("|") for line in block}) == 1
    assert "*" not in text
    assert "73.0 ± 2.0" in text


def test_everything_measured_has_an_error_over_seeds(tmp_path):
    rows = table.rows(write_comparison(tmp_path, seeds=(0, 1, 2)), tmp_path)
    counted = {"gflops", "parameters", "mixing_parameters"}
    for columns in table.TABLES.values():
        for column in columns:
            assert ("±" in column.cell(rows[-1])) == (column.field not in counted), column.field


def test_long_names_of_arms_are_told_apart_on_eighty_columns(tmp_path):
    arms = tuple(f"cayley:gate='sigmoid',norm='layer',static=False,step={step}" for step in (0.125, 0.5))
    output = io.StringIO()
    rows = table.rows(write_comparison(tmp_path, arms, seeds=(0, 1)), tmp_path)
    Console(file=output, width=80).print(table.rich_table(rows))
    assert "…" not in output.getvalue()
    assert max(map(len, output.getvalue().splitlines())) <= 80


def test_the_caption_warns_of_ranking_and_of_the_copy_baseline(tmp_path):
    text = table.markdown_table(table.rows(write_comparison(tmp_path), tmp_path))
    assert "small and noisy, and is not a ranking" in text
    assert "Copying the input already has 61.0 % token accuracy" in text


def test_a_comparison_without_its_controls_says_so(tmp_path):
    complete = table.caption(table.rows(write_comparison(tmp_path / "a"), tmp_path / "a"))
    assert not any("Not in this comparison" in sentence for sentence in complete)
    arms = ("sinkhorn", "cayley")
    without = table.caption(table.rows(write_comparison(tmp_path / "b", arms), tmp_path / "b"))
    assert any(sentence.startswith("Not in this comparison: plain and identity.") for sentence in without)


def test_the_terminal_table_fits_eighty_columns(tmp_path):
    rows = table.rows(write_comparison(tmp_path), tmp_path)
    output = io.StringIO()
    Console(file=output, width=80).print(table.rich_table(rows))
    lines = output.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    for arm in (table.COPY, *ARMS):
        assert sum(line.startswith(arm) for line in lines) == len(table.TABLES), "one line in each table, not wrapped"
    assert "…" not in output.getvalue()


def test_an_arm_with_brackets_is_no_markup(tmp_path):
    arm = "sinkhorn:iterations=[20]"
    comparison = write_comparison(tmp_path, arms=(arm,))
    output = io.StringIO()
    Console(file=output, width=120).print(table.rich_table(table.rows(comparison, tmp_path)))
    assert arm in output.getvalue()


def test_show_prints_the_table_of_a_folder(tmp_path, capsys):
    write_comparison(tmp_path)
    table.show(tmp_path)
    assert "sinkhorn" in capsys.readouterr().out
