"""The command ``python -m benchmarks kernels``."""

from __future__ import annotations

from benchmarks import command
from benchmarks.kernels import small_maps, sublayer, systems


def main(arguments: list[str]) -> int:
    """Run all parts."""
    parts = {
        "small maps": small_maps.run,
        "sublayer": sublayer.run,
        "nodes and launches": systems.count,
        "waiting": systems.wait,
    }
    return command.main("kernels", parts, arguments)
