"""The command ``python -m benchmarks optim``: Adam over many small parameters, and solvers on an eigenspace."""

from __future__ import annotations

from benchmarks import command
from benchmarks.optim import adam, solvers


def main(arguments: list[str]) -> int:
    """Run both parts."""
    return command.main("optim", {"adam": adam.run, "eigenspace": solvers.run}, arguments)
