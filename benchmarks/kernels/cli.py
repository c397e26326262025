"""The command ``python -m benchmarks kernels``."""

from __future__ import annotations

import torch

from benchmarks import command
from benchmarks.kernels import gpu, roofline, small_maps, sublayer, systems


def main(arguments: list[str]) -> int:
    """Run all parts: of the GPU alone where there is one, in five minutes; of the CPU elsewhere."""
    parts = {"roofline": roofline.run, "GPU layer": gpu.layer, "GPU step": gpu.step}
    if not torch.cuda.is_available():
        parts = {
            "small maps": small_maps.run,
            **parts,
            "sublayer": sublayer.run,
            "nodes and launches": systems.count,
            "waiting": systems.wait,
        }
    return command.main("kernels", parts, arguments)
