"""A grid of ARC as a small SVG with crisp cells."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from benchmarks.extras import require

COLOURS = (
    "#000000",  # black
    "#0074D9",  # blue
    "#FF4136",  # red
    "#2ECC40",  # green
    "#FFDC00",  # yellow
    "#AAAAAA",  # grey
    "#F012BE",  # fuchsia
    "#FF851B",  # orange
    "#7FDBFF",  # teal
    "#870C25",  # brown
)
_LINES = "#555555"


def show_grid(grid: Sequence[Sequence[int]]) -> None:
    """Print a grid in its colours, two columns a cell; the digits stand in it where there is no colour."""
    require("rich", "bench")
    from rich.console import Console
    from rich.text import Text

    console = Console()
    for row in grid:
        console.print(Text.assemble(*((f"{cell} ", f"white on {COLOURS[cell]}") for cell in row)))


def grid_svg(grid: Sequence[Sequence[int]], cell: int, title: str) -> str:
    """Draw a grid.

    Parameters
    ----------
    grid : sequence of rows, shape (h, w)
        Colours 0 to 9, at least one.
    cell : int
        Side of a cell in CSS pixels, its line included.
    title : str
        What a screen reader says; escaped here.

    Returns
    -------
    str
        An ``<svg>`` element of ``w * cell + 1`` by ``h * cell + 1`` pixels, safe to put into a page. With one path a
        colour and one rectangle a run of cells, the noisiest grid of 30 x 30 takes less than 20 kB.
    """
    height, width = len(grid), len(grid[0])
    paths: dict[int, list[str]] = {}
    for y, row in enumerate(grid):
        x = 0
        for colour, cells in groupby(row):
            length = len(list(cells)) * cell
            paths.setdefault(colour, []).append(f"M{x} {y * cell}h{length}v{cell}h-{length}z")
            x += length
    right, bottom = width * cell + 1, height * cell + 1
    # Lines one pixel wide are sharp where they run through the middles of pixels.
    lines = [f"M{x * cell}.5 0v{bottom}" for x in range(width + 1)]
    lines += [f"M0 {y * cell}.5h{right}" for y in range(height + 1)]
    body = "".join(f'<path fill="{COLOURS[colour]}" d="{"".join(parts)}"/>' for colour, parts in sorted(paths.items()))
    label = require("markupsafe", "bench").escape(title)
    return (
        f'<svg class="grid" role="img" aria-label="{label}" width="{right}" height="{bottom}" '
        f'viewBox="0 0 {right} {bottom}" shape-rendering="crispEdges">{body}'
        f'<path fill="none" stroke="{_LINES}" d="{"".join(lines)}"/></svg>'
    )
