"""What the search for blocks times, when it stops, and what it leaves behind; the GPU is made up."""

import json
import multiprocessing
import os
import time
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
    state = SimpleNamespace(now=0.0, made=[], timed=[], prepared=[], device=Device(monkeypatch), after=lambda: None)

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
    monkeypatch.setattr(blocks, "prepare", lambda *given: state.prepared.append(given) or 0)
    monkeypatch.setattr(blocks, "by_kernel", lambda call: {"cross": 1.5})
    monkeypatch.setattr(blocks.time, "perf_counter", lambda: state.now)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "made up")
    return state


def run(path, *arguments):
    """Return the rows of what was timed."""
    assert blocks.main(["--out", str(path), *arguments]) == 0
    return [row for row in json.loads(path.read_text())["rows"] if "kernels" not in row]


def profiled(path):
    """Return the rows of what was profiled, which are the last."""
    rows = json.loads(path.read_text())["rows"]
    found = [row for row in rows if "kernels" in row]
    assert rows[len(rows) - len(found) :] == found
    return found


def test_both_passes_of_what_is_chosen_are_timed_then_those_that_a_candidate_changes(tmp_path, machine):
    rows = run(tmp_path / "blocks.json", "--widths", "64")
    kernels = profiled(tmp_path / "blocks.json")
    assert [(row["n"], row["function"]) for row in rows[:2]] == [(8, None), (4, None)]
    assert machine.timed[:2] == [blocks.PASSES, blocks.PASSES]
    assert set(blocks.CHANGES) == {None, *blocks.CANDIDATES}
    for row, timed in zip(rows, machine.timed, strict=True):
        assert timed == blocks.CHANGES[row["function"]]
        assert all(row[name] == 2 and row[f"{name}_captured"] for name in timed)
    assert len(rows) == 2 + sum(len(sizes) for of in blocks.CANDIDATES.values() for sizes in of.values())
    found = {"forward": {"cross": 1.5}, "backward": {"cross": 1.5}}
    assert kernels == [{"n": n, "d": 64, "kernels": found} for n in (8, 4)]


def test_all_that_is_timed_is_compiled_before(tmp_path, machine):
    run(tmp_path / "blocks.json", "--widths", "64", "--seconds", "200", "--processes", "3")
    assert machine.prepared == [([64], 100.0, 3)]
    run(tmp_path / "blocks.json", "--widths", "64", "--processes", "0")
    assert len(machine.prepared) == 1


class Sleeper:
    """Stands in for `compile_one`, in processes that know nothing of a patch."""

    def __init__(self, *, folder, length=0.0, dies=None):
        self.folder, self.length, self.dies = folder, length, dies

    def __call__(self, candidate):
        if candidate == self.dies:
            os._exit(3)
        (self.folder / str(candidate)).touch()
        time.sleep(self.length)
        return candidate[0] == 8


def test_candidates_are_compiled_in_processes_and_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "compile_one", Sleeper(folder=tmp_path))
    candidates = list(blocks.order([64]))
    assert blocks.prepare([64], 60.0, 2) == sum(candidate[0] == 8 for candidate in candidates)
    assert {path.name for path in tmp_path.iterdir()} == {str(candidate) for candidate in candidates}


def test_what_is_not_compiled_in_time_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "compile_one", Sleeper(folder=tmp_path, length=60.0))
    begin = time.monotonic()
    assert blocks.prepare([64], 3.0, 2) == 0
    assert time.monotonic() - begin < 50
    assert not multiprocessing.active_children()
    assert len(list(tmp_path.iterdir())) <= 2


def test_a_process_that_dies_leaves_the_others(tmp_path, monkeypatch):
    lost, *others = blocks.order([64])
    monkeypatch.setattr(blocks, "compile_one", Sleeper(folder=tmp_path, dies=lost))
    assert blocks.prepare([64], 20.0, 2) == sum(candidate[0] == 8 for candidate in others)
    assert {path.name for path in tmp_path.iterdir()} == {str(candidate) for candidate in others}
    assert not multiprocessing.active_children()


def test_without_processes_candidates_are_compiled_when_they_are_timed(tmp_path, machine, monkeypatch, capsys):
    def refused(*_):
        raise OSError("no semaphores")

    monkeypatch.setattr(blocks, "prepare", refused)
    assert run(tmp_path / "blocks.json", "--widths", "64")[0]["forward"] == 2
    assert "nothing was compiled ahead: OSError: no semaphores" in capsys.readouterr().out


def test_a_candidate_that_cannot_run_is_none_that_was_compiled(monkeypatch):
    def material(*_):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(blocks, "material", material)
    assert not blocks.compile_one((4, 64, None, ()))


def test_the_first_candidates_of_all_functions_come_before_the_second():
    places = [blocks.CANDIDATES[name][n].index(sizes) for n, _, name, sizes in blocks.order([64, 32]) if name]
    assert places == sorted(places)


def test_a_profiler_that_may_not_count_takes_no_time_from_a_row(tmp_path, machine, monkeypatch):
    def refused(call):
        raise RuntimeError("no permission")

    monkeypatch.setattr(blocks, "by_kernel", refused)
    path = tmp_path / "blocks.json"
    assert run(path, "--widths", "64")[0]["forward"] == 2
    assert [row["kernels"] for row in profiled(path)] == ["RuntimeError: no permission"] * 2


def test_without_a_gpu_no_kernel_is_seen():
    assert blocks.by_kernel(lambda: torch.ones(3).sum()) == {}


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
