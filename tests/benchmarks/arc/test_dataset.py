"""No held-out output is in the training arrays.

Three assertions carry that. By provenance: every row says which pair of which task it was made from, undoing the
variant gives back exactly that pair, and the pair is not held out. By content: no (input, output) row equals a held-out
pair, as stated or in any variant in which it is evaluated. By output: a row of a task may show the same output grid as
a held-out test of that task only if a demonstration has that very output (some rules have constant answers).
"""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.arc.augment import IDENTITY, variants
from benchmarks.arc.batches import Batches
from benchmarks.arc.dataset import build
from benchmarks.arc.encode import PAD, decode, encode
from benchmarks.arc.painting import Painter
from benchmarks.arc.tasks import Pair, Task, load_arc_agi_1, load_task_dir, subset

CONCEPT_ARC = Path(__file__).parents[3] / ".." / "shared" / "data" / "concept-arc"


def _grid(rows):
    return np.array(rows, dtype=np.uint8)


def _pair(source, target):
    return Pair(_grid(source), None if target is None else _grid(target))


def _task(id, demos, tests, split="training"):
    return Task(id, split, tuple(_pair(*pair) for pair in demos), tuple(_pair(*pair) for pair in tests))


A, B, C, D = [[1, 2]], [[3, 4, 5]], [[6], [7]], [[8, 9], [9, 8]]


@pytest.fixture(scope="module")
def arc():
    return load_arc_agi_1()


@pytest.fixture(scope="module", params=["demos", "published"])
def full(request, arc):
    return build(arc, side=None, variants=4, seed=0, split=request.param)


@pytest.fixture(scope="module")
def small(arc):
    return build(subset(arc, max_side=6), side=None, variants=3, seed=0)


def _content(*arrays):
    return tuple((array.shape, array.tobytes()) for array in arrays)


def _source(data, row):
    """The pair that a row claims to be made from."""
    task = data.tasks[data.group[row]]
    return (task.tests if data.from_test[row] else task.demos)[data.pair[row]]


def test_every_row_is_the_pair_that_its_provenance_names(full):
    for row, id in enumerate(full.ids.tolist()):
        task, variant = full.augmentations[id]
        assert task == full.group[row]
        pair = _source(full, row)
        np.testing.assert_array_equal(variant.invert(decode(full.inputs[row], full.side)), pair.input)
        np.testing.assert_array_equal(variant.invert(decode(full.labels[row], full.side)), pair.output)
        assert (
            full.extent[row].tolist()
            == np.maximum(decode(full.inputs[row], full.side).shape, decode(full.labels[row], full.side).shape).tolist()
        )


def test_no_row_is_made_from_a_held_out_pair(full):
    held = {(held.task, held.test) for held in full.held_out}
    assert not held & set(zip(full.group[full.from_test].tolist(), full.pair[full.from_test].tolist(), strict=True))
    expected = {
        (index, test)
        for index, task in enumerate(full.tasks)
        for test in range(len(task.tests))
        if full.split.name == "demos" or task.split == "evaluation"
    }
    assert held == expected


def _leaks(data):
    """Rows equal to a held-out pair, as stated or in a variant in which it is evaluated."""
    held_out = {_content(encode(held.input, data.side), encode(held.output, data.side)) for held in data.held_out}
    for held in data.held_out:
        inputs, labels, _ = data.variants_of(held)
        held_out |= {_content(*pair) for pair in zip(inputs, labels, strict=True)}
    return [row for row in range(len(data.ids)) if _content(data.inputs[row], data.labels[row]) in held_out]


def test_no_row_equals_a_held_out_pair_in_any_variant(full):
    assert _leaks(full) == []


def test_the_check_for_leaks_finds_one(small):
    held = small.held_out[3]
    inputs, labels, ids = small.variants_of(held)
    leaky = dataclasses.replace(
        small,
        inputs=np.concatenate([small.inputs, inputs[-1:]]),
        labels=np.concatenate([small.labels, labels[-1:]]),
        ids=np.concatenate([small.ids, ids[-1:]]),
    )
    assert _leaks(leaky) == [len(small.ids)]


