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
