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
