"""One run in its folder: settings, log, checkpoints and evaluations, started or taken up again."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from benchmarks import environment, memory
from benchmarks.arc import answers, buckets, checkpoint, dataset, flops, processes, tasks
from benchmarks.arc.arms import Arm
from benchmarks.arc.boards import Board
from benchmarks.arc.dataset import ArcData
from benchmarks.arc.evaluation import Predictor, summary
from benchmarks.arc.files import write_json
from benchmarks.arc.log import Log
from benchmarks.arc.mini_arc import load_mini_arc
from benchmarks.arc.presets import Preset
from benchmarks.arc.stopping import Stopped, asked
from benchmarks.arc.training import Trainer, TrainingError

_CONFIG, _METRICS, _CHECKPOINTS, _RESULT = "config.json", "metrics.jsonl", "checkpoints", "run.json"

_SOURCES = {"arc-agi-1": tasks.load_arc_agi_1, "mini-arc": load_mini_arc}

Listener = Callable[[int, dict[str, float]], None]


def build_data(preset: Preset, extra_task_dirs: Sequence[Path] = ()) -> ArcData:
    """Make the data of a preset from its collections of tasks and folders of further ones.

    The variants are those of seed 0 in every run, so that arms and seeds meet the same puzzles.
    """
    collected = [task for source in preset.data.sources for task in _SOURCES[source]()]
    chosen = tasks.subset(collected, preset.data.max_side, preset.data.limit)
    # The limit is on the collections: whoever names a folder wants its tasks.
    for folder in extra_task_dirs:
        chosen.extend(tasks.subset(tasks.load_task_dir(folder), preset.data.max_side))
    return dataset.build(chosen, side=preset.model.side, variants=preset.data.variants, seed=0, split=preset.data.split)


@dataclass(frozen=True)
class RunSpec:
    """What a run is: settings, arm, seed and further task folders."""

    preset: Preset
    arm: Arm
    seed: int
    extra_task_dirs: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        # So that a run is the same run from any working directory.
        object.__setattr__(self, "extra_task_dirs", tuple(Path(folder).resolve() for folder in self.extra_task_dirs))
        self.arm.check(self.preset.model.streams)

    def to_json(self) -> dict[str, Any]:
        """Return the settings as JSON values."""
        return {
            "preset": self.preset.to_json(),
            "residual": self.arm.text,
            "seed": self.seed,
            "extra_task_dirs": [str(folder) for folder in self.extra_task_dirs],
        }

    @classmethod
    def load(cls, folder: Path) -> RunSpec:
        """Read the settings of a run's folder.

        Raises
        ------
        FileNotFoundError, ValueError
            If the folder is no run, or its settings are damaged; the message names the file.
        """
        path = folder / _CONFIG
        if not path.is_file():
            raise FileNotFoundError(f"{folder}: no run is here ({_CONFIG} is missing)")
        try:
            config = json.loads(path.read_text())
            return cls(
                Preset.from_json(config["preset"]),
                Arm.parse(config["residual"]),
                config["seed"],
                tuple(Path(text) for text in config["extra_task_dirs"]),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}: damaged settings ({error!r})") from error


def train(
    spec: RunSpec,
    folder: Path,
    *,
    resume: bool = False,
    seconds: float | None = None,
    budget: float | None = None,
    data: ArcData | None = None,
    listen: Listener = lambda step, measures: None,
    say: Callable[[str], None] = print,
    tensorboard: bool = False,
    device: str = "cpu",
    shard: bool = False,
) -> dict[str, Any]:
    """Train a run to its last step, or until the time is up, and evaluate it.

    Parameters
    ----------
    spec : RunSpec
        What to run.
    folder : Path
        Where it lives. Without ``resume`` a folder that holds anything is refused.
    resume : bool
        Go on from the last good checkpoint where there is one, and start otherwise.
    seconds : float, optional
        Stop cleanly, with a checkpoint, after that long.
    budget : float, optional
        Seconds of training, compilation and interruptions not counted, after which the run is complete whatever its
        step.
    data : ArcData, optional
        Made from the settings if not given.
    listen : Callable
        Called with the step and its measures after every step.
    say : Callable
        Gets one line of text where there is something to say.
    tensorboard : bool
        Also log to the run's folder ``tensorboard``.
    device : str
        Where to train.
    shard : bool
        Whether each of several processes keeps its rows of the large matrices alone. No part of what the run is: it may
        go on without, and one process has nothing to share.

    Returns
    -------
    dict
        The run's entry in a comparison; also written to ``run.json``.

    Raises
    ------
    ValueError
        If the folder holds another run, or anything at all without ``resume``, or a time is not finite and positive.
    TrainingError
        If the loss stops being finite; the last good checkpoint is kept.
    OSError
        If the disk is full, say; the message names the file and the last good checkpoint.
    Stopped
        If an interrupt or SIGTERM came: after the step and a checkpoint of it.
    """
    begun = time.monotonic()
    check_seconds(seconds=seconds, budget=budget)
    data = data if data is not None else build_data(spec.preset, spec.extra_task_dirs)
    trainer = Trainer(spec.preset, spec.arm, spec.seed, data, device, shard=shard)
    if shard and not trainer.sharded:
        say("one process holds the whole model, there is nothing to shard")
    processes.on_first(lambda: _open(folder, spec, data, resume))
    log = Log(folder / _METRICS)
    _take_up(trainer, folder, log, say)
    before = _result_so_far(folder) if trainer.step_number else {}

    board = Board(folder, trainer.step_number) if tensorboard and processes.rank() == 0 else None
    settings = spec.preset.train
    spent = processes.from_first(log.seconds())
    saved = began = trainer.step_number
    stopped = False
    peak = None
    if saved < settings.steps and (budget is None or spent < budget):
        peak = _warm_up(trainer)
        environment.reset_peak_memory(device)
    with asked() as interrupted:
        while trainer.step_number < settings.steps and (budget is None or spent < budget):
            late = seconds is not None and time.monotonic() - begun > seconds
            stopped = processes.from_first(late or interrupted())
            if stopped:
                break
            started = time.perf_counter()
            try:
                measures = trainer.step()
            except TrainingError as error:
                raise TrainingError(f"{error}; {_what_is_left(folder)}") from error
            step = trainer.step_number
            took = time.perf_counter() - started
            # All processes must stop at the same step, and only one of them measures.
            spent = processes.from_first(spent + took) if budget is not None else spent + took
            log.write({"kind": "train", "step": step, **measures, "seconds": took})
            listen(step, measures)
            if board is not None:
                board(step, measures)
            last = step == settings.steps or (budget is not None and spent >= budget)
            if step == 1 or step % settings.probe_every == 0 or last:
                log.write({"kind": "probe", "step": step, **trainer.probe()})
            if step % settings.evaluate_every == 0 or last:
                evaluated = answers.write(predictor(spec, data, trainer.weights(), device), data, folder, step)
                log.write({"kind": "evaluation", **summary(evaluated)})
                if board is not None:
                    board.scores(step, evaluated)
            # Last, so that a checkpoint vouches for everything logged and evaluated up to its step.
            if step % settings.checkpoint_every == 0 or last:
                log.flush()
                _save(trainer, folder)
                saved = step
    if board is not None:
        board.close()
    if saved < trainer.step_number:
        _save(trainer, folder)
    if stopped:
        why = "" if seconds is None or interrupted() else f" after {seconds:g} s"
        say(f"stopped{why} at step {trainer.step_number} of {settings.steps}; --resume goes on")
    end = trainer.step_number
    if not stopped and not processes.from_first(answers.are_whole(folder, end)):
        answers.write(predictor(spec, data, trainer.weights(), device), data, folder, end)
    # A process that made no step says nothing about the run.
    peaks = [before.get("peak_memory_mib"), *((peak, environment.peak_memory_mib(device)) if end > began else ())]
    result = {
        "arm": spec.arm.text,
        "seed": spec.seed,
        "steps": end,
        "complete": not stopped,
        "seconds": log.seconds(),
        "peak_memory_mib": max((one for one in peaks if one is not None), default=None),
        "parameters": sum(p.numel() for p in trainer.parameters.values()),
        "mixing_parameters": trainer.mixing_parameters,
        "table_parameters": trainer.table.numel(),
        "segment_gflops": flops.mean_segment(spec.preset.model, spec.arm, trainer.shares, train=True) / 1e9,
        "processes": processes.world(),
        "sharded": trainer.sharded,
        "evaluation": None if stopped else answers.path(folder, end).name,
        "metrics": _METRICS,
        "environments": _environments(folder, before, began, end),
    }
    processes.on_first(lambda: write_json(folder / _RESULT, result))
    if stopped and interrupted():
        raise Stopped(result)
    return result


def predictor(spec: RunSpec, data: ArcData, weights: dict[str, Tensor], device: str = "cpu") -> Predictor:
    """Make a run's weights ready to answer, in the buckets that it was trained in."""
    sides = buckets.id_sides(data, spec.preset.data.buckets)
    return Predictor(spec.preset, spec.arm, weights, device, sides)


