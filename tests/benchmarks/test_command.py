import json
import math
import os
import signal

import pytest

from benchmarks import command
from benchmarks.extras import MissingExtra


def part(quick):
    return {"rounds": 1 if quick else 9, "rows": [{"name": "a", "ms": 1.5}, {"name": "b", "error": "did not run"}]}


def test_rows_are_printed_and_written_with_machine_and_versions(tmp_path, capsys):
    out = tmp_path / "result.json"
    assert command.main("toy", {"first": part}, ["--quick", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "did not run" in printed
    assert "1.5" in printed
    written = json.loads(out.read_text())
    assert written["benchmark"] == "toy"
    assert written["quick"] is True
    assert written["machine"]["cores"]
    assert written["packages"]["torch"]
    assert written["parts"]["first"]["rounds"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]


def test_a_folder_that_does_not_exist_is_named_before_anything_runs(tmp_path, capsys):
    def never(quick):
        pytest.fail("ran")

    assert command.main("toy", {"first": never}, ["--out", str(tmp_path / "no" / "result.json")]) == 1
    assert "--out: the folder" in capsys.readouterr().err


def never(quick):
    pytest.fail("ran")


def test_what_is_no_result_of_the_benchmark_is_not_overwritten(tmp_path, capsys):
    out = tmp_path / "result.json"
    for content in ("my notes", "[1]", '{"benchmark": "another"}'):
        out.write_text(content)
        assert command.main("toy", {"first": never}, ["--out", str(out)]) == 1
        assert capsys.readouterr().err == (
            f"error: --out: {out} exists and is no result of this benchmark; name another file\n"
        )
        assert out.read_text() == content


def test_a_result_may_be_measured_anew_but_not_by_a_look(tmp_path, capsys):
    out = tmp_path / "result.json"
    assert command.main("toy", {"first": part}, ["--out", str(out)]) == 0
    assert command.main("toy", {"second": part}, ["--out", str(out)]) == 0
    assert list(json.loads(out.read_text())["parts"]) == ["second"]
    assert command.main("toy", {"first": never}, ["--quick", "--out", str(out)]) == 1
    assert "holds a full result" in capsys.readouterr().err


def test_an_out_that_cannot_be_written_is_named_before_anything_runs(tmp_path, capsys):
    for out in (tmp_path, tmp_path / ("n" * 300)):
        assert command.main("toy", {"first": never}, ["--out", str(out)]) == 1
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.count("\n") == 1


def test_an_interrupt_ends_in_one_line_and_keeps_the_parts_that_were_done(tmp_path, capsys):
    def interrupted(quick):
        raise KeyboardInterrupt

    out, kept = tmp_path / "result.json", tmp_path / "result.partial"
    assert command.main("toy", {"first": part, "second": interrupted}, ["--out", str(out)]) == 130
    assert capsys.readouterr().err == f"stopped; the parts that were done are in {kept}\n"
    assert list(json.loads(kept.read_text())["parts"]) == ["first"]
    assert not out.exists()
    kept.unlink()
    for arguments in ([], ["--out", str(out)]):
        assert command.main("toy", {"first": interrupted}, arguments) == 130
        assert capsys.readouterr().err == "stopped\n"
    assert not list(tmp_path.iterdir())


def test_numbers_that_json_does_not_have_are_null(tmp_path):
    out = tmp_path / "result.json"
    rows = [{"name": "a", "ms": math.nan, "several": [1.0, math.inf], "inside": {"here": -math.inf}}]
    assert command.main("toy", {"first": lambda quick: {"rows": rows}}, ["--out", str(out)]) == 0
    assert "NaN" not in out.read_text()
    (row,) = json.loads(out.read_text())["parts"]["first"]["rows"]
    assert row == {"name": "a", "ms": None, "several": [1.0, None], "inside": {"here": None}}


def failing(quick):
    yield {"name": "slow", "rows": [{"name": "a", "ms": 2.5}]}
    raise RuntimeError("CUDA error\nand more")


def test_a_part_that_fails_keeps_its_rows_and_the_others_run(tmp_path, capsys):
    out = tmp_path / "result.json"
    assert command.main("toy", {"slow": failing, "first": part}, ["--out", str(out)]) == 1
    said = capsys.readouterr()
    assert "error: slow: RuntimeError: CUDA error\n" in said.err
    assert "Traceback" in said.err
    assert "did not run" in said.out
    parts = json.loads(out.read_text())["parts"]
    assert parts["slow"] == {
        "name": "slow",
        "rows": [{"name": "a", "ms": 2.5}],
        "error": "RuntimeError: CUDA error",
    }
    assert "error" not in parts["first"]
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]


def test_a_part_that_fails_at_once_has_no_rows_and_a_missing_extra_no_traceback(tmp_path, capsys):
    def incomplete(quick):
        raise MissingExtra("peer: not installed; pip install jpmhc[peers]")

    out = tmp_path / "result.json"
    assert command.main("toy", {"peers": incomplete, "first": part}, ["--out", str(out)]) == 1
    assert capsys.readouterr().err == "error: peers: peer: not installed; pip install jpmhc[peers]\n"
    assert json.loads(out.read_text())["parts"]["peers"]["rows"] == []


def test_a_result_with_a_failed_part_replaces_no_older_one(tmp_path, capsys):
    out, kept = tmp_path / "result.json", tmp_path / "result.partial"
    assert command.main("toy", {"first": part}, ["--out", str(out)]) == 0
    assert command.main("toy", {"slow": failing}, ["--out", str(out)]) == 1
    assert f"the new result is in {kept}" in capsys.readouterr().out
    assert list(json.loads(out.read_text())["parts"]) == ["first"]
    assert json.loads(kept.read_text())["parts"]["slow"]["rows"]


def test_rows_are_printed_and_written_as_they_come(tmp_path, capsys):
    out, kept = tmp_path / "result.json", tmp_path / "result.partial"
    found = []

    def growing(quick):
        rows = []
        for ms in (1.5, 2.5):
            rows.append({"name": "a", "ms": ms, "target": None})
            yield {"rows": rows}
            found.append([row["ms"] for row in json.loads(kept.read_text())["parts"]["slow"]["rows"]])
            assert f"slow: name a, ms {ms}\n" in capsys.readouterr().out

    assert command.main("toy", {"slow": growing}, ["--out", str(out)]) == 0
    assert found == [[1.5], [1.5, 2.5]]
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]


