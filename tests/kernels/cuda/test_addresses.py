"""Addresses are 64-bit: a tensor may have more than 2^31 numbers. Compiled once a model, not once a batch or step."""

import pytest
import torch

from jpmhc.kernels.bodies import interpreted
from tests.kernels.interpreter import run_again

triton = pytest.importorskip("triton")
tl = triton.language
from jpmhc.kernels.cuda import backward, cayley, closing, forward, rows, sinkhorn  # noqa: E402

rows_of, places_of = rows.rows_of, rows.places_of


@triton.jit
def _offsets(result, there, block, tokens, start):
    token, stream, inside = rows_of(block, tokens, 3, 4, 16)
    offsets, mask = places_of(token, stream, inside, start, 3, 7168, 64)
    place = (
        tl.arange(0, 4)[:, None, None] * 1024 + tl.arange(0, 16)[None, :, None] * 64 + tl.arange(0, 64)[None, None, :]
    )
    tl.store(result + place, offsets)
    tl.store(there + place, mask.to(tl.int32))


@pytest.mark.skipif(interpreted(), reason="the process that this test starts")
def test_in_the_interpreter():
    assert run_again(__file__) > 0


@pytest.mark.skipif(not interpreted(), reason="of Triton's interpreter")
def test_offsets_beyond_two_to_the_31():
    block, start = 8000, 7168 - 32
    result, there = (torch.empty(16, 4, 64, dtype=dtype) for dtype in (torch.int64, torch.int32))
    _offsets[(1,)](result, there, block, block * 16 + 9, start)
    rows = (block * 16 + torch.arange(16)[:, None]) * 3 + torch.arange(3)
    wanted = rows.unsqueeze(2) * 7168 + start + torch.arange(64)
    assert wanted.max() > 2**31
    assert torch.equal(result[:, :3], wanted)
    assert there[:9, :3, :32].all()
    assert there.sum() == 9 * 3 * 32


@pytest.mark.skipif(interpreted(), reason="of the compiler")
def test_no_kernel_is_compiled_again_for_another_number_of_tokens():
    kernels = [forward.cross, closing.close, closing.along, backward.pull, backward.weight_gradient]
    kernels += [cayley._forward, cayley._adjoint, sinkhorn._sweeps, sinkhorn._forward, sinkhorn._potentials]
    for kernel in kernels:
        counts = {p.name for p in kernel.params if p.name in ("tokens", "length", "iterations", "max_steps")}
        assert counts == {p.name for p in kernel.params if p.do_not_specialize}
        assert "tokens" in counts


@pytest.mark.skipif(interpreted(), reason="of the compiler")
def test_no_kernel_is_compiled_again_for_another_step_or_tolerance():
    for kernel, name in ((cayley._forward, "step"), (cayley._adjoint, "step"), (sinkhorn._forward, "tol")):
        (number,) = (p for p in kernel.params if p.name == name)
        assert (number.is_constexpr, number.annotation_type) == (False, "fp64")
