"""geoopt's optimisers on our manifolds, ours on geoopt's."""

import subprocess
import sys

import pytest
import torch

from jpmhc import manifolds, optim
from jpmhc.manifolds.peer import geoopt
from tests.optim import problems

OURS = {
    "adam": lambda p: optim.RiemannianAdam(p, lr=0.05),
    "sgd": lambda p: optim.RiemannianSGD(p, lr=0.05, momentum=0.9),
    "nesterov": lambda p: optim.RiemannianSGD(p, lr=0.05, momentum=0.9, nesterov=True),
}
THEIRS = {
    "adam": lambda p: geoopt.optim.RiemannianAdam(p, lr=0.05, stabilize=10),
    "sgd": lambda p: geoopt.optim.RiemannianSGD(p, lr=0.02, momentum=0.5),
    "plain-sgd": lambda p: geoopt.optim.RiemannianSGD(p, lr=0.05),
}
SOLVERS = [optim.RiemannianConjugateGradient, optim.RiemannianTrustRegion]
GEOOPT = {
    "euclidean": problems.procrustes(geoopt.EuclideanStiefel()),
    "canonical": problems.procrustes(geoopt.CanonicalStiefel()),
    "subspace": problems.dominant_subspace(geoopt.EuclideanStiefel()),
    "birkhoff": problems.nearest_doubly_stochastic(geoopt.BirkhoffPolytope()),
}


def start_of(problem):
    """A point from geoopt's own sampler, whose classes take no generator."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        value = problem.manifold.random(*problem.shape, dtype=torch.float64)
    return geoopt.ManifoldParameter(value.as_subclass(torch.Tensor), manifold=problem.manifold)


@pytest.mark.parametrize("make", OURS.values(), ids=list(OURS))
@pytest.mark.parametrize("problem", GEOOPT.values(), ids=list(GEOOPT))
def test_our_optimisers_run_on_geoopts_manifolds(problem, make):
    x = start_of(problem)
    # geoopt's doubly stochastic matrices are off their manifold by 1e-5.
    tolerance = 5e-3 if isinstance(problem.manifold, geoopt.BirkhoffPolytope) else 1e-3
    assert problem.error(problems.descend(make([x]), x, problem.loss, 600, last=1e-3)) < tolerance
    assert problem.manifold.check_point_on_manifold(x.detach(), atol=1e-4)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("problem", GEOOPT.values(), ids=list(GEOOPT))
def test_our_solvers_run_on_geoopts_manifolds(problem, solver):
    x = start_of(problem)
    optimizer = solver([x], max_iter=100)
    optimizer.step(problems.closure_of(optimizer, x, problem.loss))
    assert problem.error(x.detach()) < (1e-3 if isinstance(problem.manifold, geoopt.BirkhoffPolytope) else 1e-6)


@pytest.mark.parametrize("make", THEIRS.values(), ids=list(THEIRS))
@pytest.mark.parametrize("name", ["dominant_subspace", "procrustes", "rotation_averaging", "nearest_doubly_stochastic"])
def test_geoopts_optimisers_run_on_our_manifolds(name, make):
    problem = problems.ALL[name]()
    x = problem.starts(count=2)
    assert problem.error(problems.descend(make([x]), x, problem.loss, 600, last=1e-3)) < 1e-3
    assert problem.manifold.check_point_on_manifold(x.detach(), atol=1e-6)


def test_adam_agrees_with_geoopts_where_both_are_right():
    # The metric is the surrounding one and every map is exact, so nothing but round-off may differ.
    start = manifolds.Sphere().random(5, 4, dtype=torch.float64).as_subclass(torch.Tensor)
    ours, theirs = (geoopt.ManifoldParameter(start.clone(), manifold=geoopt.Sphere()) for _ in range(2))
    optimizers = optim.RiemannianAdam([ours], lr=0.1), geoopt.optim.RiemannianAdam([theirs], lr=0.1)
    weights = problems.randn(5, 4)
    for x, optimizer in zip((ours, theirs), optimizers, strict=True):
        problems.descend(optimizer, x, lambda x: (x * weights).sum() + x.pow(4).sum(), 50)
    assert torch.allclose(ours, theirs, atol=1e-12)


def test_importing_the_room_prints_no_warning():
    done = subprocess.run(
        [sys.executable, "-W", "always", "-c", "import jpmhc.optim"], capture_output=True, text=True, check=True
    )
    assert "geoopt" not in done.stderr
    assert "jit.script" not in done.stderr
