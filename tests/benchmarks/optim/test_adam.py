import json

import torch

from benchmarks.optim import adam


def test_a_row_holds_times_ratios_and_errors(monkeypatch):
    monkeypatch.setattr(adam, "COUNT", 8)
    threads = torch.get_num_threads()
    result = json.loads(json.dumps(adam.run(quick=True)))
    assert torch.get_num_threads() == threads
    rows = {row["name"]: row for row in result["rows"]}
    assert rows["geoopt"]["speedup"] == 1
    assert rows["clone"]["passes"] == 1
    assert rows["jpmhc"]["speedup"] > 1
    assert rows["jpmhc"]["shape"] == [4, 4]
    assert rows["jpmhc"]["separate_minus_stacked"] < 1e-6
    assert rows["jpmhc"]["off_manifold"] < 1e-6


def test_few_parameters_are_timed_beside_geoopts():
    rows = {row["name"]: row for row in adam.few(quick=True)["rows"]}
    assert set(rows) == {"jpmhc", "geoopt"}
    assert rows["geoopt"]["speedup"] == 1
    assert {row["parameters"] for row in rows.values()} == {1}
