"""Launchers: what they start is one run, and a worker that dies brings all back to the last checkpoint."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), ("--shard",)], ids=["whole", "shards"])
def test_a_killed_worker_is_restarted_and_the_run_goes_on(tmp_path, options):
    out = tmp_path / "run"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launcher, "--max-restarts", "1", "-m", "benchmarks", "arc", "train", "--preset", "smoke", "--resume"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*command, *options, "--out", str(out)], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
    )
    checkpoints = out / "checkpoints"
    deadline = time.monotonic() + 240
    while not (checkpoints / "step-00000010").is_dir() and time.monotonic() < deadline:
        time.sleep(0.02)
    workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(workers[-1]), signal.SIGKILL)
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 0
    assert "going on from step" in said
    result = json.loads((out / "run.json").read_text())
    assert (result["complete"], result["steps"], result["processes"]) == (True, 40, 2)
    assert result["sharded"] is bool(options)
    steps = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in steps if entry["kind"] == "train"] == list(range(1, 41))


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("accelerate") is None, reason="no accelerate here")
def test_accelerate_launch_starts_one_run_of_two_processes(tmp_path):
    # It imports timm where there is one, which may lack its torchvision.
    hidden = "import sys; sys.modules['timm'] = None; from accelerate.commands.accelerate_cli import main; main()"
    launcher = [sys.executable, "-c", hidden, "launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
    command = [*launcher, "--mixed_precision", "no", "--dynamo_backend", "no", "-m", "benchmarks", "arc", "train"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    arguments = ["--preset", "smoke", "--steps", "4", "--out", str(tmp_path / "run")]
    subprocess.run([*command, *arguments], cwd=ROOT, env=environment, check=True, timeout=240)
    result = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (result["complete"], result["steps"], result["processes"]) == (True, 4, 2)
