import json

import numpy as np
import pytest

from benchmarks.arc import claims, findings, publish, results
from benchmarks.arc.analysis import analyse, find_mcnemar, find_pair, run_measures
from benchmarks.arc.paired import mcnemar
from benchmarks.arc.presets import Preset
from tests.benchmarks.arc.synthetic import write_comparison


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("comparison")
    write_comparison(path, seeds=(0, 1, 2))
    return path


@pytest.fixture(scope="module")
def found(folder):
    comparison = results.read_comparison(folder)
    return comparison, analyse(comparison, folder)


def test_a_run_is_measured_by_its_log():
    steps = np.arange(1, 101.0)
    norms = np.ones(100)
    norms[[50, 70]] = 6, 4
    metrics = {
        "step": steps,
        "loss": steps / 10,
        "token_accuracy": steps / 100,
        "exact": 0 * steps,
        "gradient_norm": norms,
    }
    scores = {"token_accuracy": 0.5, "exact": 0.1}
    measures = run_measures(metrics, {"train": scores, "held_out": scores}, gflops=2.0, batch=3)
    assert measures["area"] == pytest.approx(5.05)
    assert measures["spikes"] == 1
    # Smoothing is centred, so a straight line reaches the target where it should.
    assert measures["steps_to"] == {"50%": 50, "60%": 60, "70%": 70, "80%": 80, "90%": 90}
    assert measures["operations_to"]["60%"] == 60 * 3 * 2e9
    metrics["token_accuracy"] = np.full(100, 0.55)
    assert run_measures(metrics, {"train": scores, "held_out": scores}, 2.0, 3)["steps_to"]["60%"] is None


def test_a_pair_reads_the_same_from_both_sides(found):
    _, analysis = found
    there = find_pair(analysis, "plain", "cayley", "train_token_accuracy")
    back = find_pair(analysis, "cayley", "plain", "train_token_accuracy")
    assert there.mean == pytest.approx(-0.03)
    assert (back.mean, back.low, back.high, back.n) == (-there.mean, -there.high, -there.low, 3)
    assert find_pair(analysis, "cayley", "grassmann", "area") is None
    # Plain solves the first task and cayley the fourth, with every seed: one task each.
    assert find_mcnemar(analysis, "plain", "cayley")[:2] == (1, 1)


def test_claims_need_three_seeds_and_an_interval_on_the_right_side(found, tmp_path):
    comparison, analysis = found
    table = {claim.statement: claim for claim in claims.claims(comparison, analysis)}
    assert table["Cayley gets more tokens right than Sinkhorn"].verdict == claims.CONFIRMED
    assert table["Cayley needs fewer steps than Sinkhorn"].verdict == claims.NOT_CONFIRMED
    assert table["Grassmann lies above Sinkhorn early in training"].verdict == claims.NOT_TESTABLE
    assert table["Both get more than 85 % of tokens right"].verdict == claims.NOT_TESTABLE
    spectrum = next(claim for claim in table.values() if claim.statement.startswith("Products"))
    assert spectrum.verdict == claims.CONFIRMED
    write_comparison(tmp_path, seeds=(0, 1))
    two = results.read_comparison(tmp_path)
    verdicts = {c.statement: c.verdict for c in claims.claims(two, analyse(two, tmp_path))}
    assert verdicts["Cayley gets more tokens right than Sinkhorn"] == claims.NOT_TESTABLE


def test_the_layers_as_published_are_judged_beside_the_controlled_ones(tmp_path):
    write_comparison(tmp_path, ("sinkhorn", "cayley", "jpmhc-sinkhorn", "jpmhc-cayley"), seeds=(0, 1, 2))
    comparison = results.read_comparison(tmp_path)
    judged = {c.statement: c for c in claims.claims(comparison, analyse(comparison, tmp_path))}
    statement = "Cayley gets more tokens right than Sinkhorn"
    assert judged[statement].found == "train token accuracy +1.00 [+1.00, +1.00] points"
    assert judged[f"{statement}, both as published"].found == "train token accuracy +1.00 [+1.00, +1.00] points"


def test_products_that_explode_keep_nothing(found):
    comparison, analysis = found
    last = {"contrast_gains": [[None, 0.1]]}
    probes = {**analysis["probes"], "cayley": {**analysis["probes"]["cayley"], "last": last, "last_of_all": [last]}}
    judged = claims.claims(comparison, {**analysis, "probes": probes})
    claim = next(c for c in judged if c.statement.startswith("Products"))
    assert claim.verdict == claims.NOT_CONFIRMED
    assert "cayley inf" in claim.found


