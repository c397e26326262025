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
    for kind in ("HyperStack of 4", "4 in a row", "reference"):
        row = rows[f"jpmhc cayley, {kind}"]
        assert row["ms"] > 0
        # Of one sublayer, and not what is between them.
        assert 0.3 < row["saved_mib"] / rows["jpmhc cayley"]["saved_mib"] < 3
    assert "over_branch_ms" not in rows["plain residual, one stream"]
    for peer in sublayer.MIXING_PEERS:
        package = "hyper_connections" if peer.startswith("lucidrains") else "transformers"
        pytest.importorskip(package)
        assert rows[peer]["ms"] > 0
