"""Candidates for the blocks of the boundary's kernels give what the chosen blocks give."""

import pytest
import torch

from jpmhc.kernels.bodies import interpreted
from tests.kernels.interpreter import run_again

pytest.importorskip("triton")


@pytest.mark.skipif(interpreted(), reason="the process that this test starts")
def test_in_the_interpreter():
    assert run_again(__file__) > 0


@pytest.mark.skipif(not interpreted(), reason="of the interpreter")
@pytest.mark.parametrize(("name", "ran"), [(None, ["cross", "pull"]), ("blocks_to_write", ["cross"])])
def test_a_candidate_is_compiled_by_running_what_it_changes(name, ran, monkeypatch):
    from triton.runtime.interpreter import InterpretedFunction

    from benchmarks.kernels import blocks

    launched, launch = [], InterpretedFunction.__getitem__
    monkeypatch.setattr(
        InterpretedFunction, "__getitem__", lambda self, grid: launched.append(self.fn.__name__) or launch(self, grid)
    )
    monkeypatch.setattr(blocks, "TOKENS_TO_COMPILE", 5)
    blocks.compile_one((4, 24, name, (16, 16, 4, 1) if name else ()), "cpu", torch.float32)
    assert set(ran) <= set(launched[launched.index("cross") + 1 :])


@pytest.mark.skipif(not interpreted(), reason="of the interpreter")
@pytest.mark.parametrize("name", ["blocks_to_write", "blocks_to_pull", "blocks_to_sum", "blocks_to_close"])
def test_candidates_change_no_result(name):
    from benchmarks.kernels.blocks import CANDIDATES, blocks, material
    from jpmhc.kernels.cuda import boundary

    given, back = material(9, 4, 40, "cpu", torch.float32)
    expected = [*boundary.boundary_forward(given), *boundary.boundary_backward(back)]
    with blocks(name, CANDIDATES[name][4][-1]):
        found = [*boundary.boundary_forward(given), *boundary.boundary_backward(back)]
    for value, truth in zip(found, expected, strict=True):
        torch.testing.assert_close(value, truth, rtol=1e-4, atol=1e-4)
