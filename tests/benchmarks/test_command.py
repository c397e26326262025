import json
import math

import pytest

from benchmarks import command


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
