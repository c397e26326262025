import pytest
import torch

from benchmarks.kernels import small_maps, systems


def test_every_contender_is_timed_beside_ours(monkeypatch):
    monkeypatch.setattr(small_maps, "SHAPES", ((64 * 16, 4, 4),))
    rows = small_maps.run(quick=True)["rows"]
    assert {row["map"] for row in rows} == {"sinkhorn", "cayley"}
    assert all(row["ms"] > 0 and row["ratio"] > 0 for row in rows)
    ours = next(row for row in rows if row["name"] == "jpmhc, converged")
    assert ours["saved_mib"] == pytest.approx(64 * 16 * 4 / 2**20)  # the result alone
    assert next(row for row in rows if row["name"] == "unrolled")["saved_mib"] > 20 * ours["saved_mib"]


def test_the_unrolled_mixer_is_the_implicit_one():
    x = torch.randn(5, systems.STREAMS, systems.WIDTH)
    torch.testing.assert_close(systems._model("unrolled")(x), systems._model("implicit")(x))


def test_implicit_needs_fewer_nodes():
    unrolled, implicit = systems.count(quick=True)["rows"]
    assert implicit["one_mixer_nodes"] < unrolled["one_mixer_nodes"] / 10
    assert implicit["step_launches"] < unrolled["step_launches"]
