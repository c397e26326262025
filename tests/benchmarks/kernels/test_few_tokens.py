import pytest

from benchmarks.kernels import few_tokens


def test_a_token_through_our_forms_stands_beside_the_peers():
    pytest.importorskip("hyper_connections")
    pytest.importorskip("transformers")
    plain, ours, compiled, *others = few_tokens.run(quick=True)["rows"]
    assert "over_branch_ms" not in plain
    assert ours["ratio"] == 1
    assert compiled["name"] == f"{ours['name']}, compiled bodies"
    for peer in ("lucidrains mHCv2", "transformers DeepSeek-V4"):
        (row,) = (row for row in others if row["name"] == peer)
        assert row["tokens"] == 1
        assert row["ms"] > 0
    assert not any("compile" in row["name"] for row in others)
