"""The command ``python -m benchmarks spectrum``: predictions against drawn and measured Jacobians."""

from __future__ import annotations

from benchmarks import command
from benchmarks.spectrum import gates, trained


def main(arguments: list[str]) -> int:
    """Run both parts."""
    return command.main("spectrum", {"gates": gates.run, "trained": trained.run}, arguments)
