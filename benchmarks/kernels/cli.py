"""The command ``python -m benchmarks kernels``."""

from __future__ import annotations

import torch

from benchmarks import command
from benchmarks.kernels import few_tokens, gpu, roofline, small_maps, sublayer, systems


def main(arguments: list[str]) -> int:
    """Run the parts of the GPU where there is one, what compiles longest last, else those of the CPU."""
    parts = {"roofline": roofline.run, "GPU step": gpu.step, "GPU layer": gpu.layer, "GPU compiled": gpu.compiled}
    if not torch.cuda.is_available():
        parts = {
            "small maps": small_maps.run,
            **parts,
            "sublayer": sublayer.run,
            "few tokens": few_tokens.run,
            "nodes and launches": systems.count,
            "waiting": systems.wait,
        }
    return command.main("kernels", parts, arguments)
