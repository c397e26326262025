"""Several arms on the same data with the same seeds, and the file that a report is made of."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import environment
from benchmarks.arc.arms import Arm
from benchmarks.arc.evaluation import constant_scores, copy_scores
from benchmarks.arc.files import write_json
from benchmarks.arc.presets import Preset
from benchmarks.arc.progress import Display
from benchmarks.arc.run import RunSpec, build_data, check_seconds, train
from benchmarks.arc.stopping import Stopped
from benchmarks.arc.training import TrainingError

COMPARISON = "comparison.json"
# What is known of a run that failed.
_UNFINISHED = {
    "steps": 0,
    "complete": False,
    "seconds": 0.0,
    "peak_memory_mib": None,
    "parameters": 0,
    "mixing_parameters": 0,
    "segment_gflops": None,
    "evaluation": None,
    "metrics": None,
}


def compare(
    preset: Preset,
    arms: Sequence[Arm],
    seeds: int,
    folder: Path,
    *,
    resume: bool = False,
    extra_task_dirs: tuple[Path, ...] = (),
    arm_seconds: float | None = None,
    seconds: float | None = None,
    tensorboard: bool = False,
    device: str = "cpu",
) -> dict[str, Any]:
    """Train every arm with every seed, one after the other, and write ``comparison.json`` after each.

    Seeds are the outer loop, so that a comparison that is stopped holds whole sets of arms. With the same seed all
    arms start from the same branches and heads and see the same stream of samples.

    Parameters
    ----------
    preset : Preset
        Settings of every run.
    arms : sequence of Arm
        At least one.
    seeds : int
        Seeds 0 to ``seeds - 1``.
    folder : Path
        Holds a folder a run, ``ARM/seed-K``.
    resume : bool
        Go on where runs or parts of runs exist.
    extra_task_dirs : tuple of Path
        Folders of further tasks.
    arm_seconds : float, optional
        Seconds of training for every run, which then ends at whatever step it is.
    seconds : float, optional
        Stop cleanly after that long.
    tensorboard : bool
        Also log to a folder ``tensorboard`` in every run.
    device : str
        Where to train.

    Raises
    ------
    ValueError
        If an arm is named twice, there is none, a time is not finite and positive, or the folder holds something and
        ``resume`` is not set.
    Stopped
        If an interrupt or SIGTERM came; the run that was training is in the file as far as it went.
    """
    begun = time.monotonic()
    folders = [arm.folder for arm in arms]
    if not arms or len(set(folders)) < len(folders):
        raise ValueError(f"arms: expected at least one and none twice, got {' '.join(arm.text for arm in arms)!r}")
    if seeds < 1:
        raise ValueError(f"seeds: expected at least 1, got {seeds}")
    check_seconds(arm_seconds=arm_seconds, seconds=seconds)
    if folder.exists() and any(folder.iterdir()) and not resume:
        raise ValueError(f"{folder}: not empty; pass --resume to go on, or name another folder")
    specs = {(seed, arm.text): RunSpec(preset, arm, seed, extra_task_dirs) for seed in range(seeds) for arm in arms}
    data = build_data(preset, extra_task_dirs)
    comparison: dict[str, Any] = {
        "preset": preset.name,
        "config": preset.to_json(),
        "split": data.split.describe(),
        "data_sha256": data.sha256,
        **environment.describe(),
        "copy": copy_scores(data),
        "constant": constant_scores(data),
        "arms": [arm.text for arm in arms],
        "seeds": list(range(seeds)),
        "arm_seconds": arm_seconds,
        "runs": [],
    }
    if (folder / COMPARISON).exists():
        _add_to(comparison, folder / COMPARISON)
    folder.mkdir(parents=True, exist_ok=True)
    # So that whatever stops the first run, there is a comparison to show.
    write_json(folder / COMPARISON, comparison)
    with Display(len(arms) * seeds, preset.train.steps) as display:
        display.say(data.split.describe())
        for seed in range(seeds):
            for arm in arms:
                here = Path(arm.folder) / f"seed-{seed}"
                display.begin(f"{arm.text} seed {seed}")
                left = None if seconds is None else seconds - (time.monotonic() - begun)
                if left is not None and left <= 0:
                    display.say(f"stopped after {seconds:g} s; --resume goes on")
                    return comparison
                try:
                    result = train(
                        specs[seed, arm.text],
                        folder / here,
                        resume=resume,
                        data=data,
                        listen=display.update,
                        say=display.say,
                        seconds=left,
                        budget=arm_seconds,
                        tensorboard=tensorboard,
                        device=device,
                    )
                except Stopped as stop:
                    _record(comparison, folder, here, stop.result)
                    raise
                except TrainingError as error:
                    # One arm that diverges is a result, and no reason to lose the others.
                    display.say(f"failed: {error}")
                    where = {"environments": [environment.describe()]}
                    result = {**_UNFINISHED, **where, "arm": arm.text, "seed": seed, "fault": str(error)}
                display.end()
                _record(comparison, folder, here, result)
    return comparison


def _record(comparison: dict[str, Any], folder: Path, here: Path, result: dict[str, Any]) -> None:
    """Put the result of a run in the place of an earlier one, and write the comparison."""
    key = result["arm"], result["seed"]
    others = [run for run in comparison["runs"] if (run["arm"], run["seed"]) != key]
    paths = {name: str(here / result[name]) for name in ("evaluation", "metrics") if result[name]}
    comparison["runs"] = [*others, {**result, "folder": str(here), **paths}]
    _place(comparison)
    write_json(folder / COMPARISON, comparison)


def _add_to(comparison: dict[str, Any], path: Path) -> None:
    """Take over what an earlier call compared, if it compared the same thing."""
    try:
        before = json.loads(path.read_text())
        # Read as settings, so that one written before a setting existed goes on with its default.
        same = Preset.from_json(before["config"]) == Preset.from_json(comparison["config"])
        same &= before["data_sha256"] == comparison["data_sha256"]
        same &= before.get("arm_seconds") == comparison["arm_seconds"]
        arms, seeds, runs = before["arms"], before["seeds"], before["runs"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: damaged ({error!r})") from error
    if not same:
        raise ValueError(f"{path}: compares other settings or data; name another folder")
    comparison["arms"] = [*arms, *(arm for arm in comparison["arms"] if arm not in arms)]
    comparison["seeds"] = sorted({*seeds, *comparison["seeds"]})
    origin = {name: before[name] for name in ("git", "packages", "machine") if name in before}
    comparison["runs"] = [{"environments": [origin], **run} for run in runs]
    _place(comparison)


def _place(comparison: dict[str, Any]) -> None:
    """Say where the runs were made, which need not be where the comparison goes on."""
    found = [one for run in comparison["runs"] for one in run["environments"]]
    comparison |= environment.merged(found)