def test_a_held_out_output_appears_under_its_task_only_where_a_demonstration_shows_it(full):
    shown = {}
    for row, id in enumerate(full.ids.tolist()):
        variant = full.augmentations[id][1]
        shown.setdefault(int(full.group[row]), set()).add(_content(variant.invert(decode(full.labels[row], full.side))))
    for held in full.held_out:
        output = _content(held.output)
        in_demos = any(_content(pair.output) == output for pair in full.tasks[held.task].demos)
        assert (output in shown[held.task]) == in_demos


def test_the_splits_of_arc_agi_1_have_the_known_sizes(full):
    pairs, held, left_out = {
        "demos": (1302 + 1363, 416 + 419, ()),
        "published": (1302 + 416 + 1363 - 1, 419, ("40853293 test 0",)),
    }[full.split.name]
    held_tests = {(pair.task, pair.test) for pair in full.held_out}
    assert full.split.tasks == 800
    assert full.split.pairs == pairs
    assert full.split.held_out == len(full.held_out) == held
    assert full.split.left_out == left_out
    assert full.side == 30
    trained = [
        len(full.ids_of(index)) * (len(task.demos) + len(task.tests) * ((index, 0) not in held_tests))
        for index, task in enumerate(full.tasks)
    ]
    of_left_out = [len(full.ids_of(index)) for index, task in enumerate(full.tasks) if f"{task.id} test 0" in left_out]
    assert len(full.ids) == sum(trained) - sum(of_left_out) - full.split.rows_left_out


@pytest.mark.skipif(not CONCEPT_ARC.is_dir(), reason="the ConceptARC tasks are not beside this checkout")
def test_with_concept_arc_the_published_split_is_that_of_the_recipe(arc):
    data = build(arc + load_task_dir(CONCEPT_ARC), side=30, variants=1, seed=0, split="published")
    assert data.split.tasks == len(np.unique(data.group)) == 960
    # The recipe has 3988 pairs, one of which is the answer to evaluation task 070dd51e.
    assert data.split.pairs + len(data.split.left_out) == 3988
    assert data.inputs.shape == data.labels.shape == (3987, 900)


def test_the_published_split_without_concept_arc_has_3081_pairs(arc):
    data = build(arc, side=30, variants=1, seed=0, split="published")
    assert data.split.tasks == 800
    assert data.split.pairs + len(data.split.left_out) == 3081
    assert len(data.ids) == 3080


def test_a_training_pair_equal_to_a_held_out_pair_of_another_task_is_left_out_in_every_variant():
    tasks = [_task("a", [(A, B), (C, D)], [(B, C)]), _task("b", [(D, A)], [(A, B)])]
    data = build(tasks, side=None, variants=5, seed=0)
    assert data.split.left_out == ("a demonstration 0",)
    assert data.split.pairs == 2
    assert {(int(g), int(p)) for g, p in zip(data.group, data.pair, strict=True)} == {(0, 1), (1, 0)}
    assert "1 pair equal to a held-out pair (a demonstration 0)" in data.split.describe()


def test_a_row_that_coincides_with_a_held_out_pair_in_one_of_its_variants_is_left_out():
    # The test is the demonstration with other colours, so 1000 draws of 9 x 8 colourings must meet.
    tasks = [_task("a", [([[1]], [[2]]), (C, D)], [([[3]], [[4]])])]
    data = build(tasks, side=None, variants=60, seed=0)
    assert data.split.rows_left_out > 0
    assert data.split.left_out == ()
    assert _leaks(data) == []
    assert f"{data.split.rows_left_out} augmented rows" in data.split.describe()
    assert len(data.ids) == 2 * data.num_ids - data.split.rows_left_out


def test_a_task_without_any_row_left_is_evaluated_but_never_visited():
    tasks = [_task("a", [(A, B)], [(C, D)]), _task("b", [(B, C)], [(A, B)])]
    data = build(tasks, side=None, variants=2, seed=0)
    assert set(data.group.tolist()) == {1}
    assert [held.task for held in data.held_out] == [0, 1]
    assert data.variants_of(data.held_out[0])[2].tolist() == [0, 1]
    rows = Batches(data, 10, seed=0, translate=False).next()["rows"]
    assert set(data.group[rows.numpy()].tolist()) == {1}


