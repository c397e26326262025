"""The command ``python -m benchmarks optim``: Adam over many and over few parameters, and solvers on an eigenspace."""

from __future__ import annotations

from benchmarks import command
from benchmarks.optim import adam, solvers


def main(arguments: list[str]) -> int:
    """Run all parts."""
    return command.main("optim", {"adam": adam.run, "few parameters": adam.few, "eigenspace": solvers.run}, arguments)
