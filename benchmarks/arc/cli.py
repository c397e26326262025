"""The command ``python -m benchmarks arc train|slice|evaluate|compare|report|predict|export|throughput``."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from benchmarks.extras import MissingExtra, require

tyro = require("tyro", "bench")
require("rich", "bench")
require("safetensors", "bench")


import torch  # noqa: E402
from rich.console import Console  # noqa: E402

from benchmarks.arc import answers, findings, processes, results, table  # noqa: E402
from benchmarks.arc import compare as comparing  # noqa: E402
from benchmarks.arc import report as reporting  # noqa: E402
from benchmarks.arc import run as running  # noqa: E402
from benchmarks.arc.arms import Arm  # noqa: E402
from benchmarks.arc.drawing import show_grid  # noqa: E402
from benchmarks.arc.export import check_dtype, export  # noqa: E402
from benchmarks.arc.predict import predict  # noqa: E402
from benchmarks.arc.presets import Preset  # noqa: E402
from benchmarks.arc.presets import preset as find_preset  # noqa: E402
from benchmarks.arc.progress import Display  # noqa: E402
from benchmarks.arc.publish import publish  # noqa: E402
from benchmarks.arc.throughput import throughput  # noqa: E402
from benchmarks.arc.training import TrainingError  # noqa: E402


@dataclass
class Settings:
    """What every command that trains can change."""

    out: Path
    """Folder of the run or comparison; refused if it holds anything, unless --resume is given."""
    preset: str = "demo"
    """Size of the experiment: smoke, demo, small, small-arc, deep, gpu or full."""
    resume: bool = False
    """Go on where runs or parts of runs exist, start otherwise."""
    steps: int | None = None
    """Optimiser steps, where not the preset's."""
    batch: int | None = None
    """Samples a step, where not the preset's."""
    streams: int | None = None
    """Number of residual streams, where not the preset's."""
    width: int | None = None
    """Width of the model, where not the preset's; heads and inner stay what they are."""
    heads: int | None = None
    """Attention heads, where not the preset's."""
    inner: int | None = None
    """Inner width of the feed-forward layers, where not the preset's."""
    streams_scope: str | None = None
    """persistent or per_call: whether streams live through the recursion."""
    norm_placement: str | None = None
    """post, post-joint or pre: where the norms stand."""
    precision: str | None = None
    """float32 or bfloat16."""
    compile: bool | None = None
    """Whether the net is compiled."""
    buckets: tuple[int, ...] = ()
    """Grid sides, rising: batches of one bucket work on that corner of the square, such as 10 15 20 30."""
    extra_task_dirs: tuple[Path, ...] = ()
    """Folders of further tasks in the ARC JSON format."""
    tensorboard: bool = False
    """Also log to a folder tensorboard in every run."""
    device: str = "cpu"
    """Where to train, a torch device."""

    def chosen(self) -> Preset:
        """Return the preset with the changes."""
        sizes = ("steps", "batch", "streams", "width", "heads", "inner")
        names = (*sizes, "streams_scope", "norm_placement", "precision", "compile")
        changes = {name: getattr(self, name) for name in names}
        return find_preset(self.preset).changed(**changes, buckets=self.buckets or None)


@dataclass
class Train(Settings):
    """Train one arm; checkpoints, log and evaluation go to OUT. Starts under torchrun and accelerate launch too."""

    residual: str = "cayley"
    """The arm: plain, a recipe such as jpmhc-cayley, or a mixer such as cayley or cayley:step=0.1."""
    seed: int = 0
    """Of the initial weights and of the order of the samples."""
    seconds: float | None = None
    """Stop cleanly after so many seconds."""
    shard: bool = False
    """For wide models on several processes: each keeps its rows of the large matrices, their moments and average."""

    def __call__(self) -> None:
        """Run the command."""
        spec = running.RunSpec(self.chosen(), Arm.parse(self.residual), self.seed, self.extra_task_dirs)
        steps = spec.preset.train.steps
        with processes.joined(_device(self.device)) as device, Display(1, steps, _console()) as display:
            display.begin(f"{spec.arm.text} seed {spec.seed}")
            result = running.train(
                spec,
                self.out,
                resume=self.resume,
                seconds=self.seconds,
                listen=display.update,
                say=display.say,
                tensorboard=self.tensorboard,
                device=device,
                shard=self.shard,
            )
            display.say(f"step {result['steps']} of {steps}, {self.out}")
            self.after(result["steps"], display.say)

    def after(self, steps: int, say: Callable[[str], None]) -> None:
        """Do what is to be done once training has stopped; every process comes here."""


