"""Runs that are stopped, by their user or by a full disk, and what time they are said to have taken."""

import dataclasses
import json
import os
import signal
from pathlib import Path

import pytest

from benchmarks.arc import checkpoint, run
from benchmarks.arc.arms import Arm
from benchmarks.arc.cli import main
from benchmarks.arc.files import naming
from benchmarks.arc.presets import PRESETS, preset
from benchmarks.arc.run import RunSpec, build_data, train
from benchmarks.arc.stopping import asked
from benchmarks.arc.training import Trainer


@pytest.fixture
def short(monkeypatch):
    chosen = preset("smoke").changed(steps=6, evaluate_every=3, checkpoint_every=3)
    monkeypatch.setitem(PRESETS, "smoke", dataclasses.replace(chosen, name="smoke"))
    return chosen


def train_lines(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines if line["kind"] == "train"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_comparison_stopped_in_its_first_run_keeps_the_step_and_shows_its_table(
    short, tmp_path, monkeypatch, capsys, number
):
    real = Trainer.step

    def step(self):
        if self.step_number == 4:
            os.kill(os.getpid(), number)
        return real(self)

    monkeypatch.setattr(Trainer, "step", step)
    command = ["compare", "--preset", "smoke", "--arms", "plain", "identity", "--out", str(tmp_path)]
    assert main(command) == 130
    assert checkpoint.steps(tmp_path / "plain" / "seed-0" / "checkpoints") == [3, 5]
    (stopped,) = json.loads((tmp_path / "comparison.json").read_text())["runs"]
    assert (stopped["arm"], stopped["steps"], stopped["complete"]) == ("plain", 5, False)
    out = capsys.readouterr().out
    assert "copy the input" in out
    assert "Missing: plain seed 0 (stopped at step 5), identity seed 0 (not run)." in " ".join(out.split())
    monkeypatch.setattr(Trainer, "step", real)
    assert main([*command, "--resume"]) == 0
    train(RunSpec(PRESETS["smoke"], Arm.parse("plain"), 0), tmp_path / "whole", say=lambda text: None)
    assert train_lines(tmp_path / "plain" / "seed-0") == train_lines(tmp_path / "whole")


def test_a_comparison_without_any_time_has_a_table(short, tmp_path, capsys):
    command = ["compare", "--preset", "smoke", "--arms", "plain", "--out", str(tmp_path), "--seconds", "1e-9"]
    assert main(command) == 0
    assert "Missing: plain seed 0 (not run)." in " ".join(capsys.readouterr().out.split())


def test_a_second_interrupt_does_not_wait():
    with asked() as interrupted:
        assert not interrupted()
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupted()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_compilation_is_nobodys_training_time_and_changes_no_step(short, tmp_path, monkeypatch):
    clock, real = [0.0], Trainer.step
    monkeypatch.setattr(run.time, "perf_counter", lambda: clock[0])
    compiled = []

    def step(self):
        clock[0] += 1.0 if compiled else 100.0
        compiled.append(True)
        return real(self)

    monkeypatch.setattr(Trainer, "step", step)
    spec = RunSpec(short, Arm.parse("cayley"), 0)
    result = train(spec, tmp_path / "run", budget=5.5, say=lambda text: None)
    assert (result["steps"], result["seconds"]) == (6, 6.0)
    trainer = Trainer(short, spec.arm, 0, build_data(short))
    losses = [trainer.step()["loss"] for _ in range(6)]
    assert [line["loss"] for line in train_lines(tmp_path / "run")] == losses


def test_a_full_disk_shows_the_table_of_what_is_there(short, tmp_path, monkeypatch, capsys):
    real = checkpoint.save

    def full(folder, *rest):
        if "identity" in str(folder):
            raise OSError(28, "No space left on device", str(folder))
        return real(folder, *rest)

    monkeypatch.setattr(checkpoint, "save", full)
    assert main(["compare", "--preset", "smoke", "--arms", "plain", "identity", "--out", str(tmp_path)]) == 1
    said = capsys.readouterr()
    assert "identity seed 0 (not run)" in " ".join(said.out.split())
    assert "No space left on device; there is no checkpoint yet: " in said.err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_is_named():
    path = Path("/dev/full")
    with pytest.raises(OSError, match="No space left on device: '/dev/full'"), naming(path), path.open("w") as file:
        file.write("text")
