"""What a comparison shows beyond its table: measures of every run, and paired differences between arms."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.arc import results
from benchmarks.arc.curves import smooth, window
from benchmarks.arc.paired import Difference, McNemar, mcnemar, over_seeds, over_tasks

TARGETS = (0.5, 0.6, 0.7, 0.8, 0.9)
# A norm this many times the median of the steps just before it is a spike.
_SPIKE = 5.0
_BEFORE = 20


@dataclass(frozen=True)
class Measure:
    """A number of a run: its key, how it is called, and whether it is a fraction to be shown in percent."""

    key: str
    name: str
    percent: bool = False


MEASURES = (
    Measure("area", "mean training loss (area under the curve)"),
    Measure("final_loss", "training loss at the end"),
    Measure("train_token_accuracy", "train token accuracy", percent=True),
    Measure("train_exact", "train exact match", percent=True),
    Measure("held_out_token_accuracy", "held-out token accuracy", percent=True),
    Measure("held_out_exact", "held-out exact match", percent=True),
    Measure("held_out_sample_exact", "held-out exact match of all variants", percent=True),
    Measure("gradient_median", "median gradient norm"),
    Measure("gradient_p99", "99th percentile of the gradient norm"),
    Measure("gradient_ratio", "gradient norm, p99 / median"),
    Measure("spikes", "gradient spikes"),
)


def run_measures(metrics: results.Metrics, evaluation: dict[str, Any], gflops: float, batch: int) -> dict[str, Any]:
    """Return the numbers of a complete run.

    Returns
    -------
    dict
        The `MEASURES`; a spike is a step whose gradient norm exceeds five times the median of the twenty before;
        ``steps_to`` and ``operations_to``, the first step at which the smoothed training token accuracy reaches each
        of the `TARGETS`, and the floating-point operations until then, None where it never does.
    """
    norms, accuracy = metrics["gradient_norm"], metrics["token_accuracy"]
    smoothed = smooth(accuracy, window(len(accuracy)))
    reached = {target: np.flatnonzero(smoothed >= target) for target in TARGETS}
    steps_to = {f"{t:.0%}": int(metrics["step"][found[0]]) if len(found) else None for t, found in reached.items()}
    median, p99 = float(np.median(norms)), float(np.quantile(norms, 0.99))
    return {
        "area": float(metrics["loss"].mean()),
        "final_loss": float(metrics["loss"][-20:].mean()),
        "train_token_accuracy": evaluation["train"]["token_accuracy"],
        "train_exact": evaluation["train"]["exact"],
        "held_out_token_accuracy": evaluation["held_out"]["token_accuracy"],
        "held_out_exact": evaluation["held_out"]["exact"],
        "held_out_sample_exact": evaluation["held_out"].get("sample_exact"),
        "gradient_median": median,
        "gradient_p99": p99,
        "gradient_ratio": p99 / median if median else None,
        "spikes": spikes(norms),
        "steps_to": steps_to,
        "operations_to": {t: None if s is None else s * batch * gflops * 1e9 for t, s in steps_to.items()},
    }


def analyse(comparison: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Gather everything that a report and a claim table need from the folder of a comparison.

    Returns
    -------
    dict
        ``runs``: arm, seed and `run_measures` of every complete run. ``probes``: for every arm the first and last
        probes of its first complete run, the last ones of all its runs, the largest residual, and at every step of a
        probe the lowest and highest of the runs. ``pairs``: for every two arms with common seeds the differences of the
        `MEASURES` over seeds, of token accuracies over tasks, and McNemar's test over the tasks that were solved at the
        first attempt. ``pooled``: unpooled and pooled pass@k of each arm, and the differences over seeds.
    """
    runs: dict[str, dict[int, dict[str, Any]]] = {}
    evaluations: dict[str, dict[int, dict[str, Any]]] = {}
    batch = comparison["config"]["train"]["batch"]
    for arm in comparison["arms"]:
        for run in results.complete_runs(comparison, arm):
            evaluation = results.read_evaluation(folder, run)
            evaluations.setdefault(arm, {})[run["seed"]] = evaluation
            measures = run_measures(results.read_metrics(folder, run), evaluation, run["segment_gflops"] or 0.0, batch)
            runs.setdefault(arm, {})[run["seed"]] = measures
    arms = list(runs)
    return {
        "runs": [{"arm": arm, "seed": seed, **measures} for arm in arms for seed, measures in runs[arm].items()],
        "probes": {arm: _probes(comparison, folder, arm) for arm in arms},
        "pairs": [pair(first, second, runs, evaluations) for i, first in enumerate(arms) for second in arms[i + 1 :]],
        "pooled": {arm: _pooled(evaluations[arm]) for arm in arms},
    }


