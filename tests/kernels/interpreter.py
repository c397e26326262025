"""Triton's interpreter must be asked for before Triton is imported: a process of its own runs a test file again."""

import os
import re
import subprocess
import sys

import pytest
import torch

from jpmhc.kernels.bodies import interpreted


def bodies(*others):
    """Names and devices of the bodies under test: Triton's where the interpreter or a GPU runs them, and others."""
    if interpreted():
        return [("triton", "cpu")]
    return [*((name, "cpu") for name in others), *([("triton", "cuda")] if torch.cuda.is_available() else [])]


def run_again(file, *selection):
    """Run the tests of a file with Triton's bodies in the interpreter, all of which must pass; return how many did."""
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", file, *selection]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:]
    passed = re.search(r"\b(\d+) passed", done.stdout)
    return int(passed[1]) if passed else 0
