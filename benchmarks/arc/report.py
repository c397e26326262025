"""The report of a comparison: one HTML page that needs nothing but itself."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.arc import curves, drawing, findings, palette, results, table
from benchmarks.arc.analysis import analyse
from benchmarks.arc.palette import Style
from benchmarks.arc.presets import Preset
from benchmarks.extras import require
from jpmhc import layers

REPORT = "report.html"
SHOWN_TESTS = 6

_TEMPLATE = "report.html.jinja"
_EXACT = "✓ exact"
_GRID_PIXELS = 138
_CELL_PIXELS = range(4, 33)
_COLLECTIONS = {"arc-agi-1": "ARC-AGI-1", "mini-arc": "Mini-ARC"}
_SETS = {
    "{I}": "the identity, so not at all",
    "all matrices": "unconstrained",
    "Birkhoff": "doubly stochastic",
    "SO(n)": "a rotation",
}

Grid = list[list[int]]


def write_report(folder: Path, *, timings: bool = True) -> Path:
    """Write ``report.html`` into the folder of a comparison.

    Parameters
    ----------
    folder : Path
        Holds ``comparison.json`` and the runs it names.
    timings : bool
        False leaves seconds out, for runs that shared their machine.

    Returns
    -------
    Path
        The report. It is renamed into place when it is whole, so a reader finds the old one or the new one.

    Raises
    ------
    ValueError
        If a file is missing or damaged, or the runs were evaluated on different tests; the message names the file.
    ModuleNotFoundError
        If matplotlib or Jinja2 is not installed.
    """
    jinja2 = require("jinja2", "bench")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    page = environment.get_template(_TEMPLATE).render(_context(results.read_comparison(folder), folder, timings))
    path = folder / REPORT
    aside = path.with_suffix(".partial")
    with aside.open("w", encoding="utf-8") as file:
        file.write(page)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)
    return path


def describe_arm(arm: str) -> str:
    """Say in one sentence what an arm is.

    Examples
    --------
    >>> describe_arm("cayley:step=0.1")
    'Streams mixed by M in SO(n), a rotation: n(n−1)/2 numbers a matrix, exact to round-off; with step=0.1.'
    """
    name, _, arguments = arm.partition(":")
    if name == "plain":
        return "The plain residual x + F(x): one stream, no mixer, no gates."
    recipe = next((recipe for recipe in layers.recipes() if recipe.name == name), None)
    if recipe is not None:
        return f"A published layer with its own gate, norm and start: {recipe.source}."
    info = next((info for info in layers.mixers() if str(info) == name), None)
    if info is None:
        return "A residual that this version of jpmhc does not know."
    set_ = f"{info.set}, {_SETS[info.set]}" if info.set in _SETS else info.set
    exact = "exact to round-off" if info.exact else "approximate"
    given = f"; with {arguments}" if arguments else ""
    numbers = info.coefficients.replace("^2", "²").replace("-", "−")
    return f"Streams mixed by M in {set_}: {numbers} numbers a matrix, {exact}{given}."


def _context(comparison: dict[str, Any], folder: Path, timings: bool) -> dict[str, Any]:
    """Gather what the template shows."""
    arms, settings = comparison["arms"], Preset.from_json(comparison["config"])
    styles = palette.styles(arms)
    rows = table.rows(comparison, folder, timings=timings)
    complete = {arm: results.complete_runs(comparison, arm) for arm in arms}
    metrics = {arm: [results.read_metrics(folder, run) for run in runs] for arm, runs in complete.items()}
    lengths = sorted({len(one["step"]) for several in metrics.values() for one in several})
    seed = comparison["seeds"][0]
    first = {
        arm: (folder / run["evaluation"], results.read_evaluation(folder, run))
        for arm, runs in complete.items()
        for run in runs
        if run["seed"] == seed
    }
    # Before anything is compared, as it is what finds evaluations on different tests.
    tests = _tests(arms, first, styles)
    analysis = analyse(comparison, folder)
    evaluations = {arm: [results.read_evaluation(folder, run) for run in runs] for arm, runs in complete.items()}
    return {
        "comparison": comparison,
        "collections": " and ".join(_COLLECTIONS[source] for source in settings.data.sources),
        "arms": [{"name": arm, "text": describe_arm(arm), "style": styles[arm]} for arm in arms],
        "inks": palette.INKS,
        "tables": [_html_table(title, columns, rows, styles) for title, columns in table.TABLES.items()],
        "caption": [findings.setting(settings), *table.caption(rows)],
        "sections": findings.sections(comparison, analysis, evaluations),
        "missing": table.missing(rows),
        "steps": _range(lengths),
        "windows": _range(sorted({curves.window(length) for length in lengths})),
        "plots": _plots(metrics, styles, comparison["copy"]["train"]["token_accuracy"]) if lengths else [],
        "bands": _bands(analysis, styles),
        "variants": max((evaluation["variants"] for _, evaluation in first.values()), default=None),
        "seed": seed,
        "tests": tests,
        "settings": _flat(comparison["config"]),
    }


def _html_table(
    title: str, columns: Sequence[table.Column], rows: Sequence[table.Row], styles: dict[str, Style]
) -> dict[str, Any]:
    groups: list[list[Any]] = []
    for column in columns:
        if groups and groups[-1][0] == column.group:
            groups[-1][1] += 1
        else:
            groups.append([column.group, 1])
    body = [
        {"label": row.label, "style": styles.get(row.arm), "cells": [column.cell(row) for column in columns]}
        for row in rows
    ]
    return {"title": title, "groups": groups, "columns": columns, "rows": body}


def _plots(
    metrics: dict[str, list[results.Metrics]], styles: dict[str, Style], baseline: float
) -> list[dict[str, Any]]:
    markup = require("markupsafe", "bench").Markup
    return [
        {
            "title": plot.title,
            "svg": markup(
                curves.curves_svg(plot, metrics, styles, baseline if plot.metric == "token_accuracy" else None)
            ),
        }
        for plot in curves.PLOTS
    ]


def _bands(analysis: dict[str, Any], styles: dict[str, Style]) -> list[dict[str, Any]]:
    """Draw what the mixers were in training and what their product does at its end, where there is anything to draw."""
    probes = {
        arm: probe for arm, probe in analysis["probes"].items() if probe["last"] and probe["last"]["contrast_gains"]
    }
    gains = {arm: probe["last"]["contrast_gains"] for arm, probe in probes.items()}
    products = {
        arm: curves.Band(range(1, len(pairs) + 1), [low for _, low in pairs], [high for high, _ in pairs])
        for arm, pairs in gains.items()
    }
    residuals = {arm: curves.Band(*zip(*probe["residuals"], strict=True)) for arm, probe in probes.items()}
    drawn = (
        ("Gain of the mixers’ product on differences of streams, first seed", products, "mixers applied"),
        ("Distance of the mixers from their set, lowest to highest seed", residuals, "step"),
    )
    markup = require("markupsafe", "bench").Markup
    return [
        {"title": title, "svg": markup(curves.bands_svg(bands, styles, label))}
        for title, bands, label in drawn
        if bands
    ]


def _tests(
    arms: Sequence[str], evaluations: dict[str, tuple[Path, dict[str, Any]]], styles: dict[str, Style]
) -> list[dict[str, Any]]:
    """Lay out the first held-out tests: the input, what each arm answers, the truth."""
    shown = {path: _first_tests(evaluation) for path, evaluation in evaluations.values()}
    if not shown:
        return []
    reference, tests = next(iter(shown.items()))
    for path, others in shown.items():
        if [_puzzle(test) for test in others] != [_puzzle(test) for test in tests]:
            raise ValueError(f"{path}: its held-out tests are not those of {reference}")
    layout = []
    for index, test in enumerate(tests):
        name = f"{test['task']}, test {test['test'] + 1}"
        answers = {arm: _answer(shown[path][index]) for arm, (path, _) in evaluations.items()}
        grids = [test["input"], test["truth"], *(answer["grid"] for answer in answers.values() if answer)]
        cell = _cell_pixels(grids)
        copied = f"copied: {_likeness(test['input'], test['truth'])}"
        panels = [_panel("input", test["input"], cell, name, [copied])]
        for arm in arms:
            answer = answers.get(arm)
            if answer is None:
                reason = "no rectangle decoded" if arm in evaluations else "run missing"
                panel = {"title": arm, "svg": None, "notes": [reason]}
            else:
                votes = f"{answer['votes']} {'vote' if answer['votes'] == 1 else 'votes'}"
                panel = _panel(arm, answer["grid"], cell, name, [_likeness(answer["grid"], test["truth"]), votes])
            panels.append({**panel, "style": styles[arm]})
        panels.append(_panel("truth", test["truth"], cell, name, []))
        layout.append({"task": test["task"], "test": test["test"] + 1, "panels": panels})
    return layout


def _first_tests(evaluation: dict[str, Any]) -> list[dict[str, Any]]:
    return sorted(evaluation["predictions"], key=lambda test: (test["task"], test["test"]))[:SHOWN_TESTS]


def _puzzle(test: dict[str, Any]) -> tuple[Any, ...]:
    return test["task"], test["test"], test["input"], test["truth"]


def _answer(test: dict[str, Any]) -> dict[str, Any] | None:
    """Return the candidate with most votes, None if no variant gave a rectangle."""
    return test["candidates"][0] if test["candidates"] else None


def _panel(title: str, grid: Grid, cell: int, name: str, notes: list[str]) -> dict[str, Any]:
    markup = require("markupsafe", "bench").Markup
    svg = markup(drawing.grid_svg(grid, cell, f"{name}: {title}, {_shape(grid)}"))
    return {"title": title, "svg": svg, "notes": notes, "exact": _EXACT in notes, "style": None}


def _likeness(grid: Grid, truth: Grid) -> str:
    """Say how much of the truth a grid has."""
    if grid == truth:
        return _EXACT
    if _shape(grid) != _shape(truth):
        return f"{_shape(grid)}, not {_shape(truth)}"
    right = sum(a == b for row, other in zip(grid, truth, strict=True) for a, b in zip(row, other, strict=True))
    # Rounded down, so that 100 % always means exact.
    return f"{100 * right // (len(truth) * len(truth[0]))} % of cells"


def _shape(grid: Grid) -> str:
    return f"{len(grid)} × {len(grid[0])}"


def _cell_pixels(grids: Sequence[Grid]) -> int:
    """Return the largest cell with which the grids of one test fit, the same for all so that sizes compare."""
    side = max(max(len(grid), len(grid[0])) for grid in grids)
    return max(_CELL_PIXELS.start, min(_GRID_PIXELS // side, _CELL_PIXELS.stop - 1))


def _range(values: Sequence[int]) -> str:
    """Write sorted whole numbers as one, or as lowest to highest."""
    if not values:
        return "–"
    return f"{values[0]:,}" if len(values) == 1 else f"{values[0]:,} to {values[-1]:,}"


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Name nested settings by their path: ``{"train": {"lr": 1}}`` is ``{"train.lr": 1}``."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat
