"""A comparison of arms over problems and seeds: run what is missing, keep every result at once, compare in pairs."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks import environment, plots, residuals, tables, trainer
from benchmarks.arc.arms import Arm
from benchmarks.extras import MissingExtra, require
from benchmarks.trainer import Problem

ARMS = (
    "plain",
    "identity",
    "free",
    "sinkhorn",
    "cayley",
    "cayley-mean",
    "quaternion",
    "reflection",
    "mhc",
    "jpmhc-cayley",
    "edelta",
)

Claims = Callable[[dict[str, Any]], list[dict[str, str]]]


@dataclass(frozen=True)
class Benchmark:
    """What the command compares.

    Attributes
    ----------
    name : str
        Of the command.
    presets : tuple of str
        Sizes; the first is what ``--quick`` runs, the second the default.
    problems : Callable
        ``problems(preset)`` returns them with their data.
    arms : tuple of str
        The default arms.
    seeds : tuple of int
        The seeds, of which ``--seeds`` takes the first few.
    claims : Callable
        ``claims(result)`` returns statements with their verdicts.
    """

    name: str
    presets: tuple[str, ...]
    problems: Callable[[str], list[Problem]]
    arms: tuple[str, ...]
    seeds: tuple[int, ...] = (42, 123, 456, 789, 1011)
    claims: Claims = lambda result: []


@dataclass
class Options:
    """Train every arm on every task with the same seeds, print tables and paired comparisons."""

    quick: bool = False
    """The smallest preset: whether everything runs, not a result."""
    preset: str | None = None
    """Size of the experiment; by default the one for two CPU cores."""
    arms: tuple[str, ...] = ()
    """The arms, each plain, a mixer such as cayley:step=0.1, or a published layer such as mhc; by default eleven."""
    tasks: tuple[str, ...] = ()
    """Only these tasks."""
    seeds: int = 3
    """Number of seeds."""
    device: str = "cpu"
    """Where to train, a torch device; CUDA computes in bfloat16."""
    compile: bool = False
    """Compile the networks."""
    out: Path | None = None
    """Write everything to this JSON file, after every arm, and the tables to .md beside it; refused if one exists."""
    resume: bool = False
    """Go on with the file of --out where it exists; what it has of other arms and tasks stays."""
    plot: Path | None = None
    """Draw the scores into this image."""


def main(benchmark: Benchmark, arguments: list[str]) -> int:
    """Run the command; a user's mistake ends in one line on standard error and exit status 1.

    Parameters
    ----------
    benchmark : Benchmark
        What to compare.
    arguments : list of str
        Of the command line, without the benchmark's name.
    """
    tyro = require("tyro", "bench")
    options: Options = tyro.cli(Options, prog=f"python -m benchmarks {benchmark.name}", args=arguments)
    try:
        result = _compare(benchmark, options)
        print(tables.markdown(result))
        if options.out is not None:
            options.out.with_suffix(".md").write_text(tables.markdown(result))
            print(f"wrote {options.out} and {options.out.with_suffix('.md')}")
        if options.plot is not None:
            plots.draw(result, options.plot)
            print(f"wrote {options.plot}")
        faults = [f"{run['task']} {run['arm']} seed {run['seed']}" for run in result["runs"] if "fault" in run]
        if faults:
            raise ValueError(f"{len(faults)} of {len(result['runs'])} runs failed: {', '.join(faults)}")
    except (ValueError, OSError, MissingExtra) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; with --out, --resume goes on after the last finished arm", file=sys.stderr)
        return 130
    return 0


@dataclass
class _Plan:
    preset: str
    arms: list[Arm]
    seeds: list[int]
    problems: list[Problem] = field(default_factory=list)


def _plan(benchmark: Benchmark, options: Options) -> _Plan:
    if options.quick and options.preset is not None:
        raise ValueError(f"--quick is the preset {benchmark.presets[0]!r}; leave --preset out")
    preset = benchmark.presets[0] if options.quick else options.preset or benchmark.presets[1]
    if preset not in benchmark.presets:
        raise ValueError(f"--preset: unknown name {preset!r}, expected one of {', '.join(benchmark.presets)}")
    if not 1 <= options.seeds <= len(benchmark.seeds):
        raise ValueError(f"--seeds: expected 1 to {len(benchmark.seeds)}, got {options.seeds}")
    texts = options.arms or benchmark.arms
    if len(set(texts)) < len(texts):
        raise ValueError(f"--arms: an arm is named twice in {' '.join(texts)}")
    plan = _Plan(preset, [residuals.parse(text) for text in texts], list(benchmark.seeds[: options.seeds]))
    for path in (options.out, options.plot):
        if path is not None and not path.parent.is_dir():
            raise ValueError(f"{path}: the folder {path.parent} does not exist")
    if options.out is not None and options.out.suffix != ".json":
        raise ValueError(f"--out: expected a name that ends in .json, got {options.out}")
    if options.out is not None:
        _check_out(options.out, options.resume)
    if options.plot is not None:
        plots.check_format(options.plot)
    try:
        torch.empty(0, device=options.device)
    except (RuntimeError, AssertionError) as error:
        message = str(error).splitlines()[0]
        raise ValueError(f"--device: {options.device!r} cannot be used here ({message})") from error
    plan.problems = benchmark.problems(preset)
    names = [problem.name for problem in plan.problems]
    for task in options.tasks:
        if task not in names:
            raise ValueError(f"--tasks: unknown name {task!r}, expected some of {', '.join(names)}")
    plan.problems = [problem for problem in plan.problems if not options.tasks or problem.name in options.tasks]
    return plan


def _check_out(out: Path, resume: bool) -> None:
    """Raise a ValueError if results or tables would replace what is not of this comparison."""
    beside = out.with_suffix(".md")
    if out.exists():
        if not resume:
            raise ValueError(f"--out: {out} exists; pass --resume to go on with it, or name another")
    elif beside.exists():
        raise ValueError(f"--out: {beside}, where the tables go, exists; name another file")


def _compare(benchmark: Benchmark, options: Options) -> dict[str, Any]:
    plan = _plan(benchmark, options)
    result = {
        "benchmark": benchmark.name,
        "preset": plan.preset,
        **environment.describe(),
        "device": options.device,
        "compiled": options.compile,
        "arms": [arm.text for arm in plan.arms],
        "seeds": plan.seeds,
        "tasks": {problem.name: _describe(problem) for problem in plan.problems},
        "runs": [],
    }
    if options.resume and options.out is not None and options.out.exists():
        _take_up(options.out, result)
    done = {(run["task"], run["arm"]) for run in result["runs"]}
    todo = [(p, a) for p in plan.problems for a in plan.arms if p.supports(a) and (p.name, a.text) not in done]
    for number, (problem, arm) in enumerate(todo, 1):
        begun = time.monotonic()
        runs = trainer.train(problem, arm, plan.seeds, options.device, options.compile)
        result["runs"] += [{"task": problem.name, "arm": arm.text, **run} for run in runs]
        scores = [run["scores"][problem.measure] if "scores" in run else float("nan") for run in runs]
        print(
            f"[{number}/{len(todo)}] {problem.name} {arm.text}: {problem.measure} "
            f"{' '.join(f'{score:.3g}' for score in scores)} ({time.monotonic() - begun:.0f} s)",
            file=sys.stderr,
            flush=True,
        )
        _write(result, options.out)
    result["claims"] = benchmark.claims(result)
    _write(result, options.out)
    return result


def _describe(problem: Problem) -> dict[str, Any]:
    schedule = dataclasses.asdict(problem.schedule)
    # Infinity is no JSON.
    schedule["clip"] = schedule["clip"] if schedule["clip"] < float("inf") else None
    return {
        "measure": problem.measure,
        "relative": problem.relative,
        "references": problem.references,
        "schedule": schedule,
        **problem.facts,
    }


def _take_up(path: Path, result: dict[str, Any]) -> None:
    """Add what a file of the same comparison has: its runs, and its arms and tasks before the new ones."""
    try:
        found = json.loads(path.read_text())
        runs, arms, tasks = found["runs"], found["arms"], found["tasks"]
    except (json.JSONDecodeError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: damaged or no result of this command ({error!r})") from error
    for key in ("benchmark", "preset", "seeds", "device", "compiled"):
        if found.get(key) != result[key]:
            raise ValueError(f"{path}: made with {key} {found.get(key)!r}, not {result[key]!r}; name another --out")
    # Through JSON, where a tuple is a list.
    wanted = json.loads(json.dumps(result["tasks"]))
    for task, facts in tasks.items():
        if task in wanted and facts != wanted[task]:
            raise ValueError(f"{path}: {task} had other settings or data; name another --out")
    result["runs"] = runs
    result["arms"] = arms + [arm for arm in result["arms"] if arm not in arms]
    result["tasks"] = tasks | wanted


def _write(result: dict[str, Any], path: Path | None) -> None:
    if path is None:
        return
    aside = path.with_suffix(".partial")
    aside.write_text(json.dumps(result, indent=1, allow_nan=False) + os.linesep)
    aside.replace(path)
