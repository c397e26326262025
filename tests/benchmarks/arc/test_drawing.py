"""Laws of drawn grids."""

import re
import xml.etree.ElementTree as ET

import numpy as np

from benchmarks.arc.drawing import COLOURS, grid_svg


def paint(svg, height, width, cell):
    """Fill the rectangles of a drawing into an array, as a browser would."""
    grid = np.full((height, width), -1)
    for path in ET.fromstring(svg).iter("path"):
        if path.get("fill") == "none":
            continue
        colour = COLOURS.index(path.get("fill"))
        for x, y, w, h in re.findall(r"M(\d+) (\d+)h(\d+)v(\d+)h-\3z", path.get("d")):
            x, y, w, h = (int(value) // cell for value in (x, y, w, h))
            assert (grid[y : y + h, x : x + w] == -1).all()
            grid[y : y + h, x : x + w] = colour
    return grid


def test_every_cell_has_its_colour():
    generator = np.random.default_rng(0)
    for shape in ((1, 1), (3, 5), (30, 30)):
        grid = generator.integers(0, 10, shape)
        np.testing.assert_array_equal(paint(grid_svg(grid.tolist(), 7, "grid"), *shape, cell=7), grid)


def test_the_palette_is_that_of_arc():
    palette = "#000000 #0074D9 #FF4136 #2ECC40 #FFDC00 #AAAAAA #F012BE #FF851B #7FDBFF #870C25"
    assert " ".join(COLOURS) == palette


def test_the_largest_grid_stays_small():
    checkerboard = (np.indices((30, 30)).sum(0) % 2).tolist()
    assert len(grid_svg(checkerboard, 18, "grid")) < 20_000


def test_the_title_is_escaped():
    svg = grid_svg([[0]], 4, 'a "title" <script>')
    assert ET.fromstring(svg).get("aria-label") == 'a "title" <script>'
