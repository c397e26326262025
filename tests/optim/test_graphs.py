"""Steps with ``capturable=True`` fit a CUDA graph: without a GPU nothing asks the host, with one they are captured."""

import gc
import sys

import pytest
import torch

from jpmhc import kernels, manifolds, optim
from tests.no_host import FACTORISATIONS, NoHost, pretend_to_capture
from tests.optim.stacks import error, parameter, points

OPTIMISERS = [optim.RiemannianAdam, optim.RiemannianSGD]
CASES = [
    (manifolds.Stiefel(), (4, 4)),
    (manifolds.Stiefel("euclidean"), (8, 3)),
    *((manifolds.Stiefel(retraction=retraction), (8, 3)) for retraction in ("qr", "polar", "exp")),
    (manifolds.SpecialOrthogonal(), (4, 4)),
    (manifolds.Grassmann(), (8, 3)),
    (manifolds.Birkhoff(), (4, 4)),
    (manifolds.Sphere(), (5,)),
    (manifolds.Simplex(), (5,)),
]
LARGER = [
    (manifolds.Stiefel(), (20, 20)),
    *((manifolds.Stiefel(retraction=retraction), (20, 7)) for retraction in ("cayley", "qr", "polar", "exp")),
    (manifolds.SpecialOrthogonal(), (8, 8)),
    *((manifolds.Grassmann(retraction=retraction), (20, 7)) for retraction in ("polar", "qr", "exp")),
    (manifolds.Birkhoff(), (20, 20)),
]


def gradient(values, step):
    draw = torch.Generator().manual_seed(step)
    return torch.randn(values.shape, generator=draw, dtype=values.dtype)


@pytest.mark.parametrize("optimiser", OPTIMISERS)
@pytest.mark.parametrize(("manifold", "shape"), CASES + LARGER, ids=str)
def test_a_step_never_asks_the_host(manifold, shape, optimiser, monkeypatch):
    pretend_to_capture(monkeypatch)
    kept = torch.nn.ParameterList(parameter(value, manifold) for value in points(manifold, 3, *shape)).to("meta")
    stepper = optimiser(kept.parameters(), lr=0.1, capturable=True)
    for p in kept:
        p.grad = torch.empty_like(p)
    with NoHost() as mode:
        stepper.step()
        stepper.step()
    # Points were moved, and all of them in one operation.
    assert "_foreach_copy_" in mode.called
    assert not mode.called & FACTORISATIONS


@pytest.mark.parametrize("optimiser", OPTIMISERS)
@pytest.mark.parametrize(("manifold", "shape"), CASES + LARGER, ids=str)
def test_a_step_without_a_librarys_factorisations_is_the_same(manifold, shape, optimiser, monkeypatch):
    values = points(manifold, 3, *shape)
    # As on a device: no body for the CPU, and no look at the numbers.
    for name, module in [*sys.modules.items()]:
        if name.startswith("jpmhc.") and hasattr(module, "can_read"):
            monkeypatch.setattr(module, "can_read", lambda value: False)

    def moved():
        kept = torch.nn.ParameterList(parameter(value, manifold) for value in values)
        stepper = optimiser(kept.parameters(), lr=0.1)
        for step in range(2):
            for p, row in zip(kept, gradient(values, step), strict=True):
                p.grad = row
            stepper.step()
        return torch.stack(list(kept)).detach()

    with kernels.backend("reference"):
        expected = moved()
        pretend_to_capture(monkeypatch)
        found = moved()
    assert (found - values).abs().amax() > 1e-2
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("optimiser", OPTIMISERS)
@pytest.mark.parametrize(("manifold", "shape"), CASES + LARGER, ids=str)
def test_steps_are_captured_in_a_cuda_graph(manifold, shape, optimiser):
    warm, replayed = 3, 5
    values = points(manifold, 2, *shape).cuda()
    eager, captured = (torch.nn.ParameterList(parameter(value, manifold) for value in values) for _ in range(2))
    steppers = [optimiser(kept.parameters(), lr=0.05, capturable=True) for kept in (eager, captured)]
    static = torch.zeros_like(values)
    for p, slot in zip(captured, static, strict=True):
        p.grad = slot
    for step in range(warm + replayed):
        for p, row in zip(eager, gradient(values.cpu(), step).cuda(), strict=True):
            p.grad = row
        steppers[0].step()
    # What is made at the first steps (state, handles of libraries) is made on the stream that is captured.
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.stream(side):
        for step in range(warm):
            static.copy_(gradient(values.cpu(), step))
            steppers[1].step()
    torch.cuda.synchronize()
    # What an older graph leaves when it is collected (the workspaces of cuBLAS, in torch 2.13) is not of this one.
    gc.collect()
    with torch.cuda.graph(graph, stream=side):
        steppers[1].step()
    for step in range(warm, warm + replayed):
        static.copy_(gradient(values.cpu(), step))
        graph.replay()
    assert error(eager, torch.stack(list(captured)).detach()) < 1e-10
