import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from benchmarks.arc.encode import EOG, FIRST_COLOUR, PAD, VOCAB, decode, encode
from benchmarks.arc.tasks import load_arc_agi_1


@pytest.fixture(scope="module")
def arc():
    return load_arc_agi_1()


@st.composite
def placed_grids(draw):
    side = draw(st.integers(1, 30))
    h, w = draw(st.integers(1, side)), draw(st.integers(1, side))
    grid = draw(hnp.arrays(np.uint8, (h, w), elements=st.integers(0, 9)))
    return grid, side, (draw(st.integers(0, side - h)), draw(st.integers(0, side - w)))


@settings(deadline=None)
@given(placed_grids())
def test_decode_inverts_encode_in_the_corner(placed):
    grid, side, _ = placed
    np.testing.assert_array_equal(decode(encode(grid, side), side), grid)


@settings(deadline=None)
@given(placed_grids())
def test_every_token_of_a_placed_grid_is_what_the_format_says(placed):
    grid, side, (top, left) = placed
    h, w = grid.shape
    square = encode(grid, side, (top, left)).reshape(side, side)
    for r in range(side):
        for c in range(side):
            in_rows, in_columns = top <= r < top + h, left <= c < left + w
            if in_rows and in_columns:
                expected = grid[r - top, c - left] + 2
            elif (in_columns and r == top + h) or (in_rows and c == left + w):
                expected = 1
            else:
                expected = 0
            assert square[r, c] == expected


def test_every_grid_of_arc_agi_1_round_trips_at_side_30(arc):
    for task in arc:
        for pair in (*task.demos, *task.tests):
            for grid in (pair.input, pair.output):
                np.testing.assert_array_equal(decode(encode(grid, 30), 30), grid)


def test_labelled_tokens_are_the_cells_and_the_border_inside_the_square(arc):
    # Means 130.6 and 211.4; with the border of the grids that fill the square, which no model sees, 131.2 and 213.6.
    for split, total in (("training", 224_390), ("evaluation", 376_710)):
        outputs = [pair.output for task in arc if task.split == split for pair in (*task.demos, *task.tests)]
        labelled = [np.count_nonzero(encode(grid, 30) != PAD) for grid in outputs]
        assert labelled == [h * w + w * (h < 30) + h * (w < 30) for h, w in (grid.shape for grid in outputs)]
        assert sum(labelled) == total


def _rectangles(square):
    """All rectangles of colours at the corner, as (-area, rows, columns)."""
    side = len(square)
    return [
        (-h * w, h, w) for h in range(1, side + 1) for w in range(1, side + 1) if (square[:h, :w] >= FIRST_COLOUR).all()
    ]


@settings(deadline=None)
@given(
    st.integers(1, 7).flatmap(lambda s: hnp.arrays(np.uint8, (s, s), elements=st.sampled_from([0, 1, *range(2, 12)])))
)
def test_decode_finds_the_largest_rectangle_of_colours_at_the_corner(square):
    side = len(square)
    found = decode(square.reshape(-1), side)
    rectangles = _rectangles(square)
    if not rectangles:
        assert found is None
    else:
        _, h, w = min(rectangles)
        np.testing.assert_array_equal(found, square[:h, :w] - FIRST_COLOUR)


@settings(deadline=None)
@given(st.integers(1, 7).flatmap(lambda s: hnp.arrays(np.bool_, (s, s))))
def test_decode_finds_the_largest_rectangle_among_sparse_holes(holes):
    square = np.where(holes & (np.arange(holes.size).reshape(holes.shape) % 3 == 0), EOG, FIRST_COLOUR + 4)
    found = decode(square.reshape(-1), len(square))
    rectangles = _rectangles(square)
    assert (found is None) == (not rectangles)
    if rectangles:
        assert found.shape == min(rectangles)[1:]


def test_equal_areas_are_decided_for_the_fewest_rows():
    square = np.array([[2, 2, 0], [2, 0, 0], [0, 0, 0]])
    assert decode(square.reshape(-1), 3).shape == (1, 2)


@pytest.mark.parametrize("corner", [PAD, EOG])
def test_a_corner_without_colour_is_no_grid(corner):
    tokens = np.full(9, FIRST_COLOUR)
    tokens[0] = corner
    assert decode(tokens, 3) is None


def test_decode_reads_any_integer_array():
    tokens = encode(np.array([[3]], dtype=np.uint8), 2)
    for dtype in (np.uint8, np.int32, np.int64):
        grid = decode(tokens.astype(dtype), 2)
        assert grid.dtype == np.uint8
        assert grid.tolist() == [[3]]


@pytest.mark.parametrize(("side", "offset"), [(2, (0, 0)), (4, (2, 0)), (4, (0, 2)), (4, (-1, 0)), (4, (0, -1))])
def test_a_grid_that_does_not_fit_is_refused(side, offset):
    with pytest.raises(ValueError, match=r"grid: 3 x 3 at offset .* does not fit in a square of side"):
        encode(np.zeros((3, 3), dtype=np.uint8), side, offset)


@pytest.mark.parametrize("array", [np.full((2, 2), 10, np.uint8), np.zeros((2, 2)), np.zeros(4, np.uint8)])
def test_what_is_no_grid_is_refused(array):
    with pytest.raises(ValueError, match=r"grid: expected a uint8 array \(h, w\) of 0 to 9"):
        encode(array, 5)


def test_malformed_tokens_and_sides_are_refused():
    with pytest.raises(ValueError, match=r"tokens: expected shape \(9,\) for side 3, got \(8,\)"):
        decode(np.zeros(8, dtype=np.uint8), 3)
    with pytest.raises(ValueError, match="tokens: expected 0 to 11, got 0 to 12"):
        decode([0, 12, 1, 1], 2)
    for side in (0, 31):
        with pytest.raises(ValueError, match=f"side: expected 1 to 30, got {side}"):
            decode(np.zeros(1, dtype=np.uint8), side)


def test_the_vocabulary_is_pad_end_and_ten_colours():
    assert (PAD, EOG, FIRST_COLOUR, VOCAB) == (0, 1, 2, 12)
