"""The command ``python -m benchmarks arc train|evaluate|compare|report``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from benchmarks.extras import MissingExtra, require

tyro = require("tyro", "bench")
require("rich", "bench")
require("safetensors", "bench")


import torch  # noqa: E402

from benchmarks.arc import compare as comparing  # noqa: E402
from benchmarks.arc import report as reporting  # noqa: E402
from benchmarks.arc import run as running  # noqa: E402
from benchmarks.arc import table  # noqa: E402
from benchmarks.arc.arms import Arm  # noqa: E402
from benchmarks.arc.presets import preset as find_preset  # noqa: E402
from benchmarks.arc.progress import Display  # noqa: E402
from benchmarks.arc.publish import publish  # noqa: E402
from benchmarks.arc.training import TrainingError  # noqa: E402


@dataclass
class Train:
    """Train one arm; checkpoints, log and evaluation go to OUT."""

    out: Path
    """Folder of the run; refused if it holds anything, unless --resume is given."""
    preset: str = "demo"
    """Size of the experiment: smoke or demo."""
    residual: str = "cayley"
    """The arm: plain, or a mixer such as cayley or cayley:step=0.1."""
    seed: int = 0
    """Of the initial weights and of the order of the samples."""
    resume: bool = False
    """Go on from the last good checkpoint where there is one, start otherwise."""
    seconds: float | None = None
    """Stop cleanly after so many seconds."""
    steps: int | None = None
    """Optimiser steps, where not the preset's."""
    extra_task_dirs: tuple[Path, ...] = ()
    """Folders of further tasks in the ARC JSON format."""
    device: str = "cpu"
    """Where to train, a torch device."""

    def __call__(self) -> None:
        """Run the command."""
        spec = running.RunSpec(
            find_preset(self.preset).with_steps(self.steps), Arm.parse(self.residual), self.seed, self.extra_task_dirs
        )
        with Display(1, spec.preset.train.steps) as display:
            display.begin(f"{spec.arm.text} seed {spec.seed}")
            result = running.train(
                spec,
                self.out,
                resume=self.resume,
                seconds=self.seconds,
                listen=display.update,
                say=display.say,
                device=_device(self.device),
            )
        print(f"step {result['steps']} of {spec.preset.train.steps}, {self.out}")


@dataclass
class Evaluate:
    """Evaluate a checkpoint of a run; writes evaluation-STEP.json into its folder."""

    run: Path
    """Folder of the run."""
    step: int | None = None
    """Step of the checkpoint; the last one by default."""
    device: str = "cpu"
    """Where to run, a torch device."""

    def __call__(self) -> None:
        """Run the command."""
        result = running.evaluate_run(self.run, self.step, _device(self.device))
        for part in ("held_out", "train"):
            measures = {k: v for k, v in result[part].items() if not k.endswith("_se") and k not in ("count", "tasks")}
            shown = []
            for name, value in measures.items():
                error = result[part][f"{name}_se"]
                shown.append(f"{name} {value:.1%}" + ("" if error is None else f" +- {error:.1%}"))
            print(f"step {result['step']} {part} ({result[part]['count']} pairs): {', '.join(shown)}")


@dataclass
class Compare:
    """Train several arms with the same seeds and data, print their table and write OUT/report.html."""

    out: Path
    """Folder of the comparison; refused if it holds anything, unless --resume is given."""
    preset: str = "demo"
    """Size of the experiment: smoke or demo."""
    arms: tuple[str, ...] = ("plain", "identity", "sinkhorn", "cayley")
    """The arms, each plain or a mixer such as cayley:step=0.1."""
    seeds: int = 1
    """Number of seeds, from 0 on."""
    resume: bool = False
    """Go on where runs or parts of runs exist."""
    steps: int | None = None
    """Optimiser steps, where not the preset's."""
    extra_task_dirs: tuple[Path, ...] = ()
    """Folders of further tasks in the ARC JSON format."""
    device: str = "cpu"
    """Where to train, a torch device."""

    def __call__(self) -> None:
        """Run the command."""
        arms = [Arm.parse(text) for text in self.arms]
        comparison = comparing.compare(
            find_preset(self.preset).with_steps(self.steps),
            arms,
            self.seeds,
            self.out,
            resume=self.resume,
            extra_task_dirs=self.extra_task_dirs,
            device=_device(self.device),
        )
        _show(self.out)
        failed = [f"{run['arm']} seed {run['seed']}" for run in comparison["runs"] if "fault" in run]
        if failed:
            raise TrainingError(f"{len(failed)} of {len(comparison['runs'])} runs failed: {', '.join(failed)}")


@dataclass
class Report:
    """Print the table of a comparison and write its report.html anew."""

    run: Path
    """Folder of the comparison."""
    publish: Path | None = None
    """Also write PUBLISH.json, PUBLISH.md and PUBLISH.html, to keep."""
    timings: bool = True
    """Whether seconds are shown; leave them out where runs shared their machine."""

    def __call__(self) -> None:
        """Run the command."""
        _show(self.run, self.timings)
        if self.publish is not None:
            print("wrote " + ", ".join(map(str, publish(self.run, self.publish, timings=self.timings))))


def _device(name: str) -> str:
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device: {name!r} cannot be used here ({str(error).splitlines()[0]})") from error
    return name


def _show(folder: Path, timings: bool = True) -> None:
    table.show(folder)
    print(f"report: {reporting.write_report(folder, timings=timings)}")


def main(arguments: list[str]) -> int:
    """Run the command; a user's mistake ends in one line on standard error and exit status 1."""
    command: Callable[[], None] = tyro.cli(
        Annotated[Train, tyro.conf.subcommand("train")]
        | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
        | Annotated[Compare, tyro.conf.subcommand("compare")]
        | Annotated[Report, tyro.conf.subcommand("report")],
        prog="python -m benchmarks arc",
        args=arguments,
    )
    try:
        command()
    except (ValueError, OSError, MissingExtra, TrainingError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; --resume goes on from the last checkpoint", file=sys.stderr)
        return 130
    return 0
