import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from benchmarks.arc.augment import IDENTITY, Augmentation, same_up_to_symmetry, variants
from benchmarks.arc.tasks import Pair, Task, load_arc_agi_1

grids = hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=30), elements=st.integers(0, 9))
augmentations = st.builds(
    Augmentation, st.integers(0, 7), st.permutations(range(1, 10)).map(lambda colours: (0, *colours))
)


@pytest.fixture(scope="module")
def arc():
    return load_arc_agi_1()


def _grid(rows):
    return np.array(rows, dtype=np.uint8)


def _task(demos, tests, id="t"):
    pairs = [tuple(Pair(_grid(source), _grid(target)) for source, target in part) for part in (demos, tests)]
    return Task(id, "extra", *pairs)


def _images(task, augmentation):
    shown = [grid for pair in task.demos for grid in (pair.input, pair.output)] + [pair.input for pair in task.tests]
    return tuple((image.shape, image.tobytes()) for image in map(augmentation.apply, shown))


def _symmetries(grid):
    """The images under the eight symmetries of a rectangle's frame, cell by cell from their coordinates."""
    h, w = grid.shape
    images = []
    for swap, flip_rows, flip_columns in itertools.product((False, True), repeat=3):
        image = np.empty((w, h) if swap else (h, w), dtype=grid.dtype)
        for r, c in itertools.product(range(h), range(w)):
            to = (h - 1 - r if flip_rows else r, w - 1 - c if flip_columns else c)
            image[to[::-1] if swap else to] = grid[r, c]
        images.append(image)
    return images


@settings(deadline=None)
@given(grids, augmentations)
def test_invert_undoes_apply_and_apply_undoes_invert(grid, augmentation):
    np.testing.assert_array_equal(augmentation.invert(augmentation.apply(grid)), grid)
    np.testing.assert_array_equal(augmentation.apply(augmentation.invert(grid)), grid)


def test_the_dihedral_maps_are_the_eight_symmetries():
    grid = _grid([[1, 2, 3], [4, 5, 6]])
    images = [Augmentation(d, IDENTITY.colours).apply(grid).tolist() for d in range(8)]
    expected = [image.tolist() for image in _symmetries(grid)]
    assert sorted(images) == sorted(expected)
    assert images[0] == grid.tolist()
    assert images[1] == [[3, 6], [2, 5], [1, 4]]
    assert images[4] == [[1, 4], [2, 5], [3, 6]]


@settings(deadline=None)
@given(grids, augmentations)
def test_colours_are_renamed_one_by_one(grid, augmentation):
    renamed = dataclasses.replace(augmentation, dihedral=0).apply(grid)
    for colour in range(10):
        np.testing.assert_array_equal(renamed == augmentation.colours[colour], grid == colour)


@settings(deadline=None)
@given(grids, augmentations)
def test_apply_returns_a_new_uint8_array(grid, augmentation):
    for image in (augmentation.apply(grid), augmentation.invert(grid), IDENTITY.apply(grid)):
        assert image.dtype == np.uint8
        assert image.flags.c_contiguous
        assert not np.shares_memory(image, grid)


def test_only_the_identity_is_the_identity():
    assert IDENTITY.is_identity
    assert not Augmentation(1, IDENTITY.colours).is_identity
    assert not Augmentation(0, (0, 2, 1, 3, 4, 5, 6, 7, 8, 9)).is_identity


@settings(deadline=None)
@given(augmentations)
def test_the_code_round_trips(augmentation):
    assert Augmentation.parse(str(augmentation)) == augmentation


@pytest.mark.parametrize(
    "code", ["", "d8-0123456789", "d0-012345678", "d0-01234567899", "d0-0123456789\n", "0-0123456789"]
)
def test_a_malformed_code_is_refused(code):
    with pytest.raises(ValueError, match="code: expected d, a digit"):
        Augmentation.parse(code)


def test_what_is_no_symmetry_is_refused():
    with pytest.raises(ValueError, match="dihedral: expected an integer 0 to 7, got 8"):
        Augmentation(8, IDENTITY.colours)
    for colours in ((0, 1), (1, 0, *range(2, 10)), (0, 1, 1, *range(3, 10))):
        with pytest.raises(ValueError, match="colours: expected a permutation of 0 to 9 that starts with 0"):
            Augmentation(0, colours)
    with pytest.raises(ValueError, match="colours: expected a permutation"):
        Augmentation.parse("d0-1023456789")


def test_every_grid_of_arc_agi_1_survives_several_variants(arc):
    for task in arc:
        for augmentation in variants(task, 4, seed=1):
            for pair in (*task.demos, *task.tests):
                for grid in (pair.input, pair.output):
                    np.testing.assert_array_equal(augmentation.invert(augmentation.apply(grid)), grid)


def test_variants_start_with_the_identity_and_look_all_different(arc):
    for task in arc[::40]:
        found = variants(task, 8, seed=0)
        assert found[0] == IDENTITY
        assert len(found) == 8
        assert len({_images(task, augmentation) for augmentation in found}) == 8


def test_variants_depend_on_the_seed_and_the_task_alone(arc):
    alone = variants(arc[5], 8, seed=3)
    for task in arc[:5]:
        variants(task, 8, seed=3)
    assert variants(arc[5], 8, seed=3) == alone
    assert variants(arc[5], 8, seed=4) != alone
    assert variants(arc[6], 8, seed=3) != alone


def test_more_variants_only_append(arc):
    assert variants(arc[5], 20, seed=3)[:8] == variants(arc[5], 8, seed=3)


def test_test_outputs_have_no_influence_on_the_variants(arc):
    for task in arc[::50]:
        blank = tuple(Pair(pair.input, np.zeros((1, 1), dtype=np.uint8)) for pair in task.tests)
        unknown = tuple(Pair(pair.input, None) for pair in task.tests)
        expected = variants(task, 8, seed=0)
        assert variants(dataclasses.replace(task, tests=blank), 8, seed=0) == expected
        assert variants(dataclasses.replace(task, tests=unknown), 8, seed=0) == expected


def test_a_task_of_one_coloured_cell_has_nine_variants():
    task = _task([([[1]], [[1]])], [([[1]], [[2]])])
    found = variants(task, 200, seed=0)
    assert sorted(augmentation.colours[1] for augmentation in found) == list(range(1, 10))


def test_a_black_task_has_only_the_identity():
    task = _task([([[0]], [[0]])], [([[0]], [[1]])])
    assert variants(task, 8, seed=0) == [IDENTITY]


def test_a_count_below_one_is_refused(arc):
    with pytest.raises(ValueError, match="count: expected at least 1, got 0"):
        variants(arc[0], 0, seed=0)


@settings(deadline=None)
@given(grids, grids, augmentations)
def test_images_of_a_pair_are_the_same_up_to_symmetry(one, two, augmentation):
    assert same_up_to_symmetry(one, two) == same_up_to_symmetry(augmentation.apply(one), augmentation.apply(two))


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ([[[0, 1]]], [[[1, 2]]]),  # the background is no colour like the others
        ([[[1, 1]]], [[[1, 2]]]),
        ([[[1, 2]], [[1]]], [[[1, 2]], [[3]]]),
        ([[[1, 2, 0, 0]]], [[[1, 2], [0, 0]]]),
        ([[[0, 1]], [[0, 1]]], [[[0, 1]], [[1, 0]]]),  # turned, but not together
    ],
)
def test_what_no_augmentation_relates_is_not_the_same(one, two):
    assert same_up_to_symmetry(*map(_grid, one)) != same_up_to_symmetry(*map(_grid, two))
