"""The command ``python -m benchmarks digits``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from benchmarks import comparison
from benchmarks.digits.images import Digits, images
from benchmarks.trainer import Problem, Schedule
from benchmarks.transformer import TransformerConfig


@dataclass(frozen=True)
class Preset:
    """A size: the network and the optimisation."""

    model: TransformerConfig
    schedule: Schedule


def _model(width: int, heads: int, blocks: int) -> TransformerConfig:
    return TransformerConfig(width=width, heads=heads, blocks=blocks, length=8, causal=False, pooled=True)


PRESETS: dict[str, Callable[[], Preset]] = {
    "quick": lambda: Preset(_model(8, 2, 1), Schedule(steps=20, batch=8, warmup=4)),
    "small": lambda: Preset(_model(32, 2, 2), Schedule(steps=150, batch=16, lr=5e-3, final_lr=1e-4, warmup=20)),
    "large": lambda: Preset(_model(1024, 16, 8), Schedule(steps=2000, batch=256, lr=3e-4, final_lr=3e-5, warmup=200)),
}


def problems(preset: str) -> list[Problem]:
    """Return the task with four and with eight streams."""
    size, data = PRESETS[preset](), images()
    return [Digits(f"{n}-streams", data, replace(size.model, streams=n), size.schedule) for n in (4, 8)]


def main(arguments: list[str]) -> int:
    """Run the benchmark."""
    digits = comparison.Benchmark("digits", tuple(PRESETS), problems, comparison.ARMS)
    return comparison.main(digits, arguments)
