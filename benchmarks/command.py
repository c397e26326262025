"""The command line that the timing benchmarks share: run the parts, print their rows, write one JSON."""

from __future__ import annotations

import json
import math
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import environment
from benchmarks.arc.files import write_json
from benchmarks.extras import MissingExtra, require
from benchmarks.timing import in_a_line

Result = dict[str, Any]
Part = Callable[[bool], Result | Iterator[Result]]


@dataclass
class Options:
    """Run the benchmark and print its tables.

    Contenders are timed side by side in one run, in interleaved rounds: compare ratios, not times of different runs.
    """

    quick: bool = False
    """Fewer rounds and shapes: a look, not a result."""
    only: tuple[str, ...] = ()
    """Names of the parts to run, as their tables are titled; unless given all."""
    out: Path | None = None
    """Write all, with machine and versions, to this JSON file; an older result of the same benchmark is replaced."""


def main(name: str, parts: Mapping[str, Part], arguments: list[str]) -> int:
    """Run a benchmark.

    Parameters
    ----------
    name : str
        Of the benchmark.
    parts : mapping of str to callable
        ``part(quick)`` returns a JSON-able dict with ``rows``, dicts of equal keys; or yields one as often as there are
        more rows in it, which are then kept should the part end there.
    arguments : list of str
        Of the command line, without the benchmark's name.

    Returns
    -------
    int
        Exit status; a user's mistake ends in one line. A part that fails leaves its error in the result, and the
        others run.
    """
    tyro = require("tyro", "bench")
    require("rich", "bench")
    options: Options = tyro.cli(Options, prog=f"python -m benchmarks {name}", args=arguments)
    # A time limit deserves the same goodbye as a user.
    previous = signal.signal(signal.SIGTERM, _interrupt)
    try:
        failed = _run(name, _chosen(parts, options.only), options)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"stopped{_what_is_left(options.out)}", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, previous)
    return 1 if failed else 0


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _chosen(parts: Mapping[str, Part], only: tuple[str, ...]) -> dict[str, Part]:
    for name in only:
        if name not in parts:
            raise ValueError(f"--only: expected some of {', '.join(map(repr, parts))}, got {name!r}")
    return {name: part for name, part in parts.items() if not only or name in only}


def _run(name: str, parts: Mapping[str, Part], options: Options) -> list[str]:
    """Return the names of the parts that failed."""
    if options.out is not None:
        _check_out(options.out, name, options)
    # Before anything runs: a GPU may not answer any more afterwards.
    head = {"benchmark": name, "quick": options.quick, **environment.describe()}
    results: dict[str, Result] = {}
    for title, part in parts.items():
        for result in _so_far(title, part, options.quick):
            results[title] = result
            if options.out is not None:  # what is done survives an interruption
                write_json(_aside(options.out), {**head, "parts": _finite(results)}, ".new")
        show(title, results[title]["rows"])
        if "note" in results[title]:
            print(results[title]["note"])
    failed = [title for title, result in results.items() if "error" in result]
    if options.out is not None and failed and options.out.exists():
        print(f"{options.out} is as it was, since parts failed; the new result is in {_aside(options.out)}")
    elif options.out is not None:
        _aside(options.out).replace(options.out)
        print(f"wrote {options.out}")
    return failed


def _so_far(title: str, part: Part, quick: bool) -> Iterator[Result]:
    """Yield what there is of a part whenever there is more of it, with its error at last if it fails."""
    result: Result = {"name": title, "rows": []}
    try:
        made = part(quick)
        if isinstance(made, dict):
            result = made
            yield result
            return
        seen = 0
        for result in made:
            for row in result["rows"][seen:]:
                print(f"{title}: {_line(row)}", flush=True)
            seen = len(result["rows"])
            yield result
    except Exception as error:
        if not isinstance(error, MissingExtra):
            traceback.print_exc()
        said = str(error) if isinstance(error, MissingExtra) else in_a_line(error)
        print(f"error: {title}: {said}", file=sys.stderr, flush=True)
        yield {**result, "error": said}


def _line(row: Mapping[str, Any]) -> str:
    return ", ".join(f"{key.replace('_', ' ')} {_cell(value)}" for key, value in row.items() if value is not None)


def _aside(out: Path) -> Path:
    return out.with_suffix(".partial")


def _what_is_left(out: Path | None) -> str:
    if out is None or not _aside(out).exists():
        return ""
    if not _aside(out).stat().st_size:
        _aside(out).unlink()
        return ""
    return f"; the parts that were done are in {_aside(out)}"


def _check_out(out: Path, name: str, options: Options) -> None:
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
        if options.quick and not found.get("quick"):
            raise ValueError(f"--out: {out} holds a full result, which a look with --quick must not replace")
        if options.only and set(found["parts"]) - set(options.only):
            raise ValueError(f"--out: {out} holds other parts too, which --only must not replace; name another file")
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
