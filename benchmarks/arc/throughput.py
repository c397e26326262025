"""How fast the arms train at a size of grid: one minute each, on samples of noise."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import environment
from benchmarks.arc import flops
from benchmarks.arc.arms import Arm
from benchmarks.arc.dataset import ArcData, build
from benchmarks.arc.files import write_json
from benchmarks.arc.presets import Preset
from benchmarks.arc.tasks import Pair, Task
from benchmarks.arc.training import Trainer
from benchmarks.command import show

_WARM_UP = 3


def throughput(
    preset: Preset, arms: Sequence[Arm], out: Path, *, seconds: float = 60.0, device: str = "cpu"
) -> list[dict[str, Any]]:
    """Time training steps of every arm, one after the other, and write a JSON file after each.

    Returns
    -------
    list of dict
        Arm, steps, steps and samples a second, TFLOP/s by the closed form, peak memory, and the median step's ratio
        to the first arm's.

    Notes
    -----
    The first steps, compilation among them, are not counted. Work does not depend on what the grids show.
    """
    if not out.parent.is_dir():
        raise ValueError(f"{out.parent}: the folder does not exist")
    data = _noise(preset.model.side)
    rows: list[dict[str, Any]] = []
    for arm in arms:
        arm.check(preset.model.streams)
        environment.reset_peak_memory(device)
        trainer = Trainer(preset, arm, 0, data, device)
        for _ in range(_WARM_UP):
            trainer.step()
        took: list[float] = []
        while sum(took) < seconds:
            started = time.perf_counter()
            trainer.step()  # reads its loss, so the device has finished
            took.append(time.perf_counter() - started)
        median = float(np.median(took))
        operations = flops.segment(preset.model, arm, train=True) * preset.train.batch
        rows.append(
            {
                "arm": arm.text,
                "steps": len(took),
                "steps_a_second": 1 / median,
                "samples_a_second": preset.train.batch / median,
                "tflops": operations / median / 1e12,
                "peak_mib": environment.peak_memory_mib(device),
                "ratio": median * rows[0]["steps_a_second"] if rows else 1.0,
            }
        )
        write_json(out, {"preset": preset.to_json(), "device": device, **environment.describe(), "rows": rows})
        del trainer
    show(f"training at {preset.model.side} x {preset.model.side}, batch {preset.train.batch}, {device}", rows)
    return rows


def _noise(side: int) -> ArcData:
    rng = np.random.default_rng(0)

    def pair() -> Pair:
        return Pair(*rng.integers(0, 10, (2, side, side), dtype=np.uint8))

    tasks = [Task(f"noise-{n}", "extra", (pair(), pair()), (pair(),)) for n in range(8)]
    return build(tasks, side=side, variants=1, seed=0)
