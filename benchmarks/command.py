"""The command line that the timing benchmarks share: run the parts, print their rows, write one JSON."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import environment
from benchmarks.extras import require

Part = Callable[[bool], dict[str, Any]]


@dataclass
class Options:
    """Run the benchmark and print its tables.

    Contenders are timed side by side in one run, in interleaved rounds: compare ratios, not times of different runs.
    """

    quick: bool = False
    """Fewer rounds and shapes: a look, not a result."""
    out: Path | None = None
    """Write everything, with machine and versions, to this JSON file."""


def main(name: str, parts: Mapping[str, Part], arguments: list[str]) -> int:
    """Run a benchmark.

    Parameters
    ----------
    name : str
        Of the benchmark.
    parts : mapping of str to callable
        ``part(quick)`` returns a JSON-able dict with ``rows``, dicts of equal keys.
    arguments : list of str
        Of the command line, without the benchmark's name.

    Returns
    -------
    int
        Exit status; a user's mistake ends in one line.
    """
    tyro = require("tyro", "bench")
    options: Options = tyro.cli(Options, prog=f"python -m benchmarks {name}", args=arguments)
    if options.out is not None and not options.out.parent.is_dir():
        print(f"error: --out: the folder {options.out.parent} does not exist", file=sys.stderr)
        return 1
    aside = None if options.out is None else options.out.with_suffix(".partial")
    results: dict[str, Any] = {}
    for title, part in parts.items():
        results[title] = part(options.quick)
        if aside is not None:  # what is done survives an interruption
            written = {"benchmark": name, "quick": options.quick, **environment.describe(), "parts": results}
            aside.write_text(json.dumps(written, indent=1) + os.linesep)
        show(title, results[title]["rows"])
        if "note" in results[title]:
            print(results[title]["note"])
    if aside is not None and options.out is not None:
        aside.replace(options.out)
        print(f"wrote {options.out}")
    return 0


def show(title: str, rows: list[dict[str, Any]]) -> None:
    """Print rows as a table; columns are all keys in the order of their first appearance."""
    require("rich", "bench")
    from rich.console import Console
    from rich.table import Table

    columns = list(dict.fromkeys(key for row in rows for key in row))
    numeric = {c for c in columns if any(isinstance(row.get(c), (int, float)) for row in rows)}
    table = Table(title=title, box=None, pad_edge=False, title_justify="left")
    for column in columns:
        justify = "right" if column in numeric else "left"
        table.add_column(column.replace("_", " "), justify=justify, no_wrap=column == "name")
    for row in rows:
        table.add_row(*(_cell(row.get(column)) for column in columns))
    # A pipe has no width of its own, and eighty columns would cut numbers.
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, list):
        return " x ".join(map(str, value))
    return str(value)
