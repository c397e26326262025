"""The choice of a body: what is set, what is found, and one line in the log where something is missing."""

import asyncio
import contextlib
import logging
import subprocess
import sys

import pytest
import torch

from jpmhc import kernels
from jpmhc.kernels import bodies as module
from jpmhc.kernels import primitive
from jpmhc.kernels.check import check_bodies


@pytest.fixture(autouse=True)
def _setting(monkeypatch):
    monkeypatch.setattr(module, "_settings", [])
    monkeypatch.setattr(module, "_setting", "auto")


def test_a_setting_stays_and_a_block_ends():
    kernels.backend("reference")
    assert kernels.choice("cayley_forward", torch.eye(2), 1.0).backend == "reference"
    with kernels.backend("numba"):
        assert module._setting == "numba"
        with kernels.backend("auto"):
            assert module._setting == "auto"
        assert module._setting == "numba"
    assert module._setting == "reference"


def test_a_block_that_raises_ends_too():
    with pytest.raises(ZeroDivisionError), kernels.backend("reference"):
        raise ZeroDivisionError
    assert module._setting != "reference"


def test_blocks_that_overlap_take_back_their_own():
    first, second = kernels.backend("reference"), kernels.backend("numba")
    with contextlib.ExitStack() as one, contextlib.ExitStack() as other:
        one.enter_context(first)
        other.enter_context(second)
        one.close()
        assert module._setting == "numba"
    assert module._setting == "auto"


def test_blocks_of_tasks_leave_the_setting_as_it_was():
    async def task(delay):
        await asyncio.sleep(delay)
        with kernels.backend("reference"):
            await asyncio.sleep(0.02)
            assert module._setting == "reference"

    async def both():
        await asyncio.gather(task(0), task(0.01))

    kernels.backend("numba")
    asyncio.run(both())
    assert module._setting == "numba"


def test_a_block_may_be_entered_again():
    block = kernels.backend("reference")
    for _ in range(2):
        with block, block:
            assert module._setting == "reference"
        assert module._setting == "auto"


def test_settings_for_good_replace_each_other():
    for name in ("numba", "reference", "numba"):
        kernels.backend(name)
        assert module._setting == name
    assert len(module._settings) == 1
    with kernels.backend("auto"):
        kernels.backend("reference")
        assert module._setting == "reference"
    assert module._setting == "reference"


def test_names_are_checked():
    with pytest.raises(ValueError, match="name: expected one of auto, reference, numba, triton, got 'cuda'"):
        kernels.backend("cuda")
    with pytest.raises(ValueError, match=r"operation: expected one of .*cayley_adjoint, .*, got 'matmul'"):
        kernels.choice("matmul", torch.eye(2))
    with pytest.raises(TypeError, match=r"args: expected the arguments of sinkhorn_sweeps, a tensor first, got \(\)"):
        kernels.choice("sinkhorn_sweeps")


def test_every_operation_tells_its_choice():
    assert {"sinkhorn_forward", "cayley_forward", "polar_forward"} <= set(kernels.operations())
    with kernels.backend("reference"):
        assert str(kernels.choice("sylvester", torch.eye(2), torch.eye(2))) == "reference: asked for"
    chosen = kernels.choice("sylvester", torch.eye(2, device="meta"), torch.eye(2, device="meta"))
    assert str(chosen) == "reference: no other body for the device meta"


def test_a_body_of_another_device_is_named_once_in_the_log(caplog):
    module._say_once.cache_clear()
    with caplog.at_level(logging.WARNING, "jpmhc.kernels"), kernels.backend("triton"):
        for _ in range(3):
            kernels.orthonormalise(torch.eye(2))
    assert len(caplog.records) == 1
    assert "orthonormalise runs its reference: " in caplog.records[0].message


@pytest.mark.parametrize(("package", "setting"), [("numba", "auto"), ("numba", "numba"), ("triton", "triton")])
def test_a_missing_package_is_one_line_in_the_log(package, setting):
    code = (
        f"import sys; sys.modules['{package}'] = None; import torch; from jpmhc import kernels; "
        f"kernels.backend('{setting}'); x = torch.eye(3); kernels.cayley_forward(x, 1.0); "
        f"kernels.sylvester(x, x); "
        "print(kernels.choice('cayley_forward', x, 1.0))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == f"reference: {package} cannot be imported\n"
    assert f"operations run their reference, {package} cannot be imported" in done.stderr


@pytest.mark.skipif(module.interpreted(), reason="of Numba")
def test_every_body_is_among_those_that_doctor_checks():
    pytest.importorskip("numba")
    checked = {each.operation: each.error for each in check_bodies("numba")}
    homes = {name: module._body("numba", primitive._modules[name], name) for name in kernels.operations()}
    assert set(checked) == {name for name, home in homes.items() if not isinstance(home, str)}
    assert {name: error for name, error in checked.items() if error is None or not error < 1e-5} == {}
