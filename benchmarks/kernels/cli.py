"""The command ``python -m benchmarks kernels``."""

from __future__ import annotations

from benchmarks import command
from benchmarks.kernels import gpu, roofline, small_maps, sublayer, systems


def main(arguments: list[str]) -> int:
    """Run all parts."""
    parts = {
        "small maps": small_maps.run,
        "roofline": roofline.run,
        "sublayer": sublayer.run,
        "GPU layer": gpu.layer,
        "GPU step": gpu.step,
        "nodes and launches": systems.count,
        "waiting": systems.wait,
    }
    return command.main("kernels", parts, arguments)