def evaluate_run(folder: Path, step: int | None = None, device: str = "cpu") -> dict[str, Any]:
    """Evaluate a checkpoint of a run, the last one by default, and write ``evaluation-STEP.json`` into its folder.

    Raises
    ------
    CheckpointError
        If the checkpoint is missing or damaged; the message names the file and the last good step.
    """
    spec = RunSpec.load(folder)
    found, files, _ = checkpoint.load_step(folder / _CHECKPOINTS, step)
    data = build_data(spec.preset, spec.extra_task_dirs)
    check_data(folder, data)
    try:
        ready = predictor(spec, data, files["weights"], device)
    except ValueError as error:
        raise ValueError(f"{folder / _CHECKPOINTS / f'step-{found:08d}'}: {error}") from error
    return answers.write(ready, data, folder, found)


def _open(folder: Path, spec: RunSpec, data: ArcData, resume: bool) -> None:
    if folder.exists() and any(folder.iterdir()):
        if not resume:
            raise ValueError(f"{folder}: not empty; pass --resume to go on, or name another folder")
        if (folder / _CONFIG).exists():
            present = RunSpec.load(folder)
            # Folders may lie elsewhere on another machine; that their tasks are the same is in the hash of the data.
            if replace(present, extra_task_dirs=spec.extra_task_dirs) != spec:
                raise ValueError(f"{folder}: holds another run, {_difference(present, spec)}")
            check_data(folder, data)
            if present != spec:
                kept = json.loads((folder / _CONFIG).read_text())
                write_json(folder / _CONFIG, {**kept, "extra_task_dirs": spec.to_json()["extra_task_dirs"]})
            return
        foreign = sorted(path.name for path in folder.iterdir() if path.name != f"{Path(_CONFIG).stem}.partial")
        if foreign:
            raise ValueError(
                f"{folder}: holds {', '.join(foreign[:3])} but no {_CONFIG}, so it is no run that could go on; "
                "name another folder"
            )
    folder.mkdir(parents=True, exist_ok=True)
    write_json(
        folder / _CONFIG,
        {**spec.to_json(), "data_sha256": data.sha256, "split": data.split.describe(), **environment.describe()},
    )


