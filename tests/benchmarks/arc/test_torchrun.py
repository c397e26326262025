"""A worker that dies: torchrun starts all anew, and the run goes on from its last checkpoint."""

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
