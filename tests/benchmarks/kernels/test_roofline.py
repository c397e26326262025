"""In miniature on a CPU: what stands beside a kernel's time, and what is left when one fails."""

import pytest
import torch

from benchmarks.kernels import roofline
from benchmarks.timing import Timed
from tests.benchmarks.fake_cuda import Device


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(roofline, "MATRICES", {"cpu": (16 * 16, 4, 4)})
    monkeypatch.setattr(roofline, "TOKENS", {"cpu": 16 * 16})
    monkeypatch.setattr(roofline, "WIDTHS", {"cpu": (8,)})


def measured():
    *_, last = roofline.measure("cpu", True, "reference")
    return last["rows"]


def test_every_kernel_stands_beside_its_floor():
    rows = measured()
    assert {row["kernel"] for row in rows} >= {"cayley_forward", "quaternion_adjoint", "boundary_backward"}
    for row in rows:
        assert row["body"] == "reference"
        assert row["reached"] == row["floor_ms"] / row["ms"]
        assert row["floor_ms"] == pytest.approx(1e3 * row["mib"] / 1024 / row["copy_gib_s"])
    cayley = next(row for row in rows if row["kernel"] == "cayley_forward")
    assert cayley["mib"] == 2 * 16 * 4 * 4 * 4 / 2**20
    tokens, n, d, m = 16, 4, 8, 24
    wanted = 2 * tokens * n * d + 2 * tokens * d  # x, x', y and u
    wanted += m * n * d + n + 1 + tokens * (n * n + n) + tokens * (m + n + 1)  # parameters, coefficients, what is kept
    boundary = next(row for row in rows if row["kernel"] == "boundary_forward")
    assert boundary["mib"] == 4 * wanted / 2**20


def test_there_is_a_result_after_every_kernel():
    numbers = [len(result["rows"]) for result in roofline.measure("cpu", True, "reference")]
    assert numbers == list(range(1, 14))


def test_a_kernel_that_fails_has_a_row_that_says_so(monkeypatch):
    def cayley_forward(*_):
        raise RuntimeError("too much shared memory\nand where")

    monkeypatch.setattr(roofline.kernels, "cayley_forward", cayley_forward)
    rows = {row["kernel"]: row for row in measured()}
    for name in ("cayley_forward", "cayley_adjoint"):  # whose argument the other one makes
        assert rows[name]["error"] == "RuntimeError: too much shared memory"
        assert rows[name]["shape"] == [16, 4, 4]
        assert "ms" not in rows[name]
    assert rows["boundary_backward"]["ms"] > 0


def test_a_time_is_not_set_against_a_copy_that_was_taken_otherwise(monkeypatch):
    def replayed(calls, rounds, device):
        return {name: Timed(2.0 if name == "copy" else 4.0, name in ("copy", "invert")) for name in calls}

    monkeypatch.setattr(roofline, "replayed", replayed)
    row = measured()[0]
    assert row["captured"] is False
    assert (row["floor_ms"], row["reached"]) == (2.0, None)


def test_nothing_is_tried_on_a_device_that_is_lost(monkeypatch):
    device = Device(monkeypatch)
    seen = []
    monkeypatch.setattr(roofline, "_row", lambda case, *_: seen.append(case) or {"kernel": "a"})
    for name in ("MATRICES", "TOKENS", "WIDTHS"):
        monkeypatch.setitem(getattr(roofline, name), "cuda", getattr(roofline, name)["cpu"])
    results = roofline.measure("cuda", True)
    next(results)
    device.lost = True
    with pytest.raises(RuntimeError, match="illegal memory access"):
        next(results)
    assert len(seen) == 1


def test_normals_are_those_of_the_seed():
    boundary = roofline._boundary("cpu", 3, 4, 8)
    draw = torch.Generator().manual_seed(0)
    torch.testing.assert_close(boundary.x, torch.randn(3, 4, 8, generator=draw), rtol=0, atol=0)