def test_a_time_limit_keeps_the_rows_that_were_measured(tmp_path, capsys):
    def stopped(quick):
        yield {"rows": [{"name": "a", "ms": 1.5}]}
        os.kill(os.getpid(), signal.SIGTERM)
        yield {"rows": []}

    before = signal.getsignal(signal.SIGTERM)
    assert command.main("toy", {"slow": stopped}, ["--out", str(tmp_path / "result.json")]) == 130
    kept = tmp_path / "result.partial"
    assert capsys.readouterr().err == f"stopped; the parts that were done are in {kept}\n"
    assert json.loads(kept.read_text())["parts"]["slow"]["rows"] == [{"name": "a", "ms": 1.5}]
    assert signal.getsignal(signal.SIGTERM) is before


def test_some_parts_run_alone_and_replace_no_result_of_more(tmp_path, capsys):
    out = tmp_path / "result.json"
    parts = {"first": part, "second": never}
    assert command.main("toy", parts, ["--only", "first", "--out", str(out)]) == 0
    assert list(json.loads(out.read_text())["parts"]) == ["first"]
    assert command.main("toy", parts, ["--only", "third"]) == 1
    assert capsys.readouterr().err == "error: --only: expected some of 'first', 'second', got 'third'\n"
    assert command.main("toy", {"first": part, "second": part}, ["--out", str(out)]) == 0
    assert command.main("toy", {"first": never, "second": never}, ["--only", "first", "--out", str(out)]) == 1
    assert "holds other parts too" in capsys.readouterr().err