@dataclass
class Slice(Train):
    """Train one arm for a while, from where OUT stands, and export its averaged weights: for borrowed machines."""

    seconds: float | None = 600.0
    """Stop cleanly after so many seconds; the same command goes on."""
    weights: Path | None = None
    """Folder of the exported weights, replaced every time; OUT/weights by default."""
    max_shard_mib: float = 64.0
    """No exported file is larger."""
    dtype: str = "float32"
    """Of the exported weights, float32 or bfloat16."""

    def __call__(self) -> None:
        """Run the command."""
        check_dtype(self.dtype)
        self.resume = True
        super().__call__()

    def after(self, steps: int, say: Callable[[str], None]) -> None:
        """Export on the first process."""
        if steps == 0:
            say("no step was made, there is nothing to export")
        elif processes.rank() == 0:
            out = self.weights or self.out / "weights"
            paths = export(self.out, out, max_shard_mib=self.max_shard_mib, dtype=self.dtype)
            say(f"wrote {len(paths)} files to {out}")


@dataclass
class Evaluate:
    """Evaluate a checkpoint of a run; writes evaluation, votes and an ARC Prize submission into its folder."""

    run: Path
    """Folder of the run."""
    step: int | None = None
    """Step of the checkpoint; the last one by default."""
    pool_votes: bool = False
    """Show pass@k with the votes of all evaluations so far added up, as the published evaluator does."""
    device: str = "cpu"
    """Where to run, a torch device."""

    def __call__(self) -> None:
        """Run the command."""
        result = running.evaluate_run(self.run, self.step, _device(self.device))
        for part in ("held_out", "train"):
            shown = [f"{name} {_score(result[part], name)}" for name in result[part] if f"{name}_se" in result[part]]
            print(f"step {result['step']} {part} ({result[part]['count']} pairs): {', '.join(shown)}")
        if self.pool_votes:
            pooled = answers.read_pooled(self.run, result["step"])
            shown = [f"{name} {_score(pooled, name)}" for name in pooled if f"{name}_se" in pooled]
            print(f"step {result['step']} pooled over {pooled['evaluations']} evaluations: {', '.join(shown)}")


@dataclass
class Compare(Settings):
    """Train several arms with the same seeds and data, print their table and write OUT/report.html."""

    arms: tuple[str, ...] = ("plain", "identity", "sinkhorn", "cayley")
    """The arms, each plain, a recipe such as jpmhc-cayley, or a mixer such as cayley:step=0.1."""
    seeds: int = 1
    """Number of seeds, from 0 on."""
    arm_seconds: float | None = None
    """Give every run so many seconds of training instead of a number of steps: matched wall clock."""
    seconds: float | None = None
    """Stop cleanly after so many seconds in all; --resume goes on."""

    def __call__(self) -> None:
        """Run the command."""
        arms = [Arm.parse(text) for text in self.arms]
        try:
            comparison = comparing.compare(
                self.chosen(),
                arms,
                self.seeds,
                self.out,
                resume=self.resume,
                extra_task_dirs=self.extra_task_dirs,
                arm_seconds=self.arm_seconds,
                seconds=self.seconds,
                tensorboard=self.tensorboard,
                device=_device(self.device),
            )
        except (KeyboardInterrupt, OSError):
            # Whatever is there is worth its table; what went wrong is told after it.
            with suppress(OSError, ValueError):
                _show(self.out)
            raise
        _show(self.out)
        failed = [f"{run['arm']} seed {run['seed']}" for run in comparison["runs"] if "fault" in run]
        if failed:
            raise TrainingError(f"{len(failed)} of {len(comparison['runs'])} runs failed: {', '.join(failed)}")


