"""The command ``python -m benchmarks autodiff``: Sinkhorn and generic fixed points beside other libraries."""

from __future__ import annotations

from benchmarks import command
from benchmarks.autodiff import fixed_point, maps


def main(arguments: list[str]) -> int:
    """Run both parts."""
    return command.main("autodiff", {"sinkhorn": maps.run, "fixed point": fixed_point.run}, arguments)
