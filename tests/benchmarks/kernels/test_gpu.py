"""The GPU part in miniature on a CPU: what it compares computes the same, and it says what it cannot run."""

import sys
from types import ModuleType

import pytest
import torch

from benchmarks.kernels import gpu
from benchmarks.timing import Timed
from tests.benchmarks.fake_cuda import Device


def test_without_a_gpu_nothing_is_reported(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for result in (*gpu.layer(quick=True), *gpu.compiled(quick=True), gpu.step(quick=True)):
        assert result["rows"] == []
        assert "no GPU" in result["note"]


def broken(*_, **__):
    raise RuntimeError("no driver\nand why")


def test_ours_is_timed_and_faults_of_peers_are_results(monkeypatch):
    monkeypatch.setattr(gpu, "_compiled", gpu._ours)
    monkeypatch.setattr(gpu, "_liger", broken)
    rows = {row["name"]: row for row in gpu.layer_rows("cpu", 32, 4, 16, 2, ("jpmhc", "Liger", gpu._REFERENCE))}
    assert rows["jpmhc"]["ratio"] == 1
    assert rows["torch.compile of the reference"]["ms"] > 0
    assert rows["Liger"]["error"] == "RuntimeError: no driver"


def test_peers_are_timed_where_ours_fails(monkeypatch):
    monkeypatch.setattr(gpu, "_liger", gpu._ours)
    monkeypatch.setattr(gpu, "_ours", broken)
    ours, liger = gpu.layer_rows("cpu", 32, 4, 16, 2, ("jpmhc", "Liger"))
    assert ours["error"] == "RuntimeError: no driver"
    assert liger["ms"] > 0
    assert liger["ratio"] is None


def test_there_is_no_ratio_between_a_graph_and_launches(monkeypatch):
    monkeypatch.setattr(gpu, "_liger", gpu._ours)
    times = {"jpmhc": Timed(2.0, True), "Liger": Timed(3.0, False, "OutOfMemoryError: full")}
    monkeypatch.setattr(gpu, "replayed", lambda *_: times)
    ours, liger = gpu.layer_rows("cpu", 8, 4, 16, 2, ("jpmhc", "Liger"))
    assert (ours["captured"], ours["ratio"]) == (True, 1)
    assert (liger["captured"], liger["not_captured"], liger["ratio"]) == (False, "OutOfMemoryError: full", None)


def test_the_reference_runs_under_its_backend_whenever_it_is_called(monkeypatch):
    seen = []

    def looking(n, width, device):
        def boundary(*given):
            choice = gpu.kernels.choice("cayley_forward", torch.zeros(1000, 4, 4), 1.0)
            seen.append(choice.reason == "asked for")
            return ours(*given)

        ours = kept(n, width, device)
        return boundary

    kept = gpu._ours
    monkeypatch.setattr(gpu, "_compiled", looking)
    gpu.layer_rows("cpu", 8, 4, 16, 2, (gpu._REFERENCE,))
    assert len(seen) > 2
    assert all(seen)


@pytest.mark.parametrize("module", ["gpu", "roofline"])
def test_a_device_whose_own_generator_waits_for_a_capture_still_draws(module, monkeypatch):
    """A failed capture leaves it so: whatever draws on the device names a generator."""

    def named(function):
        def draw(*args, **options):
            assert not options.get("device") or options.get("generator") is not None
            return function(*args, **options)

        return draw

    from benchmarks.kernels import roofline

    for name in ("randn", "rand"):
        monkeypatch.setattr(torch, name, named(getattr(torch, name)))
    for name in ("randn_like", "rand_like"):
        monkeypatch.setattr(torch, name, broken)
    if module == "gpu":
        liger = ModuleType("liger_kernel.transformers")
        liger.functional = None
        monkeypatch.setitem(sys.modules, "liger_kernel", ModuleType("liger_kernel"))
        monkeypatch.setitem(sys.modules, "liger_kernel.transformers", liger)
        monkeypatch.setattr(gpu, "TRM_HEADS", 2)
        gpu._liger(4, 16, "cpu")
        rows = [*gpu.layer_rows("cpu", 8, 4, 16, 1, ("jpmhc",)), *gpu.step_rows("cpu", 2, 5, 16, 1)]
        assert all(row["ms"] > 0 for row in rows)
    else:
        roofline._pullback(roofline._boundary("cpu", 3, 4, 8))


def test_there_is_a_result_after_every_size_and_sizes_that_fail_are_rows(monkeypatch):
    Device(monkeypatch)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)

    def rows(device, tokens, n, width, rounds, contenders):
        if n == 4 and width > 512:
            raise torch.OutOfMemoryError("out of memory")
        return [{"name": "jpmhc", "streams": n, "width": width}]

    monkeypatch.setattr(gpu, "layer_rows", rows)
    results = [len(result["rows"]) for result in gpu.compiled(quick=False)]
    assert results == [1, 2, 3, 4]
    *_, last = gpu.compiled(quick=False)
    errors = [row for row in last["rows"] if "error" in row]
    assert [(row["streams"], row["width"]) for row in errors] == [(4, 4096)]
    assert errors[0]["error"] == "OutOfMemoryError: out of memory"


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


def test_a_step_without_streams_is_timed_where_that_with_them_fails(monkeypatch):
    monkeypatch.setattr(gpu, "TRM_HEADS", 2)
    monkeypatch.setattr(gpu.layers, "HyperStack", broken)
    plain, streams = gpu.step_rows("cpu", 2, 5, 16, 2)
    assert plain["ms"] > 0
    assert streams["error"] == "RuntimeError: no driver"
    monkeypatch.setattr(gpu, "_Plain", broken)
    plain, streams = gpu.step_rows("cpu", 2, 5, 16, 2)
    assert plain["error"] == streams["error"] == "RuntimeError: no driver"


def test_a_step_has_no_ratio_to_one_that_was_timed_otherwise(monkeypatch):
    monkeypatch.setattr(gpu, "TRM_HEADS", 2)
    monkeypatch.setattr(gpu, "replayed", lambda calls, *_: {n: Timed(2.0, n != "plain residual") for n in calls})
    _, streams = gpu.step_rows("cpu", 2, 5, 16, 2)
    assert streams["captured"] is True
    assert streams["ratio"] is streams["floor"] is None


def test_one_stream_is_the_plain_residual(monkeypatch):
    monkeypatch.setattr(gpu, "TRM_HEADS", 2)
    monkeypatch.setattr(gpu, "TRM_STREAMS", 1)
    plain, stack = gpu._Plain(gpu._branches(16, 5)), gpu._branches(16, 5)
    connections = [gpu.layers.HyperConnection(16, branch, streams=1) for branch in stack]
    x = torch.randn(2, 5, 16)
    found = gpu.layers.HyperStack(connections, post_norm="rms")(x.unsqueeze(2)).squeeze(2)
    torch.testing.assert_close(found, plain(x))
