"""The GPU part in miniature on a CPU: what it compares computes the same, and it says what it cannot run."""

import pytest
import torch

from benchmarks.kernels import gpu


def test_without_a_gpu_nothing_is_reported(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for part in (gpu.layer, gpu.compiled, gpu.step):
        result = part(quick=True)
        assert result["rows"] == []
        assert "no GPU" in result["note"]


def test_ours_is_timed_and_faults_of_peers_are_results(monkeypatch):
    monkeypatch.setattr(gpu, "_compiled", gpu._ours)

    def broken(*_):
        raise RuntimeError("no driver")

    monkeypatch.setattr(gpu, "_liger", broken)
    rows = {row["name"]: row for row in gpu.layer_rows("cpu", 32, 4, 16, 2, ("jpmhc", "Liger", gpu._REFERENCE))}
    assert rows["jpmhc"]["ratio"] == 1
    assert rows["torch.compile of the reference"]["ms"] > 0
    assert rows["Liger"]["error"] == "RuntimeError: no driver"


def test_the_compiled_reference_computes_what_ours_computes(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    torch.manual_seed(0)
    given = torch.randn(6, 4, 8), torch.rand(6, 4, 4), torch.rand(6, 4), torch.randn(6, 8)
    ours, reference = gpu._ours(4, 8, "cpu")(*given), gpu._compiled(4, 8, "cpu")(*given)
    torch.testing.assert_close(ours, reference)


def test_a_step_costs_at_least_its_bytes_in_the_floor(monkeypatch):
    monkeypatch.setattr(gpu, "TRM_HEADS", 2)
    plain, streams = gpu.step_rows("cpu", 2, 5, 16, 2)
    assert plain["ratio"] == plain["floor"] == 1
    assert streams["floor"] > 1
    assert streams["ratio"] == pytest.approx(streams["ms"] / plain["ms"])


def test_one_stream_is_the_plain_residual(monkeypatch):
    monkeypatch.setattr(gpu, "TRM_HEADS", 2)
    monkeypatch.setattr(gpu, "TRM_STREAMS", 1)
    plain, stack = gpu._Plain(gpu._branches(16, 5)), gpu._branches(16, 5)
    connections = [gpu.layers.HyperConnection(16, branch, streams=1) for branch in stack]
    x = torch.randn(2, 5, 16)
    found = gpu.layers.HyperStack(connections, post_norm="rms")(x.unsqueeze(2)).squeeze(2)
    torch.testing.assert_close(found, plain(x))
