"""Several arms on the same data with the same seeds, and the file that a report is made of."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import environment
from benchmarks.arc.arms import Arm
from benchmarks.arc.evaluation import copy_scores
from benchmarks.arc.presets import Preset
from benchmarks.arc.progress import Display
from benchmarks.arc.run import RunSpec, build_data, train, write_json

COMPARISON = "comparison.json"


def compare(
    preset: Preset,
    arms: Sequence[Arm],
    seeds: int,
    folder: Path,
    *,
    resume: bool = False,
    extra_task_dirs: tuple[Path, ...] = (),
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
    device : str
        Where to train.

    Raises
    ------
    ValueError
        If an arm is named twice, there is none, or the folder holds something and ``resume`` is not set.
    """
    folders = [arm.folder for arm in arms]
    if not arms or len(set(folders)) < len(folders):
        raise ValueError(f"arms: expected at least one and none twice, got {' '.join(arm.text for arm in arms)!r}")
    if seeds < 1:
        raise ValueError(f"seeds: expected at least 1, got {seeds}")
    if folder.exists() and any(folder.iterdir()) and not resume:
        raise ValueError(f"{folder}: not empty; pass --resume to go on, or name another folder")
    data = build_data(preset, extra_task_dirs)
    comparison = {
        "preset": preset.name,
        "config": preset.to_json(),
        "split": data.split.describe(),
        "data_sha256": data.sha256,
        **environment.describe(),
        "copy": copy_scores(data),
        "arms": [arm.text for arm in arms],
        "seeds": list(range(seeds)),
        "runs": [],
    }
    folder.mkdir(parents=True, exist_ok=True)
    with Display(len(arms) * seeds, preset.train.steps) as display:
        display.say(data.split.describe())
        for seed in range(seeds):
            for arm in arms:
                here = Path(arm.folder) / f"seed-{seed}"
                display.begin(f"{arm.text} seed {seed}")
                result = train(
                    RunSpec(preset, arm, seed, extra_task_dirs),
                    folder / here,
                    resume=resume,
                    data=data,
                    listen=display.update,
                    say=display.say,
                    device=device,
                )
                display.end()
                paths = {key: str(here / result[key]) for key in ("evaluation", "metrics") if result[key]}
                comparison["runs"].append({**result, "folder": str(here), **paths})
                write_json(folder / COMPARISON, comparison)
    return comparison