def _difference(present: RunSpec, wanted: RunSpec) -> str:
    old, new = _flat(present.to_json()), _flat(wanted.to_json())
    return "; ".join(f"{key} is {old.get(key)!r}, not {new.get(key)!r}" for key in new if old.get(key) != new.get(key))


def _flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat |= _flat(item, f"{prefix}{key}.") if isinstance(item, dict) else {f"{prefix}{key}": item}
    return flat


def check_seconds(**given: float | None) -> None:
    """Raise a ValueError if a time, named as the caller calls it, is not finite and positive."""
    for name, value in given.items():
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"{name}: expected a finite number of seconds above 0, got {value}")


def check_data(folder: Path, data: ArcData) -> None:
    """Raise a ValueError if a run was trained on other data."""
    expected = json.loads((folder / _CONFIG).read_text()).get("data_sha256")
    if not isinstance(expected, str):
        raise ValueError(f"{folder / _CONFIG}: damaged settings (data_sha256 is missing)")
    if data.sha256 != expected:
        raise ValueError(f"{folder}: trained on data {expected[:16]}, but the data here are {data.sha256[:16]}")


def _take_up(trainer: Trainer, folder: Path, log: Log, say: Callable[[str], None]) -> None:
    good, faults = checkpoint.last_good(folder / _CHECKPOINTS)
    for fault in faults:
        say(f"skipped a damaged checkpoint: {fault}")
    if good is not None:
        _, files, state = checkpoint.load_step(folder / _CHECKPOINTS, good)
        trainer.load_state(files, state)
        say(f"going on from step {good}")
    elif faults:
        say("no good checkpoint is left, starting again")
    log.cut(trainer.step_number)


def _result_so_far(folder: Path) -> dict[str, Any]:
    """Return what ``run.json`` says of the steps before, nothing if it is missing or damaged."""
    try:
        found = json.loads((folder / _RESULT).read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _environments(folder: Path, before: dict[str, Any], began: int, end: int) -> list[dict[str, Any]]:
    """Return machine, versions and revision of the run's steps: several where it went on elsewhere."""
    known: list[dict[str, Any]] = before.get("environments", [])
    if began and not known:
        config = json.loads((folder / _CONFIG).read_text())
        known = [{name: config[name] for name in ("git", "packages", "machine") if name in config}]
    here = environment.describe()
    return [*known, here] if not known or (end > began and here not in known) else known


def _warm_up(trainer: Trainer) -> float | None:
    """Do steps and undo them, so that what is compiled on the way is no arm's training time.

    Not in shards, whose whole state the first process alone has; arms are compared in one process.

    Returns
    -------
    float or None
        On a CPU the most MiB that a step allocates beyond what training keeps between two steps.
    """
    if trainer.sharded:
        return None
    peak = None
    files, state = trainer.state()
    before = {name: {key: t.detach().to("cpu", copy=True) for key, t in part.items()} for name, part in files.items()}
    # What is not finite here is not finite in the first step either, which can say so.
    with suppress(TrainingError):
        trainer.step()
        if trainer.device.type == "cpu":
            peak = memory.allocated_mib(trainer.step)
    trainer.load_state(before, state)
    return peak


def _save(trainer: Trainer, folder: Path) -> None:
    files, state = trainer.state()

    def save() -> None:
        try:
            checkpoint.save(folder / _CHECKPOINTS, trainer.step_number, files, state)
        except OSError as error:
            raise OSError(error.errno, f"{error.strerror}; {_what_is_left(folder)}", error.filename) from error

    processes.on_first(save)


def _what_is_left(folder: Path) -> str:
    good, _ = checkpoint.last_good(folder / _CHECKPOINTS)
    return "there is no checkpoint yet" if good is None else f"the last good checkpoint is that of step {good}"