@dataclass
class Predict:
    """Answer the tests of one task file with a run that was trained on its demonstrations, and draw the answer."""

    task: Annotated[Path, tyro.conf.Positional]
    """Task in the ARC JSON format."""
    run: Path
    """Folder of the run."""
    out: Path = Path()
    """Folder for TASK-answer.json and TASK-answer.svg."""
    step: int | None = None
    """Step of the checkpoint; the last one by default."""
    device: str = "cpu"
    """Where to run, a torch device."""

    def __call__(self) -> None:
        """Run the command."""
        answer = predict(self.task, self.run, self.out, step=self.step, device=_device(self.device))
        for prediction in answer["predictions"]:
            for rank, candidate in enumerate(prediction["candidates"], 1):
                print(f"test {prediction['test'] + 1}, attempt {rank}, {candidate['votes']} votes:")
                show_grid(candidate["grid"])
        print("wrote " + ", ".join(map(str, answer["files"])))


@dataclass
class Export:
    """Write the averaged weights of a run as safetensors files below a size."""

    run: Path
    """Folder of the run."""
    out: Path
    """Folder to write to."""
    step: int | None = None
    """Step of the checkpoint; the last one by default."""
    max_shard_mib: float = 64.0
    """No file is larger."""
    dtype: str = "float32"
    """float32 or bfloat16."""

    def __call__(self) -> None:
        """Run the command."""
        paths = export(self.run, self.out, step=self.step, max_shard_mib=self.max_shard_mib, dtype=self.dtype)
        print(f"wrote {len(paths)} files to {self.out}")


@dataclass
class Throughput:
    """Time steps of every arm at a size of grid, or in buckets: steps and operations a second, peak memory."""

    out: Path
    """JSON file to write."""
    arms: tuple[str, ...] = ("plain", "identity", "sinkhorn", "cayley")
    """The arms."""
    preset: str = "full"
    """Size of the experiment."""
    seconds: float = 60.0
    """For each arm, compilation not counted."""
    batch: int | None = None
    """Samples a step, where not the preset's."""
    buckets: tuple[int, ...] = ()
    """Grid sides, rising: a step in each bucket is timed, and the mean step of a run stated."""
    shares: tuple[float, ...] = ()
    """Part of the steps in each bucket, in any unit; unless given that of the preset's samples, without variants."""
    device: str = "cpu"
    """Where to run, a torch device."""

    def __call__(self) -> None:
        """Run the command."""
        chosen = find_preset(self.preset).changed(batch=self.batch, buckets=self.buckets or None)
        arms = [Arm.parse(text) for text in self.arms]
        device = _device(self.device)
        throughput(chosen, arms, self.out, seconds=self.seconds, device=device, shares=self.shares)


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
    print(findings.setting(Preset.from_json(results.read_comparison(folder)["config"])))
    print(f"report: {reporting.write_report(folder, timings=timings)}")


def main(arguments: list[str]) -> int:
    """Run the command; a user's mistake ends in one line on standard error and exit status 1."""
    command: Callable[[], None] = tyro.cli(
        Annotated[Train, tyro.conf.subcommand("train")]
        | Annotated[Slice, tyro.conf.subcommand("slice")]
        | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
        | Annotated[Compare, tyro.conf.subcommand("compare")]
        | Annotated[Report, tyro.conf.subcommand("report")]
        | Annotated[Predict, tyro.conf.subcommand("predict")]
        | Annotated[Export, tyro.conf.subcommand("export")]
        | Annotated[Throughput, tyro.conf.subcommand("throughput")],
        prog="python -m benchmarks arc",
        args=arguments,
    )
    # A scheduler that stops a job deserves the same goodbye as a user.
    previous = signal.signal(signal.SIGTERM, _interrupt)
    try:
        command()
    except (ValueError, OSError, MissingExtra, TrainingError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; --resume goes on from the last checkpoint", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, previous)
    return 0


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _console() -> Console | None:
    """Return nothing for the process that speaks, and a console that is not heard for the others."""
    return None if os.environ.get("RANK", "0") == "0" else Console(quiet=True)


def _score(scores: dict[str, Any], name: str) -> str:
    error = scores[f"{name}_se"]
    return f"{scores[name]:.1%}" + ("" if error is None else f" +- {error:.1%}")
