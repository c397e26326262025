"""Programs that leave the library: exported in torch's own operators, they run where it is not installed."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from jpmhc import autodiff, kernels, layers

MIXERS = [
    "cayley",
    "cayley-mean",
    "cayley-iterated",
    "permutations",
    "quaternion",
    "kronecker",
    "grassmann",
    "orthostochastic",
    "spectral",
    "identity",
    "free",
    "manifold",
    layers.Sinkhorn(4, iterations=20),
    layers.Sinkhorn(4, iterations=20, last="rows"),
]
WITHOUT = """
import sys, torch
sys.modules["jpmhc"] = None
program = torch.export.load(sys.argv[1]).module()
x, y = torch.load(sys.argv[2])
torch.testing.assert_close(program(x), y, rtol=1e-5, atol=1e-6)
"""


def stack(mixer):
    torch.manual_seed(0)
    made = [layers.HyperConnection(8, nn.Linear(8, 8), mixer=mixer) for _ in range(2)]
    return layers.HyperStack(made).eval()


def exported(network, x, decomposed=True, **options):
    with kernels.backend("reference"):
        program = torch.export.export(network, (x,), **options)
        return program.run_decompositions() if decomposed else program


def ours(program):
    return {str(node.target) for node in program.graph.nodes if "jpmhc" in str(node.target)}


@pytest.mark.parametrize("mixer", ["cayley", "grassmann", layers.Sinkhorn(4, iterations=20), "sinkhorn"], ids=str)
def test_a_program_that_is_not_decomposed_holds_none_either(mixer):
    network, x = stack(mixer), torch.randn(2, 5, 4, 8)
    program = exported(network, x, decomposed=False)
    assert not ours(program)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(x), network(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mixer", MIXERS, ids=str)
def test_a_program_exported_under_the_reference_holds_no_operator_of_ours(mixer):
    network, x = stack(mixer), torch.randn(2, 5, 4, 8)
    free = ({0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC},)
    program = exported(network, x, dynamic_shapes=free)
    assert not ours(program)
    for y in (x, torch.randn(3, 50, 4, 8)):
        torch.testing.assert_close(program.module()(y), network(y), rtol=1e-5, atol=1e-5)


def test_other_programs_hold_them_as_one_operation_each():
    program = torch.export.export(stack("cayley"), (torch.randn(2, 4, 8),))
    assert {"jpmhc.boundary_forward.default", "jpmhc.cayley_forward.default"} <= ours(program)


def test_such_a_program_runs_where_the_library_is_missing(tmp_path):
    network, x = stack("cayley"), torch.randn(2, 5, 4, 8)
    torch.export.save(exported(network, x), tmp_path / "program.pt2")
    torch.save((x, network(x).detach()), tmp_path / "numbers.pt")
    command = [sys.executable, "-W", "ignore", "-c", WITHOUT, tmp_path / "program.pt2", tmp_path / "numbers.pt"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("mixer", ["cayley", layers.Sinkhorn(4, iterations=20, last="rows")], ids=str)
def test_onnx_takes_such_a_program(mixer, tmp_path):
    evaluator = pytest.importorskip("onnx.reference").ReferenceEvaluator
    pytest.importorskip("onnxscript")
    network, x = stack(mixer), torch.randn(2, 5, 4, 8)
    with kernels.backend("reference"):
        torch.onnx.export(network, (x,), tmp_path / "network.onnx", dynamo=True, verbose=False)
    session = evaluator(str(tmp_path / "network.onnx"))
    (result,) = session.run(None, {session.input_names[0]: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(result), network(x).detach(), rtol=1e-5, atol=1e-5)


def test_such_a_program_keeps_its_precision_under_autocast():
    class Factor(nn.Module):
        def forward(self, x):
            with torch.autocast("cpu", torch.bfloat16):
                return autodiff.polar(x)

    x = torch.randn(5, 6, 3)
    program = exported(Factor(), x).module()
    torch.testing.assert_close(program(x), autodiff.polar(x), rtol=0, atol=2e-6)
