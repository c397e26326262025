import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.__main__ import main
from benchmarks.arc.checkpoint import steps

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare") / "out"
    command = [sys.executable, "-m", "benchmarks", "arc", "compare", "--preset", "smoke", "--out", str(folder)]
    command += ["--arms", "plain", "cayley:step=0.5", "--seeds", "2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_a_comparison_runs_every_arm_with_every_seed(comparison):
    folder, printed = comparison
    written = json.loads((folder / "comparison.json").read_text())
    assert [(run["arm"], run["seed"]) for run in written["runs"]] == [
        ("plain", 0),
        ("cayley:step=0.5", 0),
        ("plain", 1),
        ("cayley:step=0.5", 1),
    ]
    for run in written["runs"]:
        assert run["complete"]
        assert (folder / run["metrics"]).is_file()
        assert steps(folder / run["folder"] / "checkpoints")[-1] == 40
    assert "held out: every test of every task" in written["split"]
    assert "copy the input" in printed
    assert f"report: {folder / 'report.html'}" in printed.replace("\n", "")
    assert (folder / "report.html").stat().st_size > 10_000


def test_arms_of_one_seed_begin_with_the_same_loss(comparison):
    folder, _ = comparison
    for seed in (0, 1):
        first = [
            json.loads((folder / arm / f"seed-{seed}" / "metrics.jsonl").read_text().splitlines()[0])["loss"]
            for arm in ("plain", "cayley-step0.5")
        ]
        assert first[0] == pytest.approx(first[1], abs=1e-5)


def test_a_comparison_is_taken_up_where_it_stopped(comparison, capsys):
    folder, _ = comparison
    before = (folder / "plain" / "seed-0" / "metrics.jsonl").read_bytes()
    arguments = ["arc", "compare", "--preset", "smoke", "--out", str(folder), "--arms", "plain", "cayley:step=0.5"]
    assert main([*arguments, "--seeds", "2"]) == 1
    assert "not empty; pass --resume" in capsys.readouterr().err
    assert main([*arguments, "--seeds", "2", "--resume"]) == 0
    assert (folder / "plain" / "seed-0" / "metrics.jsonl").read_bytes() == before
    (folder / "report.html").unlink()
    assert main(["arc", "report", "--run", str(folder)]) == 0
    assert (folder / "report.html").exists()


def test_one_arm_that_diverges_loses_no_other(tmp_path, capsys, monkeypatch):
    from benchmarks.arc.training import Trainer, TrainingError

    step = Trainer.step

    def diverge(self):
        if self.arm.text == "free" and self.step_number == 12:
            raise TrainingError("arm free: the loss is nan at step 13")
        return step(self)

    monkeypatch.setattr(Trainer, "step", diverge)
    arguments = ["arc", "compare", "--preset", "smoke", "--out", str(tmp_path / "out"), "--arms", "free", "plain"]
    assert main(arguments) == 1
    captured = capsys.readouterr()
    assert "error: 1 of 2 runs failed: free seed 0" in captured.err
    assert "the last good checkpoint is that of step 10" in captured.out
    runs = json.loads((tmp_path / "out" / "comparison.json").read_text())["runs"]
    assert [(run["arm"], run["complete"]) for run in runs] == [("free", False), ("plain", True)]
    assert "the loss is nan at step 13" in (tmp_path / "out" / "report.html").read_text()
    monkeypatch.undo()
    assert main([*arguments, "--resume"]) == 0
    runs = json.loads((tmp_path / "out" / "comparison.json").read_text())["runs"]
    assert {run["arm"]: run["complete"] for run in runs} == {"free": True, "plain": True}


def test_a_later_call_adds_to_a_comparison_and_drops_nothing(comparison):
    folder, _ = comparison
    arguments = ["arc", "compare", "--preset", "smoke", "--out", str(folder), "--resume", "--seeds", "1"]
    assert main([*arguments, "--arms", "plain", "identity"]) == 0
    written = json.loads((folder / "comparison.json").read_text())
    assert written["arms"] == ["plain", "cayley:step=0.5", "identity"]
    assert written["seeds"] == [0, 1]
    found = {(run["arm"], run["seed"]) for run in written["runs"]}
    assert found == {("plain", 0), ("plain", 1), ("cayley:step=0.5", 0), ("cayley:step=0.5", 1), ("identity", 0)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], r"error: expected python -m benchmarks arc"),
        (["arcade"], r"error: unknown benchmark 'arcade', expected python -m benchmarks arc"),
    ],
)
def test_an_unknown_benchmark_is_named(arguments, message, capsys):
    assert main(arguments) == 2
    assert re.match(message, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--preset", "huge"], "preset: unknown name 'huge', expected one of smoke, demo"),
        (["train", "--residual", "caley"], "arm 'caley': unknown, expected plain, a recipe"),
        (["compare", "--arms", "plain", "plain"], "arms: expected at least one and none twice, got 'plain plain'"),
        (["compare", "--seeds", "0"], "seeds: expected at least 1, got 0"),
        (["compare", "--arm-seconds", "0"], "arm_seconds: expected a finite number of seconds above 0, got 0.0"),
        (["compare", "--seconds", "nan"], "seconds: expected a finite number of seconds above 0, got nan"),
        (["train", "--seconds", "-1"], "seconds: expected a finite number of seconds above 0, got -1.0"),
        (["throughput", "--seconds", "inf"], "seconds: expected a finite number of seconds above 0, got inf"),
        (["train", "--residual", "quaternion"], "arm 'quaternion' with 2 streams: streams: expected 4"),
        (["train", "--device", "nonsense"], "--device: 'nonsense' cannot be used here"),
        (["train", "--extra-task-dirs", "/nowhere"], "/nowhere: expected a directory of ARC tasks"),
    ],
)
def test_a_users_mistake_ends_in_one_line(arguments, message, tmp_path, capsys):
    if "--preset" not in arguments:
        arguments = [*arguments, "--preset", "smoke"]
    assert main(["arc", *arguments, "--out", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}")
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_no_run_is_named(tmp_path, capsys):
    assert main(["arc", "evaluate", "--run", str(tmp_path)]) == 1
    assert "no run is here (config.json is missing)" in capsys.readouterr().err
    assert main(["arc", "report", "--run", str(tmp_path)]) == 1
    assert "comparison.json" in capsys.readouterr().err
