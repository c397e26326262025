"""The picture of a comparison: one panel a task, one row an arm, a dot a seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.extras import require
from benchmarks.tables import values

_LINES = {"floor": ("0.35", ":"), "copy": ("0.35", "--"), "rotations": ("tab:red", "--")}


def draw(result: dict[str, Any], path: Path) -> None:
    """Draw the scores of a result into an image file; its suffix says which kind.

    Raises
    ------
    MissingExtra
        If matplotlib is not installed.
    """
    figure_module = require("matplotlib.figure", "plot")
    tasks = list(result["tasks"])
    columns = min(3, len(tasks))
    rows = -(-len(tasks) // columns)
    height = 0.9 + 0.24 * len(result["arms"])
    figure = figure_module.Figure(figsize=(3.6 * columns + 0.8, height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for axis, task in zip(axes.flat, tasks, strict=False):
        _panel(axis, result, task)
    for axis in axes.flat[len(tasks) :]:
        axis.remove()
    figure.savefig(path, dpi=150)


def check_format(path: Path) -> None:
    """Raise a ValueError if the suffix names no kind of image, and a MissingExtra if matplotlib is not installed."""
    known = require("matplotlib.backend_bases", "plot").FigureCanvasBase.get_supported_filetypes()
    if path.suffix[1:].lower() not in known:
        raise ValueError(f"--plot: expected a name that ends in one of {', '.join(sorted(known))}, got {path}")


def _log_scale(axis: Any) -> None:
    ticker = require("matplotlib.ticker", "plot")
    axis.set_xscale("log")
    low, high = axis.get_xlim()
    # Within one decade matplotlib labels the minor ticks, and they overlap.
    if high < 30 * low:
        axis.xaxis.set_major_locator(ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axis.xaxis.set_minor_formatter(ticker.NullFormatter())


def _panel(axis: Any, result: dict[str, Any], task: str) -> None:
    facts, arms = result["tasks"][task], result["arms"]
    for row, arm in enumerate(arms):
        scores = values(result, task, arm)
        if scores is None:
            continue
        axis.plot(scores, [row] * len(scores), "o", color="tab:blue", alpha=0.45, markersize=5, markeredgewidth=0)
        middle = np.exp(np.mean(np.log(scores))) if facts["relative"] else np.mean(scores)
        axis.plot([middle], [row], "|", color="black", markersize=11, markeredgewidth=1.6)
    for name, value in facts["references"].items():
        colour, style = _LINES.get(name, ("0.6", "-."))
        if value > 0 or not facts["relative"]:
            axis.axvline(value, color=colour, linestyle=style, linewidth=1, label=name)
    if facts["relative"]:
        _log_scale(axis)
    axis.set_yticks(range(len(arms)), arms)
    axis.set_ylim(len(arms) - 0.5, -0.5)
    axis.set_title(task, fontsize=10)
    axis.set_xlabel(facts["measure"], fontsize=9)
    axis.tick_params(labelsize=8)
    axis.grid(axis="x", alpha=0.25)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize=7, frameon=False, loc="best")
