import json

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
