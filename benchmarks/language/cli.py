"""The command ``python -m benchmarks language``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from benchmarks import comparison
from benchmarks.language.model import NextCharacter
from benchmarks.language.text import corpus
from benchmarks.trainer import Problem, Schedule
from benchmarks.transformer import TransformerConfig


@dataclass(frozen=True)
class Preset:
    """A size: the network, the optimisation and the held-out windows."""

    model: TransformerConfig
    schedule: Schedule
    windows: int


PRESETS: dict[str, Callable[[], Preset]] = {
    "quick": lambda: Preset(
        TransformerConfig(width=8, heads=2, blocks=1, length=8), Schedule(steps=20, batch=4, warmup=4), 16
    ),
    "small": lambda: Preset(
        TransformerConfig(width=32, heads=2, blocks=2, length=32),
        Schedule(steps=300, batch=8, lr=5e-3, final_lr=2e-4, warmup=20),
        256,
    ),
    "medium": lambda: Preset(
        TransformerConfig(width=64, heads=4, blocks=2, length=64),
        Schedule(steps=1200, batch=16, lr=6e-3, final_lr=2e-4, warmup=60),
        256,
    ),
    # Three seeds side by side are meant to fit 80 GB with eight streams.
    "large": lambda: Preset(
        TransformerConfig(width=1024, heads=16, blocks=8, length=512),
        Schedule(steps=5000, batch=8, lr=3e-4, final_lr=3e-5, warmup=200),
        512,
    ),
}


def problems(preset: str) -> list[Problem]:
    """Return the task with four and with eight streams."""
    size, text = PRESETS[preset](), corpus()
    return [
        NextCharacter(f"{n}-streams", text, replace(size.model, streams=n), size.schedule, size.windows) for n in (4, 8)
    ]


def main(arguments: list[str]) -> int:
    """Run the benchmark."""
    language = comparison.Benchmark("language", tuple(PRESETS), problems, comparison.ARMS)
    return comparison.main(language, arguments)
