import json

import pytest
import torch

from benchmarks.manifolds import birkhoff, contest, grassmann, rotations, stiefel
from benchmarks.timing import fastest


@pytest.mark.parametrize(
    ("part", "shape"), [(stiefel, (3, 5, 2)), (rotations, (3, 3, 3)), (grassmann, (3, 5, 2)), (birkhoff, (3, 4, 4))]
)
def test_rows_hold_times_ratios_and_errors(part, shape, monkeypatch):
    monkeypatch.setattr(contest, "fastest", lambda calls, rounds: fastest(calls, rounds=1, at_least=0.0))
    threads = torch.get_num_threads()
    result = json.loads(json.dumps(contest.run(part.operations, [shape], quick=True)))
    assert torch.get_num_threads() == threads
    for row in result["rows"]:
        assert row["shape"] == list(shape)
        assert row["jpmhc"] > 0
        assert row["passes"] > 0
        assert row["off"] is None or row["off"] < 1e-6
        if row["geoopt"] is not None:
            assert row["x_geoopt"] == pytest.approx(row["geoopt"] / row["jpmhc"])
    assert sum(row["off"] is not None for row in result["rows"]) >= 3


def test_the_fastest_round_counts():
    assert fastest({"a": lambda: None}, rounds=2, at_least=0.001)["a"] < 1.0