def test_only_evaluation_tests_are_held_out_in_the_published_split():
    tasks = [
        _task("a", [(A, A)], [(A, B)]),
        _task("b", [(B, B)], [(B, C)], "evaluation"),
        _task("c", [(C, C)], [(C, D)], "extra"),
    ]
    data = build(tasks, side=None, variants=1, seed=0, split="published")
    assert [(held.task, held.test) for held in data.held_out] == [(1, 0)]
    found = zip(data.group.tolist(), data.from_test.tolist(), data.pair.tolist(), strict=True)
    assert list(found) == [(0, False, 0), (0, True, 0), (1, False, 0), (2, False, 0), (2, True, 0)]


def test_ids_are_one_for_each_task_and_variant_with_the_identity_first(small):
    expected = [(index, variant) for index, task in enumerate(small.tasks) for variant in variants(task, 3, seed=0)]
    assert small.augmentations == expected
    assert small.num_ids == len(expected)
    for index in range(len(small.tasks)):
        ids = small.ids_of(index)
        assert small.augmentations[ids[0]] == (index, IDENTITY)
        assert {small.augmentations[id][0] for id in ids} == {index}
    assert (np.diff(small.ids) >= 0).all()


def test_held_out_pairs_are_evaluated_under_every_id_of_their_task(small):
    for held in small.held_out:
        inputs, labels, ids = small.variants_of(held)
        assert ids.tolist() == list(small.ids_of(held.task))
        np.testing.assert_array_equal(decode(inputs[0], small.side), held.input)
        for source, target, id in zip(inputs, labels, ids, strict=True):
            variant = small.augmentations[id][1]
            np.testing.assert_array_equal(variant.invert(decode(source, small.side)), held.input)
            np.testing.assert_array_equal(variant.invert(decode(target, small.side)), held.output)


def test_the_hash_tells_whether_the_training_arrays_are_the_same(arc):
    tasks = subset(arc, max_side=4)
    reference = build(tasks, side=None, variants=3, seed=0)
    assert build(tasks, side=None, variants=3, seed=0).sha256 == reference.sha256
    assert build(tasks, side=None, variants=3, seed=1).sha256 != reference.sha256
    assert build(tasks, side=5, variants=3, seed=0).sha256 != reference.sha256
    assert build(tasks[:-1], side=None, variants=3, seed=0).sha256 != reference.sha256


def test_a_report_can_quote_the_split(arc):
    data = build(subset(arc, max_side=5), side=None, variants=1, seed=0)
    assert data.split.describe() == (
        "Trained on the demonstrations of all tasks; held out: every test of every task. "
        "31 tasks, 125 training pairs, 38 held out. "
        "Left out of training: 0 pairs equal to a held-out pair, "
        "0 augmented rows equal to a held-out pair in one of its variants."
    )


def test_malformed_requests_are_refused(arc):
    task = _task("a", [(A, B)], [(C, D)])
    unsolved = _task("u", [(A, B)], [(C, None)])
    with pytest.raises(ValueError, match="split: expected one of demos, published, got 'all'"):
        build([task], side=None, variants=1, seed=0, split="all")
    with pytest.raises(ValueError, match="tasks: expected at least one task, got none"):
        build([], side=None, variants=1, seed=0)
    with pytest.raises(ValueError, match="tasks: the id a occurs twice"):
        build([task, task], side=None, variants=1, seed=0)
    with pytest.raises(ValueError, match="side: task a has a grid of side 3, got side 2"):
        build([task], side=2, variants=1, seed=0)
    with pytest.raises(ValueError, match="tasks: u test 0 has no output"):
        build([unsolved], side=None, variants=1, seed=0)
    with pytest.raises(ValueError, match="tasks: split 'published' holds out the tests of evaluation tasks"):
        build([task], side=None, variants=1, seed=0, split="published")
    with pytest.raises(ValueError, match="tasks: every pair to train on equals a held-out pair"):
        build([_task("s", [(A, B)], [(A, B)])], side=None, variants=1, seed=0)