def test_claims_about_held_out_answers_need_some(found):
    comparison, analysis = found
    statement = "Cayley solves more held-out samples exactly than Sinkhorn"
    claim = next(c for c in claims.claims(comparison, analysis) if c.statement == statement)
    assert (claim.verdict, claim.reason) == (claims.NOT_TESTABLE, "hardly any is solved")
    better = {"cayley": 0.31, "sinkhorn": 0.28}
    runs = [{**run, "held_out_sample_exact": better.get(run["arm"], 0.0)} for run in analysis["runs"]]
    pairs = [
        {**p, "over_seeds": {**p["over_seeds"], "held_out_sample_exact": {"mean": d, "low": d, "high": d, "n": 3}}}
        for p in analysis["pairs"]
        for d in [better.get(p["first"], 0.0) - better.get(p["second"], 0.0)]
    ]
    judged = claims.claims(comparison, {**analysis, "runs": runs, "pairs": pairs})
    assert next(c for c in judged if c.statement == statement).verdict == claims.CONFIRMED


@pytest.mark.parametrize(
    ("counts", "seeds", "verdict"),
    [
        ((30, 10), 3, claims.CONFIRMED),
        ((25, 15), 3, claims.NOT_CONFIRMED),
        ((10, 30), 3, claims.NOT_CONFIRMED),
        ((30, 10), 2, claims.NOT_TESTABLE),
        ((20, 1), 3, claims.NOT_TESTABLE),
    ],
)
def test_first_attempts_are_judged_over_many_tasks_of_three_seeds(found, counts, seeds, verdict):
    comparison, analysis = found
    test = mcnemar([1.0] * counts[0] + [0.0] * counts[1], [0.0] * counts[0] + [1.0] * counts[1])._asdict()
    pairs = [
        {**p, "mcnemar": test, "over_seeds": {k: {**v, "n": seeds} for k, v in p["over_seeds"].items()}}
        for p in ({**p, "first": "cayley", "second": "sinkhorn"} for p in analysis["pairs"][:1])
    ]
    judged = claims.claims(comparison, {**analysis, "pairs": pairs})
    assert next(c for c in judged if "at the first attempt" in c.statement).verdict == verdict


@pytest.mark.parametrize(("accuracy", "verdict"), [(0.87, claims.CONFIRMED), (0.84, claims.NOT_CONFIRMED)])
def test_the_level_of_the_full_recipe_is_judged_at_its_size(found, accuracy, verdict):
    comparison, analysis = found
    config = Preset.from_json(comparison["config"]).changed(split="published", max_side=30).to_json()
    runs = [{**run, "held_out_token_accuracy": accuracy + 0.001 * run["seed"]} for run in analysis["runs"]]
    judged = claims.claims({**comparison, "config": config}, {**analysis, "runs": runs})
    assert next(c for c in judged if c.statement.startswith("Both get more")).verdict == verdict


def test_every_table_is_rectangular_and_in_the_markdown(found, folder):
    comparison, analysis = found
    evaluations = {
        arm: [results.read_evaluation(folder, run) for run in results.complete_runs(comparison, arm)]
        for arm in comparison["arms"]
    }
    parts = findings.sections(comparison, analysis, evaluations)
    assert [part.title for part in parts] == [
        "The paper's claims",
        "Differences between arms",
        "Steps and operations to a training token accuracy",
        "Operations",
        "Along the recursion of a segment",
        "Attempts on the held-out tests",
        "What pooling votes over checkpoints would have given",
    ]
    text = findings.markdown(parts)
    for part in parts:
        assert {len(row) for row in part.rows} == {len(part.head)}, part.title
        assert f"### {part.title}" in text
    assert "2.0 → 5.0 [+3.0, +3.0]" in text
    # Seeds differ in nothing but the noise of the log, and are all behind what is said of the last probe.
    assert len(analysis["probes"]["cayley"]["last_of_all"]) == 3
    assert analysis["probes"]["cayley"]["residuals"] == [[120, pytest.approx(3e-7), pytest.approx(3e-7)]]


def test_published_files_hold_the_numbers_and_no_seconds_where_they_mean_nothing(folder, tmp_path):
    paths = publish.publish(folder, tmp_path / "small-cpu", timings=False)
    assert [path.name for path in paths] == ["small-cpu.json", "small-cpu.md", "small-cpu.html"]
    kept = json.loads(paths[0].read_text())
    assert kept["claims"][0]["verdict"]
    assert all("seconds" not in run for run in kept["runs"])
    assert "Norm placement post" in paths[1].read_text()
    assert "<svg" in paths[2].read_text()
    with pytest.raises(ValueError, match="absent: the folder does not exist"):
        publish.publish(folder, tmp_path / "absent" / "x")


def test_arms_that_answer_one_token_everywhere_prove_nothing(found):
    comparison, analysis = found
    floor = {part: {"count": 9, "token_accuracy": 0.9, "exact": 0.0} for part in ("train", "held_out")}
    judged = {c.statement: c for c in claims.claims({**comparison, "constant": floor}, analysis)}
    tokens = judged["Cayley gets more tokens right than Sinkhorn"]
    assert (tokens.verdict, tokens.reason) == (claims.NOT_TESTABLE, "every arm still answers one token everywhere")
    assert judged["Cayley needs fewer steps than Sinkhorn"].verdict == claims.NOT_TESTABLE
