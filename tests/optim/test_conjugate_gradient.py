from itertools import pairwise

import pytest
import torch

from jpmhc import manifolds, optim
from jpmhc.manifolds.peer import geoopt
from tests.optim import problems


def quadratic(size=6):
    """A quadratic of condition number 100, its minimiser and a start."""
    matrix, _ = problems.symmetric(torch.logspace(0, 2, size, dtype=torch.float64))
    target = problems.randn(size)
    x = torch.nn.Parameter(torch.zeros(size, dtype=torch.float64))
    return x, lambda x: (x - target) @ matrix @ (x - target) / 2, target


def test_a_quadratic_takes_about_as_many_iterations_as_it_has_dimensions():
    x, loss, target = quadratic()
    optimizer = optim.RiemannianConjugateGradient([x], max_iter=14, curvature=1e-3)
    optimizer.step(problems.closure_of(optimizer, x, loss))
    assert (x - target).abs().max() < 1e-7


def test_many_short_steps_are_one_long_one():
    problem = problems.procrustes()
    long, short = problem.starts(), problem.starts()
    once = optim.RiemannianConjugateGradient([long], max_iter=6)
    often = optim.RiemannianConjugateGradient([short], max_iter=1)
    once.step(problems.closure_of(once, long, problem.loss))
    for _ in range(6):
        often.step(problems.closure_of(often, short, problem.loss))
    assert torch.allclose(long, short, atol=1e-12)


def test_a_state_dict_carries_the_direction():
    problem = problems.brockett()
    through, first = problem.starts(), problem.starts()
    whole = optim.RiemannianConjugateGradient([through], max_iter=5)
    for _ in range(2):
        whole.step(problems.closure_of(whole, through, problem.loss))
    part = optim.RiemannianConjugateGradient([first], max_iter=5)
    part.step(problems.closure_of(part, first, problem.loss))
    second = geoopt.ManifoldParameter(first.detach().clone(), manifold=first.manifold)
    resumed = optim.RiemannianConjugateGradient([second])
    resumed.load_state_dict(part.state_dict())
    resumed.step(problems.closure_of(resumed, second, problem.loss))
    assert resumed.param_groups[0]["n_iter"] == 10
    assert torch.allclose(through, second, atol=1e-12)


def test_the_loss_never_rises_and_the_first_one_is_returned():
    problem = problems.brockett()
    x = problem.starts()
    optimizer = optim.RiemannianConjugateGradient([x], max_iter=1)
    closure = problems.closure_of(optimizer, x, problem.loss)
    losses = [optimizer.step(closure) for _ in range(30)]
    assert losses[0] == problem.loss(problem.starts()).item()
    assert all(later <= sooner for sooner, later in pairwise(losses))


def test_manifolds_and_plain_parameters_are_one_problem():
    stiefel, sphere = manifolds.Stiefel(), manifolds.Sphere()
    target = problems.randn(5, 2, seed=7)
    left, _, right = torch.linalg.svd(target, full_matrices=False)
    frames = [geoopt.ManifoldParameter(torch.eye(5, 2, dtype=torch.float64), manifold=stiefel) for _ in range(2)]
    axis = geoopt.ManifoldParameter(torch.eye(3, dtype=torch.float64)[0], manifold=sphere)
    scale = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))

    def loss(_):
        flat = (scale - 3).square().sum()
        return flat + sum((f - target).square().sum() for f in frames) + axis[0] + 2 * axis[1]

    for solver in (optim.RiemannianConjugateGradient, optim.RiemannianTrustRegion):
        optimizer = solver([*frames, axis, scale], max_iter=100)
        optimizer.step(problems.closure_of(optimizer, None, loss))
        assert all((f - left @ right).abs().max() < 1e-6 for f in frames)
        assert (scale - 3).abs() < 1e-6
        assert (axis - torch.tensor([-1.0, -2.0, 0.0]) / 5**0.5).abs().max() < 1e-6


def test_float32_ends_at_round_off():
    problem = problems.rotation_averaging()
    x = geoopt.ManifoldParameter(problem.starts().detach().float(), manifold=problem.manifold)
    for solver in (optim.RiemannianConjugateGradient, optim.RiemannianTrustRegion):
        optimizer = solver([x], max_iter=200)
        optimizer.step(problems.closure_of(optimizer, x, problem.loss))
        assert problem.error(x.detach()) < 1e-3
        assert optimizer.param_groups[0]["n_iter"] < 100


@pytest.mark.parametrize("solver", [optim.RiemannianConjugateGradient, optim.RiemannianTrustRegion])
def test_bad_input_is_refused(solver):
    x = torch.nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match="params: expected one group"):
        solver([{"params": [x]}, {"params": [torch.nn.Parameter(torch.ones(2))]}])
    with pytest.raises(ValueError, match="max_iter: expected at least 1, got 0"):
        solver([x], max_iter=0)
    with pytest.raises(ValueError, match="tolerance_grad: expected"):
        solver([x], tolerance_grad=-1.0)
    with pytest.raises(TypeError, match="lr"):
        solver([x], lr=1.0)
    with pytest.raises(TypeError):
        solver([x]).step()


@pytest.mark.parametrize("solver", [optim.RiemannianConjugateGradient, optim.RiemannianTrustRegion])
def test_a_start_that_is_not_finite_is_named(solver):
    x = torch.nn.Parameter(torch.zeros(2))
    optimizer = solver([("weight", x)])
    with pytest.raises(ValueError, match="weight: expected a finite gradient, got NaN or infinity in 2 of 2 numbers"):
        optimizer.step(problems.closure_of(optimizer, x, lambda x: x.sqrt().sum()))
    with pytest.raises(ValueError, match="closure: expected a finite loss at the start of a step, got inf"):
        optimizer.step(problems.closure_of(optimizer, x, lambda x: -x.log().sum()))
    with pytest.raises(TypeError, match="closure: expected it to return the loss, one number, got NoneType"):
        optimizer.step(lambda: None)


def test_wolfe_constants_are_checked():
    with pytest.raises(ValueError, match=r"expected 0 < decrease < curvature < 1, got 0\.5, 0\.1"):
        optim.RiemannianConjugateGradient([torch.nn.Parameter(torch.ones(2))], decrease=0.5)


def test_a_step_onto_values_that_are_not_finite_is_shortened():
    x = torch.nn.Parameter(torch.tensor([0.5], dtype=torch.float64))
    for solver in (optim.RiemannianConjugateGradient, optim.RiemannianTrustRegion):
        optimizer = solver([x], max_iter=50)
        optimizer.step(problems.closure_of(optimizer, x, lambda x: (x - 1e-3 * x.log()).sum()))
        assert abs(x.item() - 1e-3) < 1e-6
