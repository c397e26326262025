"""The results of a comparison as files to keep: numbers as JSON, tables as Markdown, the report as it is."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from benchmarks.arc import findings, results, table
from benchmarks.arc.analysis import analyse
from benchmarks.arc.claims import claims
from benchmarks.arc.files import write_json
from benchmarks.arc.presets import Preset
from benchmarks.arc.report import write_report


def publish(folder: Path, prefix: Path, *, timings: bool = True) -> list[Path]:
    """Write ``PREFIX.json``, ``PREFIX.md`` and ``PREFIX.html``.

    Parameters
    ----------
    folder : Path
        Of the comparison.
    prefix : Path
        Path and beginning of the names.
    timings : bool
        False leaves out seconds, for runs that shared their machine.

    Returns
    -------
    list of Path
        What was written.

    Raises
    ------
    ValueError
        If a file of the comparison is missing or damaged, or the folder of the prefix does not exist.
    """
    if not prefix.parent.is_dir():
        raise ValueError(f"{prefix.parent}: the folder does not exist")
    comparison = results.read_comparison(folder)
    analysis = analyse(comparison, folder)
    complete = {arm: results.complete_runs(comparison, arm) for arm in comparison["arms"]}
    evaluations = {arm: [results.read_evaluation(folder, run) for run in runs] for arm, runs in complete.items()}
    paths = [prefix.with_name(f"{prefix.name}.{ending}") for ending in ("json", "md", "html")]
    kept = {**comparison, "runs": [_kept(run, timings) for run in comparison["runs"]]}
    judged = [claim.__dict__ for claim in claims(comparison, analysis)]
    write_json(paths[0], {**kept, "timings": timings, "analysis": analysis, "claims": judged})
    preset = Preset.from_json(comparison["config"])
    parts = [
        f"## {comparison['preset']}, {preset.train.steps} steps of {preset.train.batch}",
        f"{comparison['split']} {findings.setting(preset)}",
        table.markdown_table(table.rows(comparison, folder, timings=timings)).strip(),
        findings.markdown(findings.sections(comparison, analysis, evaluations)),
    ]
    paths[1].write_text("\n\n".join(parts), encoding="utf-8")
    shutil.copyfile(write_report(folder, timings=timings), paths[2])
    return paths


def _kept(run: dict[str, Any], timings: bool) -> dict[str, Any]:
    return {name: value for name, value in run.items() if timings or name != "seconds"}