def _join(batches):
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


def _assert_equal(first, second):
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


@settings(max_examples=20, deadline=None)
@given(counts=st.lists(st.integers(0, 300), min_size=1, max_size=8), translate=st.booleans())
def test_the_stream_does_not_depend_on_how_it_is_cut(small, counts, translate):
    in_pieces = Batches(small, 64, seed=5, translate=translate)
    at_once = Batches(small, 64, seed=5, translate=translate)
    _assert_equal(_join([in_pieces.next(count) for count in counts]), at_once.next(sum(counts)))


@settings(max_examples=20, deadline=None)
@given(before=st.integers(0, 700), after=st.integers(0, 300), translate=st.booleans())
def test_the_position_is_restored_from_json(small, before, after, translate):
    stream = Batches(small, 64, seed=5, translate=translate)
    stream.next(before)
    state = json.loads(json.dumps(stream.state_dict()))
    expected = stream.next(after)
    resumed = Batches(small, 32, seed=5, translate=translate)
    resumed.next(17)
    resumed.load_state_dict(state)
    _assert_equal(resumed.next(after), expected)
    assert resumed.state_dict() == stream.state_dict()


def test_a_position_of_another_stream_is_refused_and_changes_nothing(arc, small):
    stream = Batches(small, 64, seed=5, translate=True)
    stream.next(10)
    state = stream.state_dict()
    other = build(subset(arc, max_side=5), side=None, variants=3, seed=0)
    for foreign in (
        Batches(other, 64, seed=5, translate=True),
        Batches(small, 64, seed=6, translate=True),
        Batches(small, 64, seed=5, translate=False),
    ):
        with pytest.raises(ValueError, match=r"state: (data|seed|translate) is .*, but this stream has"):
            stream.load_state_dict(foreign.state_dict())
    with pytest.raises(ValueError, match="state: position: expected 0 to"):
        stream.load_state_dict({**state, "epoch": 1, "position": 10**6})
    with pytest.raises(ValueError, match="state: epoch: expected at least 0"):
        stream.load_state_dict({**state, "epoch": -1})
    assert stream.state_dict() == state


def _visits(data, rows):
    """Split a stream of rows into visits: each begins with another task than the row before."""
    return np.split(rows, np.flatnonzero(np.diff(data.group[rows])) + 1)


def _next_epoch(stream):
    """Draw sample by sample until the stream's epoch changes, and step back over the first of the next."""
    rows, epoch = [], None
    while True:
        before = stream.state_dict()
        row = stream.next(1)["rows"]
        if epoch not in (None, stream.state_dict()["epoch"]):
            stream.load_state_dict(before)
            return torch.cat(rows).numpy()
        epoch = stream.state_dict()["epoch"]
        rows.append(row)


def test_samples_are_painted_as_the_rows_of_the_arrays(small):
    rows = np.random.default_rng(0).permutation(len(small.ids))
    inputs, labels = Painter(small).paint(rows)
    assert (inputs.numpy() == small.inputs[rows]).all()
    assert (labels.numpy() == small.labels[rows]).all()
    assert inputs.dtype == labels.dtype == torch.uint8


def test_an_epoch_visits_every_task_once_in_one_variant_with_all_its_pairs(small):
    stream = Batches(small, 64, seed=0, translate=False)
    orders = []
    for _ in range(3):
        visits = _visits(small, _next_epoch(stream))
        orders.append([int(small.group[visit[0]]) for visit in visits])
        assert sorted(orders[-1]) == list(range(len(small.tasks)))
        for visit in visits:
            (id,) = np.unique(small.ids[visit])
            np.testing.assert_array_equal(visit, np.flatnonzero(small.ids == id))
    assert orders[0] != orders[1] != orders[2]


