"""The tables of a comparison of arms, as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks import pairs

CONTROL = "identity"
BASELINE = "plain"


def markdown(result: dict[str, Any]) -> str:
    """Return the tables of a result: one a task, then the claims."""
    machine = result["machine"]
    where = machine["gpu"] if result["device"] != "cpu" else machine["processor"]
    blocks = [
        f"# {result['benchmark']}, preset {result['preset']}",
        f"{len(result['seeds'])} seeds ({', '.join(map(str, result['seeds']))}); {where}, "
        f"torch {result['packages']['torch']}, revision {result['git']}. Means over seeds ± their standard error. "
        "Comparisons are paired over seeds (same data, same order, same initial weights where the shapes agree): "
        "ratios where the measure is an error (below 1 is better), differences otherwise, with the 95 % interval of "
        "Student's t and p-values corrected for all comparisons of a task (Holm).",
    ]
    for task in result["tasks"]:
        blocks += [f"## {task}", _facts(result, task), _task(result, task)]
    if result.get("claims"):
        rows = [[c["statement"], c["published"], c["ours"], c["verdict"]] for c in result["claims"]]
        blocks += ["## Claims", table(["statement", "published", "here", "verdict"], rows)]
    return "\n\n".join(blocks) + "\n"


def values(result: dict[str, Any], task: str, arm: str, measure: str | None = None) -> list[float] | None:
    """Return the scores of an arm on a task, in the order of the seeds; None unless every seed has one."""
    measure = measure or result["tasks"][task]["measure"]
    runs = {run["seed"]: run for run in result["runs"] if run["task"] == task and run["arm"] == arm}
    scores = [runs[seed]["scores"][measure] for seed in result["seeds"] if seed in runs and "scores" in runs[seed]]
    return scores if len(scores) == len(result["seeds"]) else None


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table, the first column to the left."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def significant(value: float) -> str:
    """Return a number with three digits."""
    return f"{value:.3g}"


def _facts(result: dict[str, Any], task: str) -> str:
    facts = result["tasks"][task]
    references = ", ".join(f"{name} {significant(value)}" for name, value in facts["references"].items())
    return (
        f"Measure: {facts['measure']}. Without training: {references}."
        if references
        else f"Measure: {facts['measure']}."
    )


def _task(result: dict[str, Any], task: str) -> str:
    facts = result["tasks"][task]
    relative = facts["relative"]
    published = facts.get("published", {})
    scores = {arm: values(result, task, arm) for arm in result["arms"]}
    columns = {name: _column(scores, name, relative) for name in (CONTROL, BASELINE) if scores.get(name)}
    every = pairs.holm([cell.p for column in columns.values() for cell in column.values()])
    corrected = dict(zip([(n, a) for n, column in columns.items() for a in column], every, strict=True))
    sign = "over" if relative else "minus"
    head = ["arm", *(["published"] if published else []), facts["measure"]]
    for name in columns:
        head += [f"{sign} {name}", "p"]
    rows = []
    for arm in result["arms"]:
        row = [arm, *([published.get(arm, "–")] if published else [])]
        runs = [run for run in result["runs"] if run["task"] == task and run["arm"] == arm]
        if scores[arm] is None:
            row.append("failed" if runs else "–")
        else:
            mean, error = pairs.mean_and_error(scores[arm])
            row.append(significant(mean) + (f" ± {error:.1g}" if error is not None else ""))
        for name, column in columns.items():
            cell = column.get(arm)
            row += [_interval(cell), _p(corrected.get((name, arm)))] if cell else ["–", "–"]
        parameters = next((f"{run['parameters']:,}" for run in runs if "parameters" in run), "–")
        tails = [run["gradient_tail"] for run in runs if "gradient_tail" in run]
        rows.append([*row, parameters, significant(sum(tails) / len(tails)) if tails else "–"])
    return table([*head, "parameters", "gradient p99/median"], rows)


def _column(scores: dict[str, list[float] | None], name: str, relative: bool) -> dict[str, pairs.Paired]:
    other = scores[name]
    assert other is not None
    return {arm: pairs.paired(own, other, relative) for arm, own in scores.items() if own is not None and arm != name}


def _interval(cell: pairs.Paired) -> str:
    if cell.low is None or cell.high is None:
        return significant(cell.effect)
    return f"{significant(cell.effect)} [{significant(cell.low)}, {significant(cell.high)}]"


def _p(value: float | None) -> str:
    return "–" if value is None else f"{value:.2g}"
