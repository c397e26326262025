"""The table of a comparison: one row an arm in the order asked for, never ranked, for terminal, Markdown and HTML."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.arc import results
from benchmarks.arc.analysis import spikes
from benchmarks.extras import require

if TYPE_CHECKING:
    from rich.console import RenderableType

COPY = "copy the input"
CONSTANT = "one token everywhere"
# The arms that a claim about a mixer needs beside it: no streams, and streams that are not mixed.
CONTROLS = ("plain", "identity")
FINAL_STEPS = 20


@dataclass(frozen=True)
class Estimate:
    """A number, with its standard error where there is one."""

    mean: float
    error: float | None = None


@dataclass(frozen=True)
class Row:
    """One line of the table; a value is None where it does not exist or every run of the arm is missing.

    Attributes
    ----------
    arm : str
        As the user wrote it, or `COPY`.
    seeds, complete : int
        Seeds asked for and seeds that count; both 0 for the baseline.
    tests : int or None
        Held-out tests behind the scores.
    missing : tuple of str
        The runs that do not count, each with the reason.
    train_loss : Estimate or None
        Mean over the last `FINAL_STEPS` steps.
    train_token_accuracy, train_exact : Estimate or None
        Fractions, on the training pairs, with the averaged weights.
    token_accuracy, exact, pass_1, pass_2 : Estimate or None
        Fractions, on the held-out tests, with the averaged weights.
    gradient_median, gradient_p99, gradient_ratio, spikes : Estimate or None
        Median and 99th percentile of the gradient norm, the second over the first, and how many steps are spikes, see
        `analysis.spikes`.
    seconds, peak_memory, parameters, mixing_parameters, gflops : Estimate or None
        Training time, MiB at the peak as `caption` says, numbers trained in the network, those of them that mix, and
        floating-point operations of one segment in units of 1e9.
    """

    arm: str
    seeds: int
    complete: int
    tests: int | None = None
    missing: tuple[str, ...] = ()
    train_loss: Estimate | None = None
    train_token_accuracy: Estimate | None = None
    train_exact: Estimate | None = None
    token_accuracy: Estimate | None = None
    exact: Estimate | None = None
    pass_1: Estimate | None = None
    pass_2: Estimate | None = None
    gradient_median: Estimate | None = None
    gradient_p99: Estimate | None = None
    gradient_ratio: Estimate | None = None
    spikes: Estimate | None = None
    seconds: Estimate | None = None
    peak_memory: Estimate | None = None
    parameters: Estimate | None = None
    mixing_parameters: Estimate | None = None
    gflops: Estimate | None = None

    @property
    def label(self) -> str:
        """The arm, with the number of seeds that count where some do not."""
        return f"{self.arm} ({self.complete} of {self.seeds} seeds)" if 0 < self.complete < self.seeds else self.arm


@dataclass(frozen=True)
class Column:
    """A field of `Row` with its heading (group, name) and its way to print."""

    field: str
    group: str
    name: str
    show: Callable[[Estimate], str]

    def cell(self, row: Row) -> str:
        """Print the value: ``missing`` if no run of the arm counts, a dash if there is no such number."""
        value: Estimate | None = getattr(row, self.field)
        if value is not None:
            return self.show(value)
        return "missing" if row.seeds and not row.complete else "–"


def _fixed(digits: int, scale: float = 1) -> Callable[[Estimate], str]:
    def show(value: Estimate) -> str:
        error = "" if value.error is None else f" ± {scale * value.error:,.{digits}f}"
        return f"{scale * value.mean:,.{digits}f}{error}"

    return show


def _exactly(digits: int) -> Callable[[Estimate], str]:
    return lambda value: f"{value.mean:,.{digits}f}"


def _significant(value: Estimate) -> str:
    return f"{value.mean:.3g}"


_percent = _fixed(1, 100)

# Several tables, because one of all columns fits no terminal and no phone.
TABLES: dict[str, tuple[Column, ...]] = {
    "What was learned": (
        Column("train_loss", "train", "loss", _fixed(3)),
        Column("train_token_accuracy", "train", "token %", _percent),
        Column("train_exact", "train", "exact %", _percent),
    ),
    "What holds on the tests": (
        Column("token_accuracy", "held-out", "token %", _percent),
        Column("exact", "held-out", "exact %", _percent),
        Column("pass_1", "held-out", "pass@1 %", _percent),
        Column("pass_2", "held-out", "pass@2 %", _percent),
    ),
    "How steadily": (
        Column("gradient_median", "gradient norm", "median", _fixed(3)),
        Column("gradient_p99", "gradient norm", "p99", _fixed(2)),
        Column("gradient_ratio", "gradient norm", "p99/median", _fixed(2)),
        Column("spikes", "gradient norm", "spikes", _fixed(1)),
    ),
    "What it took": (
        Column("seconds", "training", "seconds", _fixed(1)),
        Column("peak_memory", "memory", "peak MiB", _fixed(0)),
        Column("gflops", "segment", "GFLOP", _significant),
        Column("parameters", "parameters", "all", _exactly(0)),
        Column("mixing_parameters", "parameters", "mixing", _exactly(0)),
    ),
}


def rows(comparison: dict[str, Any], folder: Path, *, timings: bool = True) -> list[Row]:
    """Gather the table of a comparison: the copy baseline, then every arm in the order of ``comparison["arms"]``.

    Parameters
    ----------
    comparison : dict
        What `results.read_comparison` returns.
    folder : Path
        The folder that the paths in it are relative to.
    timings : bool
        False leaves seconds out, for runs that shared their machine.

    Returns
    -------
    list of Row
        With one seed the errors are those of the evaluation. With several, values are means over the seeds that are
        complete and errors are standard errors over them (none if only one is).

    Raises
    ------
    ValueError
        If a file of a complete run is missing or damaged.
    """
    floors = [_floor(COPY, comparison["copy"])]
    if "constant" in comparison:
        floors.append(_floor(CONSTANT, comparison["constant"]))
    found = [*floors, *(_arm_row(comparison, folder, arm) for arm in comparison["arms"])]
    return found if timings else [replace(row, seconds=None) for row in found]


def caption(rows: Sequence[Row]) -> list[str]:
    """Return the sentences that belong under the table."""
    baseline = next(row for row in rows if not row.seeds)
    assert baseline.token_accuracy is not None
    seeds = max(row.seeds for row in rows)
    error = (
        f"Means over the complete seeds of {seeds}; ± is the standard error over them."
        if seeds > 1
        else "One seed; ± is the evaluation's standard error, and says nothing of other seeds."
    )
    absent = [arm for arm in CONTROLS if arm not in {row.arm for row in rows}]
    without = (
        [f"Not in this comparison: {' and '.join(absent)}. Without them no difference here can be put down to a mixer."]
        if absent
        else []
    )
    return [
        f"{error} Loss: mean of the last {FINAL_STEPS} steps. Scores: averaged (EMA) weights; token accuracy counts "
        "the cells of the output and its border, exact match and pass@k whole grids. A spike is a gradient norm above "
        "five times the median of the twenty steps before. Seconds: training steps, without what the first compiles, "
        "and without evaluation. Memory: on a CPU the most that a training step allocates beyond what is kept between "
        "steps, on a GPU the most allocated in the whole run.",
        f"Held-out exact match at this scale ({baseline.tests} tests) is small and noisy, and is not a ranking.",
        f"Copying the input already has {100 * baseline.token_accuracy.mean:.1f} % token accuracy on the held-out "
        "tests: read every token accuracy against that.",
        *without,
    ]


def missing(rows: Sequence[Row]) -> str:
    """Return what was asked for and does not count, with the reasons, or nothing."""
    return ", ".join(text for row in rows for text in row.missing)


def rich_table(rows: Sequence[Row]) -> RenderableType:
    """Return the tables and their caption for a terminal of at least 80 columns.

    Raises
    ------
    ModuleNotFoundError
        If rich is not installed.
    """
    require("rich", "bench")
    from rich.box import SIMPLE_HEAD
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    parts: list[RenderableType] = []
    for title, columns in TABLES.items():
        table = Table(
            title=Text(title, "bold"),
            title_justify="left",
            box=SIMPLE_HEAD,
            show_edge=False,
            pad_edge=False,
            padding=(0, 1, 0, 0),
        )
        # Cut off, two arms with arguments would look alike.
        table.add_column("\narm", style="bold", overflow="fold")
        for column in columns:
            table.add_column(f"{column.group}\n{column.name}", justify="right", no_wrap=True)
        for row in rows:
            # Text, because an arm may carry brackets, which rich would take for markup.
            cells = [column.cell(row).replace(" ± ", "±") for column in columns]
            table.add_row(Text(row.label), *cells, style=None if row.seeds else "dim")
        parts += [table, Text()]
    parts += [Text(sentence, "dim") for sentence in caption(rows)]
    if lacking := missing(rows):
        parts.append(Text(f"Missing: {lacking}.", "yellow"))
    return Group(*parts)


def markdown_table(rows: Sequence[Row]) -> str:
    """Return the tables and their caption as GitHub-flavoured Markdown."""
    blocks = []
    for columns in TABLES.values():
        lines = [["arm", *(f"{column.group} {column.name}" for column in columns)], ["---"] + ["---:"] * len(columns)]
        lines += [[row.label, *(column.cell(row) for column in columns)] for row in rows]
        blocks.append("\n".join(f"| {' | '.join(cells)} |" for cells in lines))
    blocks.append(" ".join(caption(rows)))
    if lacking := missing(rows):
        blocks.append(f"Missing: {lacking}.")
    return "\n\n".join(blocks) + "\n"


def show(folder: Path) -> None:
    """Print the table of the comparison in a folder.

    Raises
    ------
    ValueError
        If a file is missing or damaged; the message names it.
    ModuleNotFoundError
        If rich is not installed.
    """
    require("rich.console", "bench").Console().print(rich_table(rows(results.read_comparison(folder), folder)))


def _floor(name: str, scores: dict[str, Any]) -> Row:
    held_out, train = scores["held_out"], scores["train"]
    return Row(
        arm=name,
        seeds=0,
        complete=0,
        tests=held_out["count"],
        train_token_accuracy=Estimate(train["token_accuracy"], train.get("token_accuracy_se")),
        train_exact=Estimate(train["exact"], train.get("exact_se")),
        token_accuracy=Estimate(held_out["token_accuracy"], held_out.get("token_accuracy_se")),
        exact=Estimate(held_out["exact"], held_out.get("exact_se")),
    )


def _arm_row(comparison: dict[str, Any], folder: Path, arm: str) -> Row:
    runs = results.complete_runs(comparison, arm)
    seeds = len(comparison["seeds"])
    lacking = tuple(results.missing_runs(comparison, arm))
    if not runs:
        return Row(arm, seeds, 0, missing=lacking)
    metrics = [results.read_metrics(folder, run) for run in runs]
    evaluations = [results.read_evaluation(folder, run) for run in runs]

    def score(part: str, name: str) -> Estimate:
        parts = [evaluation[part] for evaluation in evaluations]
        if seeds == 1:
            return Estimate(parts[0][name], parts[0].get(f"{name}_se"))
        return _over_seeds([part[name] for part in parts])

    def cost(name: str) -> Estimate | None:
        values = [run[name] for run in runs]
        return None if None in values else _over_seeds(values)

    return Row(
        arm=arm,
        seeds=seeds,
        complete=len(runs),
        tests=evaluations[0]["held_out"].get("count"),
        missing=lacking,
        train_loss=_over_seeds([float(m["loss"][-FINAL_STEPS:].mean()) for m in metrics]),
        train_token_accuracy=score("train", "token_accuracy"),
        train_exact=score("train", "exact"),
        token_accuracy=score("held_out", "token_accuracy"),
        exact=score("held_out", "exact"),
        pass_1=score("held_out", "pass@1"),
        pass_2=score("held_out", "pass@2"),
        gradient_median=_over_seeds([float(np.median(m["gradient_norm"])) for m in metrics]),
        gradient_p99=_over_seeds([float(np.quantile(m["gradient_norm"], 0.99)) for m in metrics]),
        gradient_ratio=_over_seeds([_tail_ratio(m["gradient_norm"]) for m in metrics]),
        spikes=_over_seeds([spikes(m["gradient_norm"]) for m in metrics]),
        seconds=cost("seconds"),
        peak_memory=cost("peak_memory_mib"),
        parameters=cost("parameters"),
        mixing_parameters=cost("mixing_parameters"),
        gflops=cost("segment_gflops"),
    )


def standard_error(values: Sequence[float]) -> float:
    """Return the standard error of the mean of at least two values."""
    return float(np.std(values, ddof=1)) / math.sqrt(len(values))


def _over_seeds(values: Sequence[float]) -> Estimate:
    return Estimate(float(np.mean(values)), standard_error(values) if len(values) > 1 else None)


def _tail_ratio(norms: np.ndarray) -> float:
    # A median of zero means that nothing was trained: inf or nan is then the honest answer.
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.divide(np.quantile(norms, 0.99), np.median(norms)))
