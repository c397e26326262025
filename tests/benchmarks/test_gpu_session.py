"""One command asks a GPU everything: each step is heard, whatever becomes of the others. Python is a stand-in here."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STAND_IN = """#!/bin/sh
echo "asked $*"
case "$*" in *"GPU step"*) echo "no kernel" >&2; exit 3;; esac
"""


def session(folder, *steps):
    python = folder / "python"
    python.write_text(STAND_IN)
    python.chmod(0o755)
    command = ["bash", "benchmarks/gpu.sh", str(folder / "out"), *steps]
    environment = {**os.environ, "PYTHON": str(python)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_a_step_that_fails_is_named_and_the_others_run(tmp_path):
    done = session(tmp_path)
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == f"failed or out of time: step; see {tmp_path / 'out'}"
    logs = {path.stem: path.read_text() for path in (tmp_path / "out").iterdir()}
    assert set(logs) == {"tests", "step", "layer", "roofline", "blocks", "throughput", "compiled"}
    assert logs["step"].endswith("no kernel\n")
    assert all(log.startswith("asked -m ") for log in logs.values())


def test_some_steps_alone(tmp_path):
    done = session(tmp_path, "roofline", "blocks")
    assert done.returncode == 0
    assert [line for line in done.stdout.splitlines() if line.startswith("==")] == ["== roofline", "== blocks"]
    assert session(tmp_path, "rofline").returncode == 1


@pytest.mark.parametrize("step", ["step", "layer", "roofline", "compiled"])
def test_parts_are_asked_for_by_names_that_there_are(step, tmp_path, monkeypatch):
    import torch

    from benchmarks import command
    from benchmarks.kernels import cli

    asked = session(tmp_path, step).stdout
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(command, "main", lambda name, parts, arguments: list(parts))
    assert any(f"--only {name} --out" in asked for name in cli.main([]))
