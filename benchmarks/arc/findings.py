"""The tables of a report beyond the scores: claims, differences, steps to a target, operations, spectra, votes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.arc import counting, flops
from benchmarks.arc.analysis import MEASURES, TARGETS, between, find_mcnemar, interval
from benchmarks.arc.arms import Arm
from benchmarks.arc.claims import claims
from benchmarks.arc.presets import Preset
from benchmarks.arc.table import standard_error

NONE = "–"
_SHOWN = ("area", "train_token_accuracy", "train_exact", "held_out_token_accuracy", "gradient_ratio")
_ATTEMPTS = ("pass@1", "pass@2", "pass@5", "pass@10", "pass@100", "pass@1000")


@dataclass(frozen=True)
class Section:
    """A table of text with its title and a note; the first column names the row."""

    title: str
    head: list[str]
    rows: list[list[str]]
    note: str


def sections(comparison: dict[str, Any], analysis: dict[str, Any], evaluations: dict[str, list[Any]]) -> list[Section]:
    """Return the tables that the comparison has something for.

    Parameters
    ----------
    comparison, analysis : dict
        From `results.read_comparison` and `analysis.analyse`.
    evaluations : dict of list
        Of the complete runs, by arm.
    """
    preset = Preset.from_json(comparison["config"])
    found = [
        _claims(comparison, analysis),
        _differences(analysis),
        _targets(comparison, analysis),
        _operations(preset, comparison["arms"]),
        _recursion(analysis),
        _attempts(evaluations),
        _pooled(analysis),
    ]
    return [section for section in found if section.rows]


def setting(preset: Preset) -> str:
    """Say where the norms stand, how the streams live and how far the gradient reaches: choices that change results."""
    model = preset.model
    norms = {
        "post": "every stream is normalised by itself after every sublayer",
        "post-joint": "the streams of a token are normalised together after every sublayer",
        "pre": "the input of a branch is normalised, the streams at the end of every net call",
    }[model.norm_placement]
    scope = {
        "persistent": "streams persist through the recursion",
        "per_call": "streams are made and reduced in every net call",
    }[model.streams_scope]
    kind = {(True, True): "depend on the token", (True, False): "depend on the token alone"}.get(
        (model.dynamic, model.static), "are parameters, the same for every token"
    )
    applied = 2 * model.blocks
    return (
        f"Norm placement {model.norm_placement}: {norms}; {scope}; coefficients {kind}. The gradient passes "
        f"{applied * model.gradient_calls} of the {applied * model.calls} mixers of a segment."
    )


def markdown(parts: Sequence[Section]) -> str:
    """Return the tables as GitHub-flavoured Markdown."""
    blocks = []
    for part in parts:
        lines = [part.head, ["---"] + ["---:"] * (len(part.head) - 1), *part.rows]
        table = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
        blocks.append(f"### {part.title}\n\n{table}\n\n{part.note}")
    return "\n\n".join(blocks) + "\n"


def _claims(comparison: dict[str, Any], analysis: dict[str, Any]) -> Section:
    rows = [[c.statement, c.published, c.found, c.verdict, c.reason] for c in claims(comparison, analysis)]
    return Section(
        "The paper's claims",
        ["statement", "paper", "here", "verdict", "why"],
        rows,
        "Here: differences over paired seeds, the statement's first arm minus the second, with their 95 % interval. A "
        "difference confirms a statement if its interval over at least three seeds lies on the stated side of zero; "
        "each is judged by itself, without correction for their number. Under one gate and norm where nothing else is "
        "said. Every verdict is about this size of model and data.",
    )  # fmt: skip


def _differences(analysis: dict[str, Any]) -> Section:
    measures = [measure for measure in MEASURES if measure.key in _SHOWN]
    rows = []
    for entry in analysis["pairs"]:
        if not entry["seeds"]:
            continue
        cells = [f"{entry['first']} − {entry['second']}", str(len(entry["seeds"]))]
        for measure in measures:
            value = entry["over_seeds"].get(measure.key)
            cells.append(NONE if value is None else _interval(value, 100 if measure.percent else 1))
        tasks = entry.get("over_tasks", {}).get("train_token_accuracy")
        cells.append(NONE if tasks is None else _interval(tasks, 100))
        test = find_mcnemar(analysis, entry["first"], entry["second"])
        cells.append(NONE if test is None else f"{test.only_first} : {test.only_second}, p = {test.p:.2g}")
        rows.append(cells)
    names = [measure.name + (", points" if measure.percent else "") for measure in measures]
    return Section(
        "Differences between arms",
        ["arms", "seeds", *names, "train token accuracy over tasks, points", "held-out tasks that one solves better"],
        rows,
        "First minus second, paired by seed, with the 95 % interval of Student's t: what other seeds would give; a "
        "seed that either arm did not finish is left out. Over tasks: bootstrap over tasks, seeds averaged: what other "
        "tasks would give with these very weights, and no interval for an arm. The last column is McNemar's exact "
        "test over tasks, by the first attempt on their tests; a task counts once, however many seeds there are, and "
        "the test is about these weights too. No correction for the number of comparisons is made.",
    )  # fmt: skip


def _targets(comparison: dict[str, Any], analysis: dict[str, Any]) -> Section:
    rows = []
    reached = [
        f"{target:.0%}"
        for target in TARGETS
        if any(run["steps_to"][f"{target:.0%}"] is not None for run in analysis["runs"])
    ]
    for arm in comparison["arms"]:
        runs = [run for run in analysis["runs"] if run["arm"] == arm]
        if not runs:
            continue
        cells = [arm]
        for target in reached:
            steps = [run["steps_to"][target] for run in runs if run["steps_to"][target] is not None]
            work = [run["operations_to"][target] for run in runs if run["operations_to"][target] is not None]
            share = "" if len(steps) == len(runs) else f" ({len(steps)} of {len(runs)})"
            error = f" ± {standard_error(steps):.0f}" if len(steps) > 1 else ""
            mean = f"{np.mean(steps):.0f}{error}{share}, {flops.text(float(np.mean(work)))}" if steps else "not reached"
            cells.append(mean)
        rows.append(cells)
    if not reached:
        return Section("Steps and operations to a training token accuracy", [], [], "")
    return Section(
        "Steps and operations to a training token accuracy",
        ["arm", *(f"{target} of tokens" for target in reached)],
        rows,
        "First step at which the smoothed accuracy on training batches reaches the target: mean and standard error "
        "over the seeds that reach it, so that means with different numbers of seeds do not compare.",
    )  # fmt: skip


def _operations(preset: Preset, arms: Sequence[str]) -> Section:
    rows = []
    for text in arms:
        try:
            arm = Arm.parse(text)
        except ValueError:
            # A result of another version may know more arms.
            continue
        chart, parts = flops.chart(preset.model, arm), flops.residuals(preset.model, arm)
        step = flops.segment(preset.model, arm, train=True) * preset.train.batch
        seen = counting.segment(preset.model, arm)
        cells = [NONE if chart is None else f"{chart:,}"]
        cells += [flops.text(value) for value in (parts.projection, parts.mixing + parts.read_write)]
        counted = NONE if seen is None else flops.text(seen * preset.train.batch)
        rows.append([text, *cells, flops.text(step), counted, flops.text(step * preset.train.steps)])
    return Section(
        "Operations",
        [
            "arm", "map to the manifold, a mixer", "projection to raw numbers, a net call",
            "stream passes, a net call", "step", "step by torch's counter", "run",
        ],
        rows,
        "By hand, a multiplication and an addition count as two. The map is forward only and left out of the rest, of "
        "which it is a vanishing part; a dash where its number of iterations depends on the data. The counter, with "
        "plain attention, sees matrix products alone, so not the reads and writes among the stream passes; a dash "
        "where a sample takes long on a CPU, at which sizes a test holds the two together.",
    )  # fmt: skip


def _recursion(analysis: dict[str, Any]) -> Section:
    rows = []
    for arm, probe in analysis["probes"].items():
        first, last = probe["first"], probe["last"]
        if not last:
            continue
        # Results of an earlier version keep the first seed only.
        several = probe.get("last_of_all", [last])
        gains, gradients = [one["contrast_gains"] for one in several], [one["gradient"][0] for one in several]
        worst = probe["largest_residual"]
        rows.append(
            [
                arm,
                NONE if worst is None or not gains[0] else f"{worst:.1e}",
                *(_gain([first["contrast_gains"]], k) for k in (0, -1)),
                *(_gain(gains, k) for k in (0, -1)),
                *(between([gradient.get(part) for gradient in gradients]) for part in ("mean", "contrast")),
            ]
        )
    return Section(
        "Along the recursion of a segment",
        [
            "arm", "largest residual in training", "gain on differences at the start: first mixer", "all mixers",
            "at the end: first mixer", "all mixers", "gradient at the first y: mean", "differences",
        ],
        rows,
        "Gain: largest and smallest singular value of the product of the mixers on what is left of the streams "
        "without their mean, geometric mean over tokens. Gradient: of the token loss through the whole segment with "
        "respect to y before it, at the end of training, split into the mean over streams and the rest, relative to "
        "the norm of the gradient at the end of the segment. Lowest to highest of the seeds; at the start the first "
        "seed. Residual: distance from the mixer's set, the largest of all looks and seeds.",
    )  # fmt: skip


def _attempts(evaluations: dict[str, list[Any]]) -> Section:
    rows = []
    for arm, several in evaluations.items():
        scores = [evaluation["held_out"] for evaluation in several]
        if not scores or "sample_exact" not in scores[0]:
            continue
        names = [*_ATTEMPTS, "exact", "sample_exact", "sample_token_accuracy", "halt_accuracy"]
        rows.append([arm, *(_mean(scores, name) for name in names)])
    return Section(
        "Attempts on the held-out tests",
        ["arm", *(f"{name} %" for name in _ATTEMPTS), "exact %", "exact, all %", "token, all %", "halting %"],
        rows,
        "Votes of one checkpoint alone. Exact: the untransformed tests; all samples: every test in every variant;"
        " halting: the halting probability is on the right side of one half. ± is the standard error over seeds, "
        "over tasks with one seed.",
    )  # fmt: skip


def _pooled(analysis: dict[str, Any]) -> Section:
    rows = [
        [
            arm,
            str(entry["evaluations"]),
            *(_gained(entry, name) for name in _ATTEMPTS),
        ]
        for arm, entry in analysis["pooled"].items()
        if entry is not None
    ]
    return Section(
        "What pooling votes over checkpoints would have given",
        ["arm", "evaluations", *(f"{name} %" for name in _ATTEMPTS)],
        rows,
        "The published evaluator adds up the votes of all evaluations of a job: an ensemble of checkpoints. Last "
        "checkpoint alone → pooled; in brackets the 95 % interval of the difference over seeds, where there are "
        "several.",
    )  # fmt: skip


def _gained(entry: dict[str, Any], name: str) -> str:
    text = f"{_percent(entry['unpooled'][name])} → {_percent(entry['pooled'][name])}"
    gained = entry.get("gained", {}).get(name)
    if gained is None or gained["low"] is None:
        return text
    return f"{text} [{100 * gained['low']:+.1f}, {100 * gained['high']:+.1f}]"


def _interval(value: dict[str, Any], scale: float) -> str:
    if value["low"] is None:
        return interval(scale * value["mean"])
    return interval(*(scale * value[name] for name in ("mean", "low", "high")))


def _gain(several: list[list[list[float | None]]], index: int) -> str:
    if not several[0]:
        return NONE
    return " … ".join(between(values) for values in zip(*(gains[index] for gains in several), strict=True))


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _mean(scores: list[dict[str, Any]], name: str) -> str:
    values = [score[name] for score in scores]
    error = standard_error(values) if len(values) > 1 else scores[0].get(f"{name}_se")
    return _percent(float(np.mean(values))) + ("" if error is None else f" ± {100 * error:.1f}")
