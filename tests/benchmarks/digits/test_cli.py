import json
import sys

import pytest

from benchmarks.__main__ import main


def test_the_command_writes_scores_of_every_arm(tmp_path):
    pytest.importorskip("sklearn")
    out = tmp_path / "digits.json"
    assert main(["digits", "--quick", "--seeds", "2", "--arms", "plain", "--out", str(out)]) == 0
    result = json.loads(out.read_text())
    assert [run["task"] for run in result["runs"]] == ["4-streams", "4-streams", "8-streams", "8-streams"]
    assert result["tasks"]["4-streams"]["sha256"] == result["tasks"]["8-streams"]["sha256"]
    assert result["claims"] == []


def test_a_missing_scikit_learn_is_named_with_its_extra(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    assert main(["digits", "--quick"]) == 1
    error = capsys.readouterr().err
    assert "pip install jpmhc[bench]" in error
    assert error.count("\n") == 1


def test_files_that_would_be_replaced_and_formats_that_do_not_exist_are_named_before_training(
    tmp_path, capsys, monkeypatch
):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr("benchmarks.trainer.train", lambda *_: pytest.fail("trained"))
    notes = tmp_path / "notes.md"
    notes.write_text("mine")
    for arguments, message in (
        (["--out", str(notes.with_suffix(".json"))], f"--out: {notes}, where the tables go, exists; name another file"),
        (["--plot", str(tmp_path / "p.xyz")], "--plot: expected a name that ends in one of "),
    ):
        assert main(["digits", "--quick", *arguments]) == 1
        error = capsys.readouterr().err
        assert error.startswith(f"error: {message}")
        assert error.count("\n") == 1
    assert notes.read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["notes.md"]
