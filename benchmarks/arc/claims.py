"""The statements of the paper beside what a comparison found, each with a verdict that follows from a rule.

Numbers of the paper: arXiv 2602.18308, version 2, and where marked v1 its first version, whose headline compared runs
of different length. One run an arm; votes pooled across checkpoints.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from benchmarks.arc import flops
from benchmarks.arc.analysis import MEASURES, between, find_mcnemar, find_pair, interval, last_gains
from benchmarks.arc.arms import Arm
from benchmarks.arc.paired import Difference, over_seeds
from benchmarks.arc.presets import Preset
from benchmarks.arc.tasks import MAX_SIDE

CONFIRMED, NOT_CONFIRMED, NOT_TESTABLE = "confirmed", "not confirmed", "not testable at this level"
_SEEDS = 3
# Arms whose token accuracy is this close to that of one token everywhere have not begun to use their input.
_AT_THE_FLOOR = 0.01
# Fewer tasks that tell two arms apart than this say nothing.
_TASKS = 25
_LEVEL = 0.85


@dataclass(frozen=True)
class Claim:
    """A row of the table.

    Attributes
    ----------
    statement : str
        What the paper says, in our words.
    published : str
        Its number.
    found : str
        Ours at this level, with its interval.
    verdict : str
        `CONFIRMED`, `NOT_CONFIRMED` or `NOT_TESTABLE`.
    reason : str
        Why, in a few words.
    """

    statement: str
    published: str
    found: str
    verdict: str
    reason: str


# The two arms of the paper under one gate and norm, and as published, each with its own.
_PAIRS = (("cayley", "sinkhorn", ""), ("jpmhc-cayley", "jpmhc-sinkhorn", ", both as published"))


def claims(comparison: dict[str, Any], analysis: dict[str, Any]) -> list[Claim]:
    """Judge every statement by a comparison.

    A difference confirms a statement if its 95 % interval over at least three paired seeds lies on the stated side of
    zero; an interval with zero in it, or on the other side, does not. A verdict is about this size of model and data.
    What the paper says of Cayley and Sinkhorn is judged under one gate and norm, and again between the published layers
    where both are here.
    """
    preset = Preset.from_json(comparison["config"])
    if at_the_floor(comparison, analysis):
        analysis = {**analysis, "floor": True}
    table: list[Claim] = []
    for first, second, how in _PAIRS:
        if not how or {first, second} <= set(comparison["arms"]):
            found = _of_a_pair(comparison, analysis, preset, first, second)
            table += [replace(claim, statement=claim.statement + how) for claim in found]
    table += [
        *_operations(preset),
        _difference(
            analysis, "grassmann", "sinkhorn", "train_exact", 1,
            "Grassmann lies above Sinkhorn early in training", "12.8 against 9.9 % at 110 k steps",
        ),
        _residual(analysis),
        _control(analysis, "identity", "Not in the paper: Cayley is better than streams that are not mixed"),
        _control(analysis, "plain", "Not in the paper: Cayley is better than the plain residual"),
    ]  # fmt: skip
    if preset.model.gradient_cycles == preset.model.h_cycles > 1:
        table.append(
            _difference(
                analysis, "cayley", "sinkhorn", "train_token_accuracy", 1,
                "A prototype of this suite, through 84 mixers: Cayley above Sinkhorn", "+2.0 ± 0.4 points",
            )
        )  # fmt: skip
    return table


def _of_a_pair(
    comparison: dict[str, Any], analysis: dict[str, Any], preset: Preset, first: str, second: str
) -> list[Claim]:
    return [
        _difference(
            analysis, first, second, "train_exact", 1,
            "Cayley solves more samples exactly than Sinkhorn", "31.4 against 27.9 % (v1: 1.41 times)",
        ),
        _held_out_samples(comparison, analysis, first, second),
        _difference(
            analysis, first, second, "train_token_accuracy", 1,
            "Cayley gets more tokens right than Sinkhorn", "86.9 against 86.5 %",
        ),
        _held_out(analysis, first, second),
        _above_85(comparison, analysis, preset, first, second),
        _difference(
            analysis, first, second, "area", -1,
            "Cayley needs fewer steps than Sinkhorn", "58 % of the steps to equal exact match",
        ),
        _difference(
            analysis, first, second, "gradient_median", -1,
            "Gradients are smaller with Cayley", "mean norm 0.10 against 0.39",
        ),
        _difference(
            analysis, first, second, "gradient_ratio", -1, "Gradients are steadier with Cayley", "no spikes shown"
        ),
        _spectrum(analysis, first, second),
    ]  # fmt: skip


def at_the_floor(comparison: dict[str, Any], analysis: dict[str, Any]) -> bool:
    """Whether no run of any arm has left the answer of one token everywhere, so that no score can tell arms apart."""
    if "constant" not in comparison or not analysis["runs"]:
        return False
    best = max(run["train_token_accuracy"] for run in analysis["runs"])
    return best <= comparison["constant"]["train"]["token_accuracy"] + _AT_THE_FLOOR


def _difference(
    analysis: dict[str, Any], first: str, second: str, measure: str, wanted: int, statement: str, published: str
) -> Claim:
    found = find_pair(analysis, first, second, measure)
    if found is None:
        return Claim(statement, published, "–", NOT_TESTABLE, f"{first} and {second} are not both here")
    shown = next(m for m in MEASURES if m.key == measure)
    scale, unit = (100, " points") if shown.percent else (1, "")
    if found.n < _SEEDS:
        text = f"{shown.name} {interval(scale * found.mean)}{unit}"
        return Claim(statement, published, text, NOT_TESTABLE, f"{found.n} paired seeds, {_SEEDS} needed")
    text = f"{shown.name} {interval(*(scale * value for value in (found.mean, found.low, found.high)))}{unit}"
    if analysis.get("floor"):
        return Claim(statement, published, text, NOT_TESTABLE, "every arm still answers one token everywhere")
    return Claim(statement, published, text, *_judge(found, wanted))


def _judge(found: Difference, wanted: int) -> tuple[str, str]:
    if found.sign == wanted:
        return CONFIRMED, f"{found.n} paired seeds"
    against = "the interval holds zero" if found.sign == 0 else "the difference has the other sign"
    return NOT_CONFIRMED, f"{against}, {found.n} paired seeds"


def _held_out_samples(comparison: dict[str, Any], analysis: dict[str, Any], first: str, second: str) -> Claim:
    claim = _difference(
        analysis, first, second, "held_out_sample_exact", 1,
        "Cayley solves more held-out samples exactly than Sinkhorn", "31.4 against 27.9 % (v1: 1.41 times)",
    )  # fmt: skip
    scores = [run.get("held_out_sample_exact") or 0 for run in analysis["runs"] if run["arm"] in (first, second)]
    if claim.verdict != NOT_TESTABLE and max(scores) <= comparison["copy"]["held_out"]["exact"] + _AT_THE_FLOOR:
        return replace(claim, verdict=NOT_TESTABLE, reason="hardly any is solved")
    return claim


def _held_out(analysis: dict[str, Any], first: str, second: str) -> Claim:
    statement, published = (
        "Cayley solves more held-out tasks at the first attempt",
        "pass@1 40.5 against 36.5 %, pooled",
    )
    test = find_mcnemar(analysis, first, second)
    if test is None:
        return Claim(statement, published, "–", NOT_TESTABLE, "no answers of both arms")
    found = f"{test.only_first} against {test.only_second} tasks better, McNemar p = {test.p:.2g}"
    if test.only_first + test.only_second < _TASKS:
        return Claim(statement, published, found, NOT_TESTABLE, "too few tasks tell the arms apart")
    # The test is about these weights, and one run of each arm differs from the next.
    seeds = find_pair(analysis, first, second, "train_token_accuracy")
    if seeds is None or seeds.n < _SEEDS:
        return Claim(statement, published, found, NOT_TESTABLE, f"{_SEEDS} paired seeds needed")
    better = test.p < 0.05 and test.only_first > test.only_second
    return Claim(statement, published, found, CONFIRMED if better else NOT_CONFIRMED, "over tasks, of these seeds")


def _above_85(comparison: dict[str, Any], analysis: dict[str, Any], preset: Preset, first: str, second: str) -> Claim:
    statement, published = "Both get more than 85 % of tokens right", "86.9 and 86.5 %"
    values = {
        arm: [run["held_out_token_accuracy"] for run in analysis["runs"] if run["arm"] == arm]
        for arm in (first, second)
    }
    found = "; ".join(f"{arm} {100 * sum(v) / len(v):.1f} %" for arm, v in values.items() if v) or "–"
    found += f"; copying the input {100 * comparison['copy']['held_out']['token_accuracy']:.1f} %"
    if preset.data.split != "published" or preset.data.max_side < MAX_SIDE:
        reason = "a level of the full recipe, which the plain residual reaches too (86.0 %)"
        return Claim(statement, published, found, NOT_TESTABLE, reason)
    if any(len(v) < _SEEDS for v in values.values()):
        return Claim(statement, published, found, NOT_TESTABLE, f"{_SEEDS} seeds of both needed")
    above = all(over_seeds(v, [_LEVEL] * len(v)).sign == 1 for v in values.values())
    reason = "95 % intervals over seeds; the plain residual reaches 86.0 % too"
    return Claim(statement, published, found, CONFIRMED if above else NOT_CONFIRMED, reason)


def _operations(preset: Preset) -> list[Claim]:
    arms = [Arm.parse(text) for text in ("jpmhc-sinkhorn", "jpmhc-cayley")]
    charts = [flops.chart(preset.model, arm) for arm in arms]
    steps = [flops.segment(preset.model, arm, train=True) for arm in arms]
    table = []
    if None not in charts:
        ratio = charts[0] / charts[1]  # type: ignore[operator]
        table.append(
            Claim(
                "Sinkhorn's map to the manifold takes more operations than Cayley's", "2.25 times",
                f"{ratio:.2f} times ({charts[0]} against {charts[1]} a mixer)",
                CONFIRMED if ratio > 1 else NOT_CONFIRMED, "counted by hand, both as published",
            )
        )  # fmt: skip
    ratio = steps[0] / steps[1]
    table.append(
        Claim(
            "So a step with Sinkhorn takes more operations", "2.25 times, read as a figure of the whole",
            f"{ratio:.4f} times", CONFIRMED if ratio > 1.01 else NOT_CONFIRMED,
            "the maps are a vanishing part, and Cayley's projection has more outputs",
        )
    )  # fmt: skip
    return table


def _spectrum(analysis: dict[str, Any], first: str, second: str) -> Claim:
    statement = "Products of doubly stochastic mixers lose differences of streams, of orthogonal ones keep them"
    published = "over 75 % of the spectrum near 0 against none"
    ends = {arm: last_gains(analysis["probes"].get(arm)) for arm in (first, second)}
    if not all(ends.values()):
        return Claim(statement, published, "–", NOT_TESTABLE, "no probe of both arms")
    largest = {arm: [gain[0] for gain in gains] for arm, gains in ends.items()}
    found = "largest gain after a segment: " + ", ".join(f"{arm} {between(v)}" for arm, v in largest.items())
    # Cayley maps preserve lengths; what they turn from differences into the mean is the rest.
    true = max(largest[second]) < 0.1 and 0.5 < min(largest[first]) <= max(largest[first]) < 2
    reason = f"mixers as trained, product of all, {len(largest[first])} against {len(largest[second])} seeds"
    return Claim(statement, published, found, CONFIRMED if true else NOT_CONFIRMED, reason)


def _residual(analysis: dict[str, Any]) -> Claim:
    statement, published = "Two Cayley iterations are orthogonal enough", "below 1e-3 (it holds while ||W|| < 2.5)"
    for arm in ("jpmhc-cayley", "cayley-iterated"):
        probe = analysis["probes"].get(arm)
        if probe and probe["largest_residual"] is not None:
            worst = probe["largest_residual"]
            return Claim(
                statement, published, f"{arm}: at most {worst:.1e} in training",
                CONFIRMED if worst < 1e-3 else NOT_CONFIRMED, "logged while training",
            )  # fmt: skip
    return Claim(statement, published, "–", NOT_TESTABLE, "no arm with the published iteration is here")


def _control(analysis: dict[str, Any], arm: str, statement: str) -> Claim:
    return _difference(analysis, "cayley", arm, "train_token_accuracy", 1, statement, "no such arm")