def pair(
    first: str,
    second: str,
    runs: dict[str, dict[int, dict[str, Any]]],
    evaluations: dict[str, dict[int, dict[str, Any]]],
) -> dict[str, Any]:
    """Compare two arms on the seeds that both completed; ``first - second`` throughout."""
    seeds = [seed for seed in runs[first] if seed in runs[second]]
    found: dict[str, Any] = {"first": first, "second": second, "seeds": seeds}
    if not seeds:
        return found
    sides = [[runs[arm][seed] for seed in seeds] for arm in (first, second)]
    found["over_seeds"] = {
        measure.key: _json(over_seeds(*([run[measure.key] for run in side] for side in sides)))
        for measure in MEASURES
        if all(run[measure.key] is not None for side in sides for run in side)
    }
    answers = [[evaluations[arm][seed] for seed in seeds] for arm in (first, second)]
    found["over_tasks"] = {
        name: _json(over_tasks(*(_task_means(side, read) for side in answers)))
        for name, read in (("train_token_accuracy", _train), ("held_out_token_accuracy", _held_out))
        if all(read(evaluation) for side in answers for evaluation in side)
    }
    if all(_solved(evaluation) for side in answers for evaluation in side):
        found["mcnemar"] = mcnemar(*(_task_means(side, _solved) for side in answers))._asdict()
    return found


def find_pair(analysis: dict[str, Any], first: str, second: str, measure: str) -> Difference | None:
    """Return ``first - second`` over seeds, whichever way round the pair is stored; None where it is not known."""
    for entry in analysis["pairs"]:
        if {entry["first"], entry["second"]} == {first, second} and measure in entry.get("over_seeds", {}):
            value = entry["over_seeds"][measure]
            bounds = [math.nan if value[key] is None else value[key] for key in ("low", "high")]
            if entry["first"] == first:
                return Difference(value["mean"], *bounds, value["n"])
            return Difference(-value["mean"], -bounds[1], -bounds[0], value["n"])
    return None


def find_mcnemar(analysis: dict[str, Any], first: str, second: str) -> McNemar | None:
    """Return McNemar's test of two arms, whichever way round the pair is stored; None where it is not known."""
    for entry in analysis["pairs"]:
        if {entry["first"], entry["second"]} == {first, second} and "mcnemar" in entry:
            test = McNemar(**entry["mcnemar"])
            return test if entry["first"] == first else McNemar(test.only_second, test.only_first, test.p)
    return None


def last_gains(probe: dict[str, Any] | None) -> list[list[float]]:
    """Return the gains of the product of all mixers at the end of training, [largest, smallest] of every seed.

    One that JSON could not hold is infinite.
    """
    if not probe or not probe["last"]:
        return []
    # Results of an earlier version keep the first seed only.
    several = probe.get("last_of_all", [probe["last"]])
    ends = [last["contrast_gains"][-1] for last in several if last["contrast_gains"]]
    return [[math.inf if value is None else value for value in end] for end in ends]


def between(values: Sequence[float | None]) -> str:
    """Write the lowest and the highest of some numbers, one number where they look alike.

    Examples
    --------
    >>> between([0.5, 0.25]), between([1.0, 1.001]), between([None])
    ('0.25 to 0.5', '1', '–')
    """
    if None in values:
        return "–"
    ends = dict.fromkeys(f"{end(v for v in values if v is not None):.2g}" for end in (min, max))
    return " to ".join(ends)


