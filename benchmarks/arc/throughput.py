"""How fast the arms train at a size of grid, or in buckets of sizes: one minute each, on samples of noise."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import environment, memory
from benchmarks.arc import buckets, flops
from benchmarks.arc.arms import Arm
from benchmarks.arc.batches import Batches, epoch_shares
from benchmarks.arc.dataset import ArcData, build
from benchmarks.arc.files import write_json
from benchmarks.arc.presets import Preset
from benchmarks.arc.run import build_data, check_seconds
from benchmarks.arc.tasks import Pair, Task
from benchmarks.arc.training import Trainer
from benchmarks.command import show

_WARM_UP = 3  # steps of every side


def throughput(
    preset: Preset,
    arms: Sequence[Arm],
    out: Path,
    *,
    seconds: float = 60.0,
    device: str = "cpu",
    shares: Sequence[float] = (),
) -> list[dict[str, Any]]:
    """Time training steps of every arm, one after the other, and write a JSON file after each.

    Parameters
    ----------
    preset : Preset
        With buckets, a step in each of them is timed.
    arms : sequence of Arm
    out : Path
        File to write.
    seconds : float
        For each arm.
    device : str
    shares : sequence of float
        How many steps fall on each bucket, in any unit; unless given as many as the preset's samples without variants.

    Returns
    -------
    list of dict
        Arm, steps, steps and samples a second, operations a sample and TFLOP/s by the closed form, peak memory, and the
        ratio of the step's time to that of the first arm. Times are medians. With buckets a row for each, with its
        share of the steps, and then one for the mean step, whose memory is that of all buckets. On a GPU memory is the
        most allocated, on a CPU the most that a step on the largest side allocates beyond what training keeps.

    Raises
    ------
    ValueError
        For an arm that cannot be made, shares that do not fit the buckets, seconds that are not finite and positive, or
        a folder that is not there.

    Notes
    -----
    The first steps of every side, compilation among them, are not counted. Work does not depend on what the grids show.
    """
    if not out.parent.is_dir():
        raise ValueError(f"{out.parent}: the folder does not exist")
    check_seconds(seconds=seconds)
    for arm in arms:
        arm.check(preset.model.streams)
    parts, origin = _shares(preset, shares)
    bucketed = bool(preset.data.buckets)
    # A bucket without samples is not trained in.
    timed = preset.changed(buckets=tuple(parts) if bucketed else None)
    data = _noise(parts, preset.model.side)
    place = f"at {preset.model.side} x {preset.model.side}{' in buckets' if bucketed else ''}"
    title = f"training {place}, batch {preset.train.batch}, {device}"
    written = {"preset": preset.to_json(), "device": device, **environment.describe()}
    if bucketed:
        title += f"; mean step of a run with {origin}"
        written |= {"shares": {str(side): share for side, share in parts.items()}, "shares_from": origin}
    rows: list[dict[str, Any]] = []
    for arm in arms:
        environment.reset_peak_memory(device)
        trainer = Trainer(timed, arm, 0, data, device)
        took = _times(trainer, seconds)
        peak = _peak(trainer) if trainer.device.type == "cpu" else environment.peak_memory_mib(device)
        rows += _rows(timed, arm, parts, took, peak, rows)
        write_json(out, {**written, "rows": rows})
    show(title, rows)
    return rows


def _shares(preset: Preset, given: Sequence[float]) -> tuple[dict[int, float], str]:
    """Return the part of the steps that works on each side, one in sum, and where that is from."""
    sides = preset.data.buckets
    if given:
        if len(given) != len(sides) or not all(0 < share < np.inf for share in given):
            raise ValueError(f"shares: expected a positive number for each of the buckets {sides}, got {given}")
        return {side: share / sum(given) for side, share in zip(sides, given, strict=True)}, "the shares given"
    if not sides:
        return {preset.model.side: 1.0}, ""
    # All variants of a task are in one bucket, and differ by what each loses to the held-out pairs, if at all; a
    # thousand of them would take gigabytes.
    parts = buckets.divide(build_data(preset.changed(variants=1)), sides).values()
    streams = [Batches(part, 1, 0, translate=False) for part in parts]
    return epoch_shares(streams), "the buckets' shares of the preset's samples, without variants"


def _times(trainer: Trainer, seconds: float) -> dict[int, list[float]]:
    """Return the seconds of steps of every side, the first ones left out."""
    took: dict[int, list[float]] = {side: [] for side in trainer.shares}
    while min(map(len, took.values())) <= _WARM_UP or sum(sum(own[_WARM_UP:]) for own in took.values()) < seconds:
        started = time.perf_counter()
        trainer.step()  # reads its loss, so the device has finished
        took[trainer.stream.data.side].append(time.perf_counter() - started)
    return {side: own[_WARM_UP:] for side, own in took.items()}


def _peak(trainer: Trainer) -> float:
    """Return the most MiB that a step on the largest side allocates on a CPU beyond what training keeps."""
    while True:
        peak = memory.allocated_mib(trainer.step)
        if trainer.stream.data.side == max(trainer.shares):
            return peak


def _rows(
    preset: Preset,
    arm: Arm,
    parts: Mapping[int, float],
    took: Mapping[int, Sequence[float]],
    peak: float | None,
    before: Sequence[dict[str, Any]],
) -> list[dict[str, Any]]:
    """Return what is shown of an arm: its buckets and their mean, or one row where there are no buckets."""
    medians = {side: float(np.median(own)) for side, own in took.items()}
    operations = {side: flops.segment(replace(preset.model, side=side), arm, train=True) for side in took}
    lines = [(side, parts[side], len(took[side]), medians[side], operations[side], None) for side in took]
    mean, mean_operations = (sum(parts[side] * own[side] for side in took) for own in (medians, operations))
    lines.append(("mean", 1.0, sum(map(len, took.values())), mean, mean_operations, peak))
    if not preset.data.buckets:
        lines = lines[-1:]
    rows = []
    for line, (bucket, share, steps, seconds, sample, most) in enumerate(lines):
        rows.append(
            {
                "arm": arm.text,
                **({"bucket": bucket, "share": share} if preset.data.buckets else {}),
                "steps": steps,
                "steps_a_second": 1 / seconds,
                "samples_a_second": preset.train.batch / seconds,
                "gflop_a_sample": sample / 1e9,
                "tflops": sample * preset.train.batch / seconds / 1e12,
                "peak_mib": most,
                "ratio": seconds * before[line]["steps_a_second"] if before else 1.0,
            }
        )
    return rows


def _noise(sides: Iterable[int], whole: int) -> ArcData:
    """Return as many tasks for every side, whose grids fill it."""
    rng = np.random.default_rng(0)

    def pair(side: int) -> Pair:
        return Pair(*rng.integers(0, 10, (2, side, side), dtype=np.uint8))

    tasks = [
        Task(f"noise-{side}-{n}", "extra", (pair(side), pair(side)), (pair(side),)) for side in sides for n in range(8)
    ]
    return build(tasks, side=whole, variants=1, seed=0)
