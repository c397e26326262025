import importlib.util
import json
import sys

import numpy as np
import pytest

from benchmarks.arc import mini_arc
from benchmarks.arc.mini_arc import load_mini_arc, read_mini_arc
from benchmarks.arc.tasks import TaskError
from benchmarks.extras import MissingExtra

GRID = [["3", None, 0], [1, "0", 9]]


def write(folder, monkeypatch, *tasks):
    """Write tasks as arcle does and let their hash pass."""
    for name, task in tasks:
        (folder / name).write_text(json.dumps(task), encoding="utf-8")
    with pytest.raises(TaskError, match="expected SHA-256") as refused:
        read_mini_arc(folder)
    monkeypatch.setattr(mini_arc, "MINI_ARC_SHA256", str(refused.value).split("got ")[1].split(";")[0])


def test_cells_of_every_kind_become_colours_and_ids_are_ascii(tmp_path, monkeypatch):
    pair = {"input": GRID, "output": GRID}
    write(tmp_path, monkeypatch, ("3%22ㄴ%22s_l6b.json", {"train": [pair], "test": [pair]}))
    (task,) = read_mini_arc(tmp_path)
    assert task.id == "l6b"
    np.testing.assert_array_equal(task.demos[0].input, [[3, 0, 0], [1, 0, 9]])


def test_a_changed_file_is_refused_with_both_hashes(tmp_path):
    with pytest.raises(TaskError, match=f"expected SHA-256 {mini_arc.MINI_ARC_SHA256}, got e3b0c44298fc1c14"):
        read_mini_arc(tmp_path)


def test_without_arcle_one_line_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "arcle", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match="pip install --no-deps arcle"):
        load_mini_arc()


@pytest.mark.skipif(importlib.util.find_spec("arcle") is None, reason="arcle is not installed")
def test_all_149_tasks_are_read_without_importing_arcle():
    tasks = load_mini_arc()
    assert (len(tasks), sum(len(t.demos) for t in tasks), sum(len(t.tests) for t in tasks)) == (149, 528, 149)
    assert {grid.shape for t in tasks for p in (*t.demos, *t.tests) for grid in (p.input, p.output)} == {(5, 5)}
    assert "arcle" not in sys.modules