def interval(mean: float, low: float | None = None, high: float | None = None) -> str:
    """Write a difference with its bounds, to two decimals or, where all would vanish, to two digits.

    Examples
    --------
    >>> interval(1.0, -0.5, 2.5), interval(-0.0012, -0.002, -0.0004), interval(-0.0)
    ('+1.00 [-0.50, +2.50]', '-0.0012 [-0.0020, -0.0004]', '+0.00')
    """
    values = [value for value in (mean, low, high) if value is not None]
    largest = max(map(abs, values))
    digits = 2 if largest == 0 or largest >= 0.05 else 1 - math.floor(math.log10(largest))
    # Adding zero takes the sign from a negative one.
    shown = [f"{round(value, digits) + 0.0:+.{digits}f}" for value in values]
    return shown[0] + (f" [{', '.join(shown[1:])}]" if len(shown) > 1 else "")


def _train(evaluation: dict[str, Any]) -> dict[str, float]:
    return {task: values[0] for task, values in evaluation.get("train_tasks", {}).items()}


def _held_out(evaluation: dict[str, Any]) -> dict[str, float]:
    return _by_task(evaluation, "token_accuracy", float)


def _solved(evaluation: dict[str, Any]) -> dict[str, float]:
    # By the vote, as pass@1 is.
    return _by_task(evaluation, "rank", lambda rank: float(rank == 1))


def _by_task(evaluation: dict[str, Any], name: str, read: Callable[[Any], float]) -> dict[str, float]:
    by_task: dict[str, list[float]] = {}
    for prediction in evaluation["predictions"]:
        if name in prediction:
            by_task.setdefault(prediction["task"], []).append(read(prediction[name]))
    return {task: float(np.mean(values)) for task, values in by_task.items()}


def _task_means(
    evaluations: Sequence[dict[str, Any]], read: Callable[[dict[str, Any]], dict[str, float]]
) -> list[float]:
    """Average every task's value over the evaluations, in the order of the tasks' names."""
    values = [read(evaluation) for evaluation in evaluations]
    return [float(np.mean([value[task] for value in values])) for task in sorted(values[0])]


def _probes(comparison: dict[str, Any], folder: Path, arm: str) -> dict[str, Any]:
    per_run = [results.read_probes(folder, run) for run in results.complete_runs(comparison, arm)]
    residuals = [probe["residual"] for probes in per_run for probe in probes]
    finite = [residual for residual in residuals if residual is not None]
    return {
        "largest_residual": max(finite) if finite and len(finite) == len(residuals) else None,
        "first": per_run[0][0] if per_run and per_run[0] else None,
        "last": per_run[0][-1] if per_run and per_run[0] else None,
        "last_of_all": [probes[-1] for probes in per_run if probes],
        "residuals": _residuals(per_run),
    }


def _residuals(per_run: list[list[dict[str, Any]]]) -> list[list[float | None]]:
    """Return step, lowest and highest residual of the runs, at every step that one of them looked."""
    by_step: dict[int, list[float | None]] = {}
    for probe in (probe for probes in per_run for probe in probes):
        by_step.setdefault(probe["step"], []).append(probe["residual"])
    return [
        [step, *((None, None) if None in found else (min(found), max(found)))]  # type: ignore[type-var]
        for step, found in sorted(by_step.items())
    ]


def _pooled(evaluations: dict[int, dict[str, Any]]) -> dict[str, Any] | None:
    found = [e for e in evaluations.values() if e.get("pooled", {}).get("evaluations", 1) > 1]
    if not found:
        return None
    names = [name for name in found[0]["pooled"] if name.startswith("pass@") and not name.endswith("_se")]
    sides = {name: ([e["pooled"][name] for e in found], [e["held_out"][name] for e in found]) for name in names}
    return {
        "evaluations": found[0]["pooled"]["evaluations"],
        "unpooled": {name: float(np.mean(alone)) for name, (_, alone) in sides.items()},
        "pooled": {name: float(np.mean(pooled)) for name, (pooled, _) in sides.items()},
        "gained": {name: _json(over_seeds(*side)) for name, side in sides.items()},
    }


def spikes(norms: np.ndarray) -> int:
    """Return how many gradient norms exceed five times the median of the twenty before."""
    before = [np.median(norms[i - _BEFORE : i]) for i in range(_BEFORE, len(norms))]
    return int((norms[_BEFORE:] > _SPIKE * np.array(before)).sum()) if before else 0


def _json(difference: Difference) -> dict[str, Any]:
    # JSON has no NaN.
    return {name: None if math.isnan(value) else value for name, value in difference._asdict().items()}
