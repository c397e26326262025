import json

from benchmarks.__main__ import main


def test_the_command_compares_four_and_eight_streams(tmp_path, capsys):
    out = tmp_path / "language.json"
    arguments = ["language", "--quick", "--seeds", "1", "--arms", "identity", "quaternion", "--out", str(out)]
    assert main(arguments) == 0
    result = json.loads(out.read_text())
    assert list(result["tasks"]) == ["4-streams", "8-streams"]
    assert [(run["task"], run["arm"]) for run in result["runs"]] == [
        ("4-streams", "identity"),
        ("4-streams", "quaternion"),
        ("8-streams", "identity"),
    ]
    assert "| quaternion | – |" in capsys.readouterr().out
