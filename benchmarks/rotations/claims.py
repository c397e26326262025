"""The published numbers, and what a result says about the two regularities they show."""

from __future__ import annotations

from typing import Any

from benchmarks import pairs
from benchmarks.tables import significant, values

# arXiv 2605.06729: mean squared errors, 1.8 M parameters, 2,000 iterations, 3 seeds; the reflection by mean cosine.
PUBLISHED = {
    "gyroscope": {"plain": "3.78e-3", "mhc": "4.02e-3", "jpmhc-cayley": "3.08e-4", "edelta": "1.02e-3"},
    "stability": {
        "plain": "1.64e-5 ± 7e-7",
        "mhc": "8.65e-3 ± 1.4e-4",
        "jpmhc-cayley": "8.19e-6 ± 3.69e-6",
        "edelta": "4.35e-6 ± 2.7e-7",
    },
    "near-pi": {"plain": "1.19e-5", "mhc": "9.64e-3", "jpmhc-cayley": "6.54e-6", "edelta": "1.44e-6"},
    "near-pi-planes": {"plain": "3.34e-6", "mhc": "1.63e-3", "jpmhc-cayley": "1.69e-6", "edelta": "1.24e-6"},
    "reflection": {"jpmhc-cayley": "-0.30", "edelta": "0.96"},
    "householder": {},
}
ROTATION_TASKS = ("gyroscope", "stability", "near-pi", "near-pi-planes")
ROTATIONS = ("cayley", "cayley-mean", "quaternion", "jpmhc-cayley")
SEVERAL = 2.0
REFLECTED = 0.95


def claims(result: dict[str, Any]) -> list[dict[str, str]]:
    """Return the statements with the published numbers, ours and a verdict.

    A ratio confirms "several times better" if its 95 % interval over seeds lies above 2, refutes it if it lies below,
    and is open otherwise.
    """
    found = []
    for task in ROTATION_TASKS:
        for rival in ("plain", "mhc", "sinkhorn", "identity"):
            found += _several_times(result, task, rival)
    found += _reflections(result)
    return found


def _several_times(result: dict[str, Any], task: str, rival: str) -> list[dict[str, str]]:
    # One rotation, named before looking; the best of several would win by chance.
    other, own = (values(result, task, arm) if task in result["tasks"] else None for arm in (rival, "cayley"))
    if other is None or own is None:
        return []
    ratio = pairs.paired(other, own, relative=True)
    told = "no such arm"
    if rival in PUBLISHED[task]:
        told = significant(_number(task, rival) / _number(task, "jpmhc-cayley"))
    return [
        {
            "statement": f"{task}: a rotation (cayley) has several times less error than {rival}",
            "published": told,
            "ours": _ratio(ratio),
            "verdict": _judge(ratio),
        }
    ]


def _number(task: str, arm: str) -> float:
    return float(PUBLISHED[task][arm].split(" ")[0])


def _ratio(ratio: pairs.Paired) -> str:
    interval = "" if ratio.low is None else f" [{significant(ratio.low)}, {significant(ratio.high or 0.0)}]"
    return f"{significant(ratio.effect)}{interval}"


def _judge(ratio: pairs.Paired) -> str:
    if ratio.low is None or ratio.high is None:
        return "one seed: open"
    if ratio.low > SEVERAL:
        return "confirmed"
    return "not confirmed" if ratio.high < SEVERAL else "open"


def _reflections(result: dict[str, Any]) -> list[dict[str, str]]:
    found = []
    for task, told in (("reflection", "jpmhc -0.30"), ("householder", "no such task")):
        if task not in result["tasks"]:
            continue
        rotations = [arm for arm in result["arms"] if arm.partition(":")[0] in ROTATIONS]
        scores = {arm: own for arm in rotations if (own := values(result, task, arm)) is not None}
        if scores:
            bound = result["tasks"][task]["references"]["rotations"]
            best = max(scores, key=lambda arm: max(scores[arm]))
            failed = max(scores[best]) < REFLECTED
            # A task that no mixer learns in so many steps says nothing of rotations; the plain residual has none.
            others = (values(result, task, arm) for arm in result["arms"] if arm not in ("plain", *rotations))
            learned = any(own is not None and max(own) > REFLECTED for own in others)
            found.append(
                {
                    "statement": f"{task}: no rotation can (the most that a fixed one can: {significant(bound)})",
                    "published": told,
                    "ours": f"best seed {significant(max(scores[best]))} ({best})",
                    "verdict": ("confirmed" if learned else "open: no mixer can") if failed else "not confirmed",
                }
            )
        for arm in ("reflection", "edelta"):
            own = values(result, task, arm)
            if own is None:
                continue
            mean, error = pairs.mean_and_error(own)
            found.append(
                {
                    "statement": f"{task}: {arm} can",
                    "published": "0.96" if (task, arm) == ("reflection", "edelta") else "no such arm",
                    "ours": significant(mean) + ("" if error is None else f" ± {error:.1g}"),
                    "verdict": "confirmed" if min(own) > REFLECTED else "not confirmed",
                }
            )
    return found
