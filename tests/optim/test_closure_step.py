"""What the solvers with a closure keep of a point goes with them, through every way to save them."""

import copy
import math
import pickle

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from jpmhc import manifolds, optim
from tests.optim import problems

every_solver = pytest.mark.parametrize("solver", [optim.RiemannianConjugateGradient, optim.RiemannianTrustRegion])
NUMBERS = {"n_iter", "func_evals", "length", "slope", "radius"}


class Model(torch.nn.Module):
    """A frame and a plain parameter that pull at each other."""

    def __init__(self):
        super().__init__()
        self.problem = problems.brockett()
        self.frame = self.problem.starts(1)
        self.shift = torch.nn.Parameter(problems.randn(3))

    def forward(self):
        return self.problem.loss(self.frame) + (self.shift - self.frame[0, 0]).square().square().sum()


def made(solver, steps):
    """A model and its optimiser after so many steps."""
    model = Model()
    optimizer = solver(model.parameters(), max_iter=2)
    train(model, optimizer, steps)
    return model, optimizer


def train(model, optimizer, steps):
    for _ in range(steps):
        optimizer.step(problems.closure_of(optimizer, None, lambda _: model()))


def numbers(optimizer):
    return {name: value for name, value in optimizer.param_groups[0].items() if name in NUMBERS}


def assert_goes_on_alike(model, optimizer, other, resumed):
    assert numbers(resumed) == numbers(optimizer)
    train(model, optimizer, 2)
    train(other, resumed, 2)
    assert numbers(resumed) == numbers(optimizer)
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)


@every_solver
@pytest.mark.parametrize("steps", [0, 1])
def test_a_distributed_checkpoint_carries_the_numbers_of_the_point(solver, steps, tmp_path):
    model, optimizer = made(solver, 3)
    dcp.save(dict(zip("mo", get_state_dict(model, optimizer), strict=True)), checkpoint_id=tmp_path, no_dist=True)
    other, resumed = made(solver, steps)
    loaded = dict(zip("mo", get_state_dict(other, resumed), strict=True))
    dcp.load(loaded, checkpoint_id=tmp_path, no_dist=True)
    set_state_dict(other, resumed, model_state_dict=loaded["m"], optim_state_dict=loaded["o"])
    assert_goes_on_alike(model, optimizer, other, resumed)


@every_solver
def test_so_does_one_of_the_optimisers_own_state_dict(solver, tmp_path):
    model, optimizer = made(solver, 3)
    dcp.save({"o": optimizer.state_dict()}, checkpoint_id=tmp_path, no_dist=True)
    other, resumed = made(solver, 1)
    loaded = {"o": resumed.state_dict()}
    dcp.load(loaded, checkpoint_id=tmp_path, no_dist=True)
    resumed.load_state_dict(loaded["o"])
    other.load_state_dict(model.state_dict())
    assert_goes_on_alike(model, optimizer, other, resumed)


def as_it_was(saved):
    """A state dict of the time when the numbers were in the state of the first parameter."""
    (group,) = saved["param_groups"]
    state = saved["state"].setdefault(0, {})
    state.update({name: group.pop(name) for name in NUMBERS if name in group})
    return saved


@every_solver
def test_an_older_state_dict_is_taken(solver):
    model, optimizer = made(solver, 3)
    other, resumed = made(solver, 1)
    resumed.load_state_dict(as_it_was(copy.deepcopy(optimizer.state_dict())))
    other.load_state_dict(model.state_dict())
    assert not any(NUMBERS & set(state) for state in resumed.state.values())
    assert_goes_on_alike(model, optimizer, other, resumed)


@every_solver
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_copies_go_on_from_the_numbers(solver, copied):
    model = torch.nn.Linear(3, 2, dtype=torch.float64)
    optimizer = solver(model.parameters(), max_iter=2)
    x = problems.randn(7, 3)

    def steps(model, optimizer):
        for _ in range(2):
            optimizer.step(problems.closure_of(optimizer, None, lambda _: (model(x).tanh() - 0.3).square().sum()))

    steps(model, optimizer)
    twin, resumed = copied((model, optimizer))
    for pair in ((model, optimizer), (twin, resumed)):
        steps(*pair)
    assert numbers(resumed) == numbers(optimizer)
    assert optimizer.param_groups[0]["n_iter"] > 4
    assert torch.equal(model.weight, twin.weight)


@every_solver
def test_numbers_start_anew_with_the_state(solver):
    model, optimizer = made(solver, 3)
    other, new = made(solver, 0)
    other.load_state_dict(model.state_dict())
    optimizer.state.clear()
    train(model, optimizer, 1)
    train(other, new, 1)
    assert numbers(optimizer) == numbers(new)


@every_solver
def test_a_closure_is_asked_for_in_words_unless_all_gradients_are_zero(solver):
    sphere = manifolds.Sphere()
    parameters = [manifolds.Parameter(sphere.origin(3), sphere), torch.nn.Parameter(torch.ones(2))]
    before = [p.detach().clone() for p in parameters]
    optimizer = solver(parameters)
    for gradient in (None, 1.0):
        for p in parameters:
            p.grad = None if gradient is None else torch.full_like(p, gradient)
        with pytest.raises(TypeError, match=r"closure: expected a function that computes the loss .*, got None"):
            optimizer.step(None)
        assert not optimizer.state
    for p in parameters:
        p.grad = torch.zeros_like(p)
    assert math.isnan(optimizer.step(None))
    assert len(optimizer.state) == 2
    assert all(torch.equal(p, q) for p, q in zip(parameters, before, strict=True))
