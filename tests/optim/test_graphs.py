"""Steps with ``capturable=True`` fit a CUDA graph: without a GPU nothing asks the host, with one they are captured."""

import pytest
import torch

from jpmhc import manifolds, optim
from tests.no_host import NoHost
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


def gradient(values, step):
    draw = torch.Generator().manual_seed(step)
    return torch.randn(values.shape, generator=draw, dtype=values.dtype)


@pytest.mark.parametrize("optimiser", OPTIMISERS)
@pytest.mark.parametrize(("manifold", "shape"), CASES, ids=str)
def test_a_step_never_asks_the_host(manifold, shape, optimiser):
    kept = torch.nn.ParameterList(parameter(value, manifold) for value in points(manifold, 3, *shape)).to("meta")
    stepper = optimiser(kept.parameters(), lr=0.1, capturable=True)
    for p in kept:
        p.grad = torch.empty_like(p)
    with NoHost() as mode:
        stepper.step()
        stepper.step()
    # Points were moved, and all of them in one operation.
    assert "_foreach_copy_" in {name.split(".")[0] for name in mode.called}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("optimiser", OPTIMISERS)
@pytest.mark.parametrize(("manifold", "shape"), CASES, ids=str)
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
    with torch.cuda.graph(graph, stream=side):
        steppers[1].step()
    for step in range(warm, warm + replayed):
        static.copy_(gradient(values.cpu(), step))
        graph.replay()
    assert error(eager, torch.stack(list(captured)).detach()) < 1e-10
