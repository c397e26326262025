import pytest

from benchmarks.layers import sublayer
from jpmhc import layers


def test_every_mixer_is_measured_beside_its_peers(monkeypatch):
    monkeypatch.setattr(sublayer, "TOKENS", 16)
    monkeypatch.setattr(sublayer, "WIDTH", 8)
    rows = {row["name"]: row for row in sublayer.run(quick=True)["rows"]}
    for info in layers.mixers():
        row = rows[f"jpmhc {info.name}"]
        assert row["ms"] > 0
        assert row["saved_mib"] > 0
    assert "over_branch_ms" not in rows["plain residual, one stream"]
    for peer in sublayer.MIXING_PEERS:
        package = "hyper_connections" if peer.startswith("lucidrains") else "transformers"
        pytest.importorskip(package)
        assert rows[peer]["ms"] > 0
