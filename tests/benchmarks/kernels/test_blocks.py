"""What the search for blocks times, when it stops, and what it leaves behind; the GPU is made up."""

import json
from types import SimpleNamespace

import pytest
import torch

from benchmarks.kernels import blocks
from benchmarks.timing import Timed
from tests.benchmarks.fake_cuda import Device

pytest.importorskip("triton")


@pytest.fixture
def machine(monkeypatch):
    """A GPU on which every candidate takes a second; it counts what is made and timed."""
    state = SimpleNamespace(now=0.0, made=[], timed=[], device=Device(monkeypatch), after=lambda: None)

    def material(tokens, n, d, device, dtype):
        state.made.append((n, d))
        return None, None

    def replayed(calls, rounds, device):
        state.timed.append(tuple(calls))
        state.now += 1
        state.after()
        return {name: Timed(2.0, True) for name in calls}

    monkeypatch.setattr(blocks, "material", material)
    monkeypatch.setattr(blocks, "replayed", replayed)
    monkeypatch.setattr(blocks.time, "perf_counter", lambda: state.now)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "made up")
    return state


def run(path, *arguments):
    assert blocks.main(["--out", str(path), *arguments]) == 0
    return json.loads(path.read_text())["rows"]


def test_both_passes_of_what_is_chosen_are_timed_then_those_that_a_candidate_changes(tmp_path, machine):
    rows = run(tmp_path / "blocks.json", "--widths", "64")
    assert [(row["n"], row["function"]) for row in rows[:2]] == [(8, None), (4, None)]
    assert machine.timed[:2] == [blocks.PASSES, blocks.PASSES]
    assert set(blocks.CHANGES) == {None, *blocks.CANDIDATES}
    for row, timed in zip(rows, machine.timed, strict=True):
        assert timed == blocks.CHANGES[row["function"]]
        assert all(row[name] == 2 and row[f"{name}_captured"] for name in timed)
    assert len(rows) == 2 + sum(len(sizes) for of in blocks.CANDIDATES.values() for sizes in of.values())


def test_arguments_are_made_once_a_shape(tmp_path, machine):
    run(tmp_path / "blocks.json", "--widths", "64", "32")
    assert machine.made == [(8, 64), (4, 64), (8, 32), (4, 32)]


def test_nothing_is_made_when_the_time_is_up(tmp_path, machine):
    rows = run(tmp_path / "blocks.json", "--widths", "64", "32", "--seconds", "1.5")
    assert len(rows) == 2
    assert machine.made == [(8, 64), (4, 64)]


def test_every_row_is_in_the_file_before_the_next_is_timed(tmp_path, machine):
    path, found = tmp_path / "blocks.json", []
    machine.after = lambda: found.append(len(json.loads(path.read_text())["rows"]))
    rows = run(path, "--widths", "64")
    assert found == list(range(len(rows)))
    assert [p.name for p in tmp_path.iterdir()] == ["blocks.json"]


def test_a_shape_that_cannot_be_made_is_a_row_and_the_others_are_timed(tmp_path, machine, monkeypatch):
    def material(tokens, n, d, device, dtype):
        if n == 8:
            raise torch.OutOfMemoryError("out of memory")
        return None, None

    monkeypatch.setattr(blocks, "material", material)
    rows = run(tmp_path / "blocks.json", "--widths", "64")
    for row in rows:
        assert row.get("error") == ("OutOfMemoryError: out of memory" if row["n"] == 8 else None)
        assert ("error" in row) == (row["n"] == 8)


def test_a_device_that_is_lost_ends_it_and_keeps_the_rows(tmp_path, machine):
    machine.after = lambda: setattr(machine.device, "lost", machine.now == 3)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        blocks.main(["--out", str(tmp_path / "blocks.json")])
    assert len(json.loads((tmp_path / "blocks.json").read_text())["rows"]) == 3


def test_a_folder_that_does_not_exist_is_found_out_before_anything_is_timed(tmp_path, machine):
    with pytest.raises(OSError, match="no/blocks"):
        blocks.main(["--out", str(tmp_path / "no" / "blocks.json")])
    assert not machine.made


@pytest.mark.parametrize(("function", "changed"), [(n, c) for n, c in blocks.CHANGES.items() if n])
def test_a_function_is_asked_by_the_pass_that_it_changes(function, changed):
    import inspect

    from jpmhc.kernels.cuda import boundary

    backward = inspect.getsource(boundary.boundary_backward) + inspect.getsource(boundary._weight_gradient)
    sources = {"forward": inspect.getsource(boundary.boundary_forward), "backward": backward}
    assert tuple(name for name, source in sources.items() if f"{function}(" in source) == changed
