import pytest

from benchmarks.kernels import sublayer


def test_our_forms_stand_beside_the_peers(monkeypatch):
    pytest.importorskip("hyper_connections")
    pytest.importorskip("transformers")
    for name, value in (("TOKENS", 16), ("WIDTH", 512), ("DEPTH", 4)):
        monkeypatch.setattr(sublayer, name, value)
    rows = {row["name"]: row for row in sublayer.run(quick=True)["rows"]}
    for name in ("plain residual, one stream", "copy of the streams"):
        assert "over_branch_ms" not in rows[name]
    kept, recomputed = rows["jpmhc HyperStack of 4"], rows["jpmhc HyperStack of 4, reads recomputed"]
    assert kept["ratio"] == 1
    assert kept["saved_streams"] - recomputed["saved_streams"] == pytest.approx(0.25)
    assert recomputed["saved_streams"] < recomputed["saved_target"]
    for peer in ("lucidrains mHCv2", "transformers DeepSeek-V4"):
        assert rows[peer]["ms"] > 0
        assert rows[peer]["saved_streams"] > kept["saved_streams"]
    assert not any("compile" in name for name in rows)
