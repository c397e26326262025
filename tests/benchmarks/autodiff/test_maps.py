"""The benchmark of the maps reports numbers for those that run and the error of those that do not."""

import json

import torch

from benchmarks.autodiff import maps


def test_rows_hold_numbers_or_an_error(monkeypatch):
    def broken(shape):
        raise NotImplementedError("only square powers of two")

    chosen = [contender for contender in maps.CONTENDERS if contender.name in {"jpmhc sinkhorn", "unrolled"}]
    monkeypatch.setattr(maps, "SHAPES", ((16, 4, 4),))
    monkeypatch.setattr(maps, "CONTENDERS", (*chosen, maps.Contender("broken", broken)))
    threads = torch.get_num_threads()
    result = json.loads(json.dumps(maps.run(quick=True)))
    assert torch.get_num_threads() == threads
    ours, loop, error = result["rows"]
    assert ours["ratio"] == 1
    assert ours["ms"] > 0
    assert ours["saved_mib"] == 16 * 16 * 4 / 2**20
    assert loop["saved_mib"] > 30 * ours["saved_mib"]
    assert loop["peak_mib"] > ours["peak_mib"]
    assert ours["residual"] < 3e-6
    assert error == {"name": "broken", "shape": [16, 4, 4], "error": "NotImplementedError: only square powers of two"}