def test_all_variants_are_visited_about_equally_often(small):
    epochs = 300
    ids = Batches(small, 64, seed=0, translate=False).next(epochs * small.split.pairs)["ids"].numpy()
    for task in (7, 20, 41):
        visits = [np.count_nonzero(ids == id) / np.count_nonzero(small.ids == id) for id in small.ids_of(task)]
        # Binomial(300, 1/3): mean 100, standard deviation 8.
        assert len(visits) == 3
        assert all(60 < count < 140 for count in visits)
        assert sum(visits) == pytest.approx(epochs, abs=3)


def test_without_translation_the_samples_are_rows_of_the_arrays(small):
    batch = Batches(small, 200, seed=0, translate=False).next()
    rows = batch["rows"].numpy()
    np.testing.assert_array_equal(batch["inputs"].numpy(), small.inputs[rows])
    np.testing.assert_array_equal(batch["labels"].numpy(), small.labels[rows])
    np.testing.assert_array_equal(batch["ids"].numpy(), small.ids[rows])
    assert batch["inputs"].dtype == batch["labels"].dtype == torch.uint8
    assert batch["ids"].dtype == batch["rows"].dtype == torch.int64


def _offset(data, sample, row):
    """The one offset at which input and output of a row give this sample."""
    source, target = decode(data.inputs[row], data.side), decode(data.labels[row], data.side)
    room = data.side - np.maximum(source.shape, target.shape)
    found = [
        (down, right)
        for down in range(room[0] + 1)
        for right in range(room[1] + 1)
        if np.array_equal(sample[0], encode(source, data.side, (down, right)))
        and np.array_equal(sample[1], encode(target, data.side, (down, right)))
    ]
    assert len(found) == 1
    return found[0]


def test_translation_moves_input_and_output_alike_and_leaves_one_pair_a_visit_in_the_corner(small):
    batch = Batches(small, 900, seed=0, translate=True).next()
    rows = batch["rows"].numpy()
    samples = zip(batch["inputs"].numpy(), batch["labels"].numpy(), strict=True)
    offsets = [_offset(small, sample, row) for sample, row in zip(samples, rows, strict=True)]
    at = 0
    for visit in _visits(small, rows)[:-1]:
        assert (0, 0) in offsets[at : at + len(visit)]
        at += len(visit)
    # Away from the forced corner all places are reached: a pair of extent 3 in a square of side 6 has 4 x 4 of them.
    roomy = {offset for offset, row in zip(offsets, rows, strict=True) if small.extent[row].tolist() == [3, 3]}
    assert roomy == {(down, right) for down in range(4) for right in range(4)}


def test_translation_keeps_the_order_of_the_samples(small):
    still, moved = (Batches(small, 500, seed=0, translate=translate).next() for translate in (False, True))
    assert torch.equal(still["rows"], moved["rows"])
    assert torch.equal(still["ids"], moved["ids"])


def test_streams_of_different_seeds_differ_and_of_equal_seeds_agree(small):
    first, again, other = (Batches(small, 200, seed=seed, translate=True).next() for seed in (0, 0, 1))
    _assert_equal(first, again)
    assert not torch.equal(first["rows"], other["rows"])


def test_labels_carry_the_output_and_its_border_and_nothing_else(small):
    batch = Batches(small, 100, seed=0, translate=True).next()
    for labels, row in zip(batch["labels"].numpy(), batch["rows"].numpy(), strict=True):
        h, w = decode(small.labels[row], small.side).shape
        assert h * w <= np.count_nonzero(labels != PAD) <= h * w + h + w


def test_a_batch_has_batch_size_samples_unless_told_otherwise(small):
    stream = Batches(small, 12, seed=0, translate=True)
    assert len(stream.next()["rows"]) == 12
    assert stream.next(0)["inputs"].shape == (0, 36)
    for arguments, message in (((0, 0), "batch_size: expected at least 1"), ((1, -1), "seed: expected at least 0")):
        with pytest.raises(ValueError, match=message):
            Batches(small, *arguments, translate=True)
    with pytest.raises(ValueError, match="count: expected at least 0, got -1"):
        stream.next(-1)
