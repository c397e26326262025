"""Devices that a body is not made for run the reference, which says why; none of them is here."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from jpmhc.kernels.bodies import interpreted
from jpmhc.kernels.boundary import Pullback
from jpmhc.kernels.primitive import choice

bodies = pytest.importorskip("jpmhc.kernels.cuda.boundary")
pytestmark = pytest.mark.skipif(interpreted(), reason="of devices")
HOPPER = ((9, 0), 227, None)


def chosen(monkeypatch, device, n=4, m=24, dtype=torch.bfloat16, back=False):
    """What `auto` chooses on a device of this compute capability, KiB of shared memory and version of HIP."""
    capability, kibibytes, hip = device
    bodies._unable.cache_clear()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: capability)
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(bodies, "_shared", lambda _device: kibibytes * 1024)
    with FakeTensorMode():
        x = torch.empty(9, n, 64, dtype=dtype, device="cuda")
        weight, bias, scale = (torch.empty(size, device="cuda") for size in ((m, n * 64), (n,), (1,)))
        z, pre = torch.empty(9, m, device="cuda"), torch.empty(9, n, device="cuda")
        if back:
            given = Pullback(x, None, z, x, None, None, None, weight, scale, x, z, pre, None, None, "sigmoid")
            return choice("boundary_backward", *given)
        return choice("boundary_forward", x, None, None, None, weight, bias, scale, "sigmoid", False, 0.0, -1.0)


@pytest.fixture(autouse=True)
def _forgotten():
    yield
    bodies._unable.cache_clear()


@pytest.mark.parametrize("device", [HOPPER, ((8, 0), 163, None), ((8, 9), 99, None), ((12, 0), 99, None)], ids=str)
@pytest.mark.parametrize("back", [False, True])
def test_the_body_runs_where_it_can(back, device, monkeypatch):
    for n, m in ((4, 24), (8, 80)):
        for dtype in (torch.bfloat16, torch.float32, torch.float16):
            assert chosen(monkeypatch, device, n, m, dtype, back).backend == "triton"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("back", [False, True])
@pytest.mark.parametrize(
    ("device", "reason"),
    [
        (((7, 5), 64, None), "no body for compute capability 7.5, only from 8.0"),
        (((7, 0), 96, None), "no body for compute capability 7.0, only from 8.0"),
        (((9, 4), 64, "6.3"), "no body for devices of AMD, which do not make products of float32 by three of tf32"),
        (((8, 0), 64, None), "no body for 24 raw numbers with 64 KiB of shared memory"),
    ],
    ids=str,
)
def test_other_devices_run_the_reference(device, reason, back, dtype, monkeypatch):
    assert chosen(monkeypatch, device, dtype=dtype, back=back)[:2] == ("reference", reason)


def test_more_raw_numbers_than_fit_run_the_reference_backward(monkeypatch):
    for device, n, m in ((((8, 9), 99, None), 4, 500), (HOPPER, 8, 1000)):
        for dtype in (torch.bfloat16, torch.float32):
            assert chosen(monkeypatch, device, n, m, dtype).backend == "triton"
            reason = f"no body for {m} raw numbers with {device[1]} KiB of shared memory"
            assert chosen(monkeypatch, device, n, m, dtype, back=True)[:2] == ("reference", reason)
