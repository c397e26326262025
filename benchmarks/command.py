"""The command line that the timing benchmarks share: run the parts, print their rows, write one JSON."""

from __future__ import annotations

import json
import math
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
    """Write all, with machine and versions, to this JSON file; an older result of the same benchmark is replaced."""


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
    try:
        _run(name, parts, options)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"stopped{_what_is_left(options.out)}", file=sys.stderr)
        return 130
    return 0


def _run(name: str, parts: Mapping[str, Part], options: Options) -> None:
    if options.out is not None:
        _check_out(options.out, name, options.quick)
    results: dict[str, Any] = {}
    for title, part in parts.items():
        results[title] = part(options.quick)
        if options.out is not None:  # what is done survives an interruption
            written = {"benchmark": name, "quick": options.quick, **environment.describe(), "parts": _finite(results)}
            _aside(options.out).write_text(json.dumps(written, indent=1, allow_nan=False) + os.linesep)
        show(title, results[title]["rows"])
        if "note" in results[title]:
            print(results[title]["note"])
    if options.out is not None:
        _aside(options.out).replace(options.out)
        print(f"wrote {options.out}")


def _aside(out: Path) -> Path:
    return out.with_suffix(".partial")


def _what_is_left(out: Path | None) -> str:
    if out is None or not _aside(out).exists():
        return ""
    if not _aside(out).stat().st_size:
        _aside(out).unlink()
        return ""
    return f"; the parts that were done are in {_aside(out)}"


def _check_out(out: Path, name: str, quick: bool) -> None:
    """Raise a ValueError or OSError if the file cannot be written, or would replace what is no older result."""
    if not out.parent.is_dir():
        raise ValueError(f"--out: the folder {out.parent} does not exist")
    if out.exists():
        try:
            found = json.loads(out.read_text())
            same = found["benchmark"] == name
        except (ValueError, KeyError, TypeError, OSError):
            same = False
        if not same:
            raise ValueError(f"--out: {out} exists and is no result of this benchmark; name another file")
        if quick and not found.get("quick"):
            raise ValueError(f"--out: {out} holds a full result, which a look with --quick must not replace")
    _aside(out).touch()


def _finite(value: Any) -> Any:
    """Return JSON values with null for numbers that are not finite, which JSON does not have."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


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
