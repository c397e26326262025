"""The command ``python -m benchmarks rotations``."""

from __future__ import annotations

from benchmarks import comparison
from benchmarks.rotations import presets
from benchmarks.rotations.claims import claims


def main(arguments: list[str]) -> int:
    """Run the benchmark; the seeds are the published ones."""
    rotations = comparison.Benchmark(
        "rotations", tuple(presets.PRESETS), presets.problems, comparison.ARMS, claims=claims
    )
    return comparison.main(rotations, arguments)
