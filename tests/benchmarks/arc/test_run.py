import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.arc import run as running
from benchmarks.arc.arms import Arm
from benchmarks.arc.checkpoint import CheckpointError
from benchmarks.arc.presets import preset
from benchmarks.arc.run import RunSpec

ROOT = Path(__file__).parents[3]


def spec(arm="cayley", seed=0):
    return RunSpec(preset("smoke"), Arm.parse(arm), seed)


def command(*arguments):
    return [sys.executable, "-m", "benchmarks", "arc", *map(str, arguments)]


def train(out, *more, **options):
    arguments = command("train", "--preset", "smoke", "--residual", "cayley", "--out", out, *more)
    return subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=False, **options)


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "finished"
    done = train(folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_a_run_holds_its_settings_log_checkpoints_and_evaluation(finished):
    config = json.loads((finished / "config.json").read_text())
    assert config["residual"] == "cayley"
    assert config["preset"]["train"]["steps"] == 40
    assert len(config["data_sha256"]) == 64
    assert config["packages"]["torch"]
    assert config["git"]
    entries = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [e["step"] for e in entries if e["kind"] == "train"] == list(range(1, 41))
    assert [e["step"] for e in entries if e["kind"] == "evaluation"] == [40]
    assert sorted(p.name for p in (finished / "checkpoints").iterdir()) == ["step-00000030", "step-00000040"]
    result = json.loads((finished / "run.json").read_text())
    assert result["complete"] is True
    evaluation = json.loads((finished / result["evaluation"]).read_text())
    assert evaluation["step"] == 40
    assert len(evaluation["predictions"]) == evaluation["held_out"]["count"]


# Before the first checkpoint, around one, and at a random step.
@pytest.mark.parametrize(
    "wanted", [pytest.param(3, marks=pytest.mark.slow), 10, pytest.param(None, marks=pytest.mark.slow)]
)
def test_a_killed_run_ends_bit_identical_once_resumed(finished, tmp_path, wanted):
    folder = tmp_path / "killed"
    process = subprocess.Popen(
        command("train", "--preset", "smoke", "--residual", "cayley", "--out", folder),
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wanted = wanted or int.from_bytes(os.urandom(1)) % 30 + 3
    deadline = time.monotonic() + 120
    log = folder / "metrics.jsonl"
    while process.poll() is None and time.monotonic() < deadline:
        if log.exists() and log.read_bytes().count(b"\n") >= wanted:
            break
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it ended before it was killed"
    killed_at = log.read_bytes().count(b"\n")
    resumed = train(folder, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert contents(folder / "checkpoints") == contents(finished / "checkpoints"), f"killed at step {killed_at}"
    name = "evaluation-00000040.json"
    assert (folder / name).read_bytes() == (finished / name).read_bytes()
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    assert [entry["step"] for entry in entries if entry["kind"] == "train"] == [*range(1, 41)]
    assert [entry["step"] for entry in entries if entry["kind"] == "probe"] == [1, 40]
    assert [entry["step"] for entry in entries if entry["kind"] == "evaluation"] == [40]


def test_a_run_stopped_by_the_clock_goes_on(finished, tmp_path):
    folder = tmp_path / "stopped"
    said = []
    result = running.train(spec(), folder, seconds=1e-9, say=said.append)
    assert result["steps"] < 40
    assert result["complete"] is False
    assert "--resume goes on" in said[-1]
    assert running.train(spec(), folder, resume=True, say=said.append)["complete"] is True
    assert contents(folder / "checkpoints") == contents(finished / "checkpoints")


def test_resuming_a_finished_run_changes_nothing(finished):
    before = {k: v for k, v in contents(finished).items() if k != "run.json"}
    assert running.train(spec(), finished, resume=True, say=lambda text: None)["complete"] is True
    assert {k: v for k, v in contents(finished).items() if k != "run.json"} == before


@pytest.fixture
def damaged(finished, tmp_path):
    folder = tmp_path / "damaged"
    for name, data in contents(finished).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    path = folder / "checkpoints" / "step-00000040" / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    return folder


def test_evaluating_a_damaged_checkpoint_names_the_file_and_the_last_good_step(damaged):
    done = subprocess.run(command("evaluate", "--run", damaged), cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "step-00000040/weights.safetensors: damaged" in done.stderr
    assert "the last good step is 30" in done.stderr
    assert running.evaluate_run(damaged, step=30)["step"] == 30


def test_resuming_from_a_damaged_checkpoint_goes_on_from_the_last_good_one(finished, damaged):
    said = []
    running.train(spec(), damaged, resume=True, say=said.append)
    assert any("skipped a damaged checkpoint" in line and "step-00000040" in line for line in said)
    assert "going on from step 30" in said
    assert contents(damaged / "checkpoints") == contents(finished / "checkpoints")


def test_evaluation_of_a_checkpoint_repeats_that_of_training(finished, tmp_path):
    name = "evaluation-00000040.json"
    before = (finished / name).read_bytes()
    done = subprocess.run(command("evaluate", "--run", finished), cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (finished / name).read_bytes() == before
    assert "step 40 held_out (4 pairs): token_accuracy" in done.stdout


def test_a_folder_in_use_is_refused(finished, tmp_path):
    with pytest.raises(ValueError, match="not empty; pass --resume to go on"):
        running.train(spec(), finished)
    with pytest.raises(ValueError, match="holds another run, residual is 'cayley', not 'sinkhorn'; seed is 0, not 1"):
        running.train(spec("sinkhorn", seed=1), finished, resume=True)


def test_a_folder_of_something_else_is_never_taken_over(tmp_path):
    notes = tmp_path / "metrics.jsonl"
    notes.write_text("my own notes")
    with pytest.raises(ValueError, match=r"holds metrics\.jsonl but no config\.json"):
        running.train(spec(), tmp_path, resume=True)
    assert notes.read_text() == "my own notes"


def test_a_run_killed_while_writing_its_settings_starts(tmp_path):
    (tmp_path / "config.partial").write_text("{")
    result = running.train(spec(), tmp_path, resume=True, seconds=1e-9, say=lambda text: None)
    assert result["steps"] == 0


def test_folders_that_are_no_runs_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no run is here \(config.json is missing\)"):
        running.evaluate_run(tmp_path)
    (tmp_path / "config.json").write_text('{"preset": ')
    with pytest.raises(ValueError, match=r"config\.json: damaged settings"):
        running.evaluate_run(tmp_path)


def test_a_run_without_checkpoints_cannot_be_evaluated(tmp_path):
    running.write_json(tmp_path / "config.json", spec().to_json())
    with pytest.raises(CheckpointError, match="no checkpoint"):
        running.evaluate_run(tmp_path)


def test_extra_tasks_join_the_data(tmp_path):
    folder = tmp_path / "extra"
    folder.mkdir()
    pair = {"input": [[1, 2]], "output": [[2, 1]]}
    (folder / "swap.json").write_text(json.dumps({"train": [pair], "test": [pair | {"input": [[3, 4]]}]}))
    settings = preset("smoke")
    plain, more = running.build_data(settings), running.build_data(settings, [folder])
    assert len(more.tasks) == len(plain.tasks) + 1
    assert more.sha256 != plain.sha256


def test_a_damaged_evaluation_of_a_finished_run_is_made_again(finished):
    path = finished / "evaluation-00000040.json"
    before = path.read_bytes()
    path.write_bytes(before[:100])
    running.train(spec(), finished, resume=True, say=lambda text: None)
    assert path.read_bytes() == before


def test_the_hash_of_the_data_covers_what_is_held_out(tmp_path):
    hashes = []
    for output in ([[2, 1]], [[1, 1]]):
        folder = tmp_path / f"extra{output[0][0]}"
        folder.mkdir()
        demo = {"input": [[1, 2]], "output": [[2, 1]]}
        test = {"input": [[3, 4]], "output": output}
        (folder / "swap.json").write_text(json.dumps({"train": [demo], "test": [test]}))
        settings = preset("smoke")
        wide = dataclasses.replace(settings, data=dataclasses.replace(settings.data, limit=None))
        hashes.append(running.build_data(wide, [folder]).sha256)
    assert hashes[0] != hashes[1]
