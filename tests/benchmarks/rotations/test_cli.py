import json

import pytest

from benchmarks.__main__ import main

QUICK = [
    "rotations",
    "--quick",
    "--seeds",
    "2",
    "--tasks",
    "near-pi",
    "householder",
    "--arms",
    "plain",
    "mhc",
    "cayley",
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("rotations") / "result.json"
    assert main([*QUICK, "--out", str(out), "--plot", str(out.with_suffix(".png"))]) == 0
    return out


def test_every_task_arm_and_seed_is_written_with_machine_settings_and_claims(finished):
    result = json.loads(finished.read_text())
    assert {(run["task"], run["arm"], run["seed"]) for run in result["runs"]} == {
        (task, arm, seed)
        for task in ("near-pi", "householder")
        for arm in ("plain", "mhc", "cayley")
        for seed in (42, 123)
    }
    assert result["machine"]["cores"]
    assert result["packages"]["torch"]
    assert result["tasks"]["near-pi"]["references"]["floor"] == 0.0
    assert result["tasks"]["near-pi"]["published"]["mhc"] == "9.64e-3"
    assert result["tasks"]["near-pi"]["schedule"]["steps"] == 20
    statements = [claim["statement"] for claim in result["claims"]]
    assert "near-pi: a rotation (cayley) has several times less error than mhc" in statements
    assert not any("sinkhorn" in statement for statement in statements)
    tables = finished.with_suffix(".md").read_text()
    assert "| cayley | – |" in tables
    assert finished.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert not list(finished.parent.glob("*.partial"))


def test_a_stopped_comparison_ends_as_one_that_was_never_stopped(finished, tmp_path, capsys):
    whole = json.loads(finished.read_text())
    part = {**whole, "runs": [run for run in whole["runs"] if run["arm"] != "mhc"], "claims": []}
    out = tmp_path / "part.json"
    out.write_text(json.dumps(part))
    assert main([*QUICK, "--out", str(out), "--resume"]) == 0
    assert "[2/2] householder mhc" in capsys.readouterr().err
    again = json.loads(out.read_text())

    def key(run):
        return run["task"], run["arm"], run["seed"]

    assert sorted(again["runs"], key=key) == sorted(whole["runs"], key=key)
    assert again["claims"] == whole["claims"]


def test_other_tasks_and_arms_of_a_file_stay_in_it(finished, tmp_path):
    whole = json.loads(finished.read_text())
    out = tmp_path / "result.json"
    out.write_text(finished.read_text())
    arguments = [*QUICK[:4], "--tasks", "householder", "--arms", "cayley", "free", "--out", str(out), "--resume"]
    assert main(arguments) == 0
    more = json.loads(out.read_text())
    assert more["runs"][: len(whole["runs"])] == whole["runs"]
    assert [(run["task"], run["arm"]) for run in more["runs"][len(whole["runs"]) :]] == [("householder", "free")] * 2
    assert more["arms"] == [*whole["arms"], "free"]
    assert more["tasks"] == whole["tasks"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--arms", "caley"], "arm 'caley': unknown, expected one of plain"),
        (["--arms", "plain", "plain"], "--arms: an arm is named twice"),
        (["--preset", "huge"], "--preset: unknown name 'huge', expected one of quick, small, full"),
        (["--tasks", "gyro"], "--tasks: unknown name 'gyro', expected some of gyroscope, stability"),
        (["--seeds", "0"], "--seeds: expected 1 to 5, got 0"),
        (["--seeds", "6"], "--seeds: expected 1 to 5, got 6"),
        (["--device", "cuda:77"], "--device: 'cuda:77' cannot be used here"),
        (["--out", "nowhere/result.json"], "the folder nowhere does not exist"),
        (["--out", "result.txt"], "--out: expected a name that ends in .json"),
    ],
)
def test_a_mistake_ends_in_one_line_before_anything_is_trained(arguments, message, capsys, monkeypatch):
    monkeypatch.setattr("benchmarks.trainer.train", lambda *_: pytest.fail("trained"))
    quick = [] if "--preset" in arguments else ["--quick"]
    assert main(["rotations", *quick, *arguments]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_quick_and_a_preset_exclude_each_other(capsys):
    assert main(["rotations", "--quick", "--preset", "small"]) == 1
    assert "--quick is the preset 'quick'" in capsys.readouterr().err


def test_a_file_that_exists_is_not_overwritten(finished, capsys):
    before = finished.read_bytes()
    assert main([*QUICK, "--out", str(finished)]) == 1
    assert "exists; pass --resume" in capsys.readouterr().err
    assert finished.read_bytes() == before


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text[: len(text) // 2], "damaged or no result of this command"),
        (lambda text: "{}", "damaged or no result of this command"),
        (lambda text: text.replace('"preset": "quick"', '"preset": "full"'), "made with preset 'full', not 'quick'"),
        (lambda text: text.replace('"steps": 20', '"steps": 21'), "had other settings or data"),
    ],
)
def test_a_file_of_another_comparison_is_not_resumed(finished, tmp_path, capsys, damage, message):
    out = tmp_path / "result.json"
    out.write_text(damage(finished.read_text()))
    before = out.read_bytes()
    assert main([*QUICK, "--out", str(out), "--resume"]) == 1
    assert message in capsys.readouterr().err
    assert out.read_bytes() == before


def test_one_run_that_fails_loses_no_other_and_is_reported(tmp_path, capsys, monkeypatch):
    from benchmarks import trainer

    train = trainer.train

    def fail(problem, arm, seeds, *rest):
        runs = train(problem, arm, seeds, *rest)
        if arm.text == "mhc":
            runs[0] = {"seed": seeds[0], "fault": "the loss is nan at step 3", "parameters": 1, "mixing_parameters": 0}
        return runs

    monkeypatch.setattr(trainer, "train", fail)
    out = tmp_path / "result.json"
    assert main([*QUICK[:4], "--tasks", "householder", "--arms", "mhc", "plain", "--out", str(out)]) == 1
    captured = capsys.readouterr()
    assert "1 of 4 runs failed: householder mhc seed 42" in captured.err
    assert "| mhc | failed |" in captured.out
    assert len(json.loads(out.read_text())["runs"]) == 4
