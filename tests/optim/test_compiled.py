"""A compiled step is compiled once for its first step and once for all others, and moves as the step itself."""

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from jpmhc import manifolds, optim
from tests.optim.stacks import parameter, points, separate

ADAM, SGD = optim.RiemannianAdam, optim.RiemannianSGD
CASES = [
    (ADAM, {}),
    (ADAM, {"amsgrad": True, "maximize": True}),
    (ADAM, {"check": "none", "foreach": False}),
    (SGD, {"momentum": 0.9}),
    (SGD, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
]


def mixed(kinds):
    rotations, stiefel = manifolds.SpecialOrthogonal(), manifolds.Stiefel()
    bound = [
        *separate(points(rotations, 2, 3, 3, dtype=torch.float32), rotations),
        parameter(points(stiefel, 1, 4, 2, dtype=torch.float32)[0], stiefel),
    ]
    free = [torch.nn.Parameter(torch.linspace(-1, 1, n)) for n in (3, 5)]
    return {"bound": bound, "free": free, "both": [*bound, *free]}[kinds]


def grouped(parameters, groups):
    return [{"params": parameters[place::groups], "lr": 0.05 / (place + 1)} for place in range(groups)]


def train(optimizer, step, steps):
    """Take so many steps, each with gradients that are new tensors, and return the points."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for _ in range(steps):
        optimizer.zero_grad(set_to_none=True)
        sum((p - 1).square().sum() for p in parameters).backward()
        step()
    return [p.detach().clone() for p in parameters]


@pytest.mark.parametrize(
    ("optimiser", "options", "kinds", "groups"),
    [
        *((*case, "both", 2) for case in CASES),
        *((*case, kinds, 1) for case in (CASES[0], CASES[3]) for kinds in ("bound", "free", "both")),
    ],
    ids=str,
)
def test_a_step_after_the_second_compiles_nothing(optimiser, options, kinds, groups):
    torch._dynamo.reset()
    counter = CompileCounter()
    compiled, eager = (optimiser(grouped(mixed(kinds), groups), **options) for _ in range(2))
    step = torch.compile(compiled.step, backend=counter)
    train(compiled, step, 2)
    frames = counter.frame_count
    ours = train(compiled, step, 6)
    assert 0 < frames <= 2
    assert counter.frame_count == frames
    train(eager, eager.step, 2)
    torch.testing.assert_close(ours, train(eager, eager.step, 6), rtol=0, atol=1e-5)  # torch counts steps in float32


@pytest.mark.parametrize("optimiser", [ADAM, SGD])
def test_a_compiled_step_that_looks_at_its_gradients_compiles_nothing_either_and_raises(optimiser):
    torch._dynamo.reset()
    counter = CompileCounter()
    optimizer = optimiser(mixed("both"), lr=0.05, check="raise")
    step = torch.compile(optimizer.step, backend=counter)
    train(optimizer, step, 2)
    frames = counter.frame_count
    train(optimizer, step, 6)
    assert counter.frame_count == frames
    optimizer.param_groups[0]["params"][0].grad[0, 0] = torch.nan
    with pytest.raises(ValueError, match="expected a finite gradient"):
        step()
