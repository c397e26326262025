import pytest
import torch
from scipy.optimize import linear_sum_assignment

from jpmhc import manifolds, optim
from jpmhc.manifolds.peer import geoopt
from tests.optim import problems

every_problem = pytest.mark.parametrize("problem", [make() for make in problems.ALL.values()], ids=list(problems.ALL))


@every_problem
def test_adam_reaches_the_optimum(problem):
    x = problem.starts()
    optimizer = optim.RiemannianAdam([x], lr=0.1, betas=(0.9, 0.99))
    assert problem.error(problems.descend(optimizer, x, problem.loss, 1200, last=1e-6)) < 1e-6


@every_problem
@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_reaches_the_optimum(problem, nesterov):
    x = problem.starts()
    optimizer = optim.RiemannianSGD([x], lr=0.1, momentum=0.8, nesterov=nesterov)
    assert problem.error(problems.descend(optimizer, x, problem.loss, 250)) < 1e-4


@every_problem
@pytest.mark.parametrize("solver", [optim.RiemannianConjugateGradient, optim.RiemannianTrustRegion])
def test_solvers_reach_the_optimum(problem, solver):
    x = problem.starts()
    optimizer = solver([x], max_iter=200)
    optimizer.step(problems.closure_of(optimizer, x, problem.loss))
    assert problem.error(x.detach()) < 1e-6
    assert x.manifold.check_point_on_manifold(x.detach(), atol=1e-12)


EIGENSPACES = {
    "stiefel": manifolds.Stiefel(),
    "stiefel-euclidean": manifolds.Stiefel(metric="euclidean"),
    "grassmann": manifolds.Grassmann(),
    "geoopt": geoopt.EuclideanStiefel(),
}


@pytest.mark.parametrize("manifold", EIGENSPACES.values(), ids=list(EIGENSPACES))
@pytest.mark.parametrize(
    ("solver", "steps"), [(optim.RiemannianTrustRegion, 15), (optim.RiemannianConjugateGradient, 100)]
)
def test_five_leading_eigenvectors_of_a_hundred_in_few_steps(manifold, solver, steps):
    noise = problems.randn(100, 100, seed=3)
    matrix = (noise + noise.mT) / 2
    best = torch.linalg.eigvalsh(matrix)[-5:].sum()
    start = torch.linalg.qr(problems.randn(100, 5, seed=4)).Q
    x = geoopt.ManifoldParameter(start, manifold=manifold)
    optimizer = solver([x], max_iter=steps)
    optimizer.step(problems.closure_of(optimizer, x, lambda x: -(x * (matrix @ x)).sum()))
    assert optimizer.param_groups[0]["n_iter"] <= steps
    assert (best - (x * (matrix @ x)).sum()) / best < 1e-8


@pytest.mark.parametrize("solver", [optim.RiemannianConjugateGradient, optim.RiemannianTrustRegion])
def test_solvers_find_a_batch_of_means_in_hyperbolic_space(solver):
    ball = geoopt.PoincareBall()
    points = ball.expmap0(0.5 * problems.randn(3, 10, 2))
    x = geoopt.ManifoldParameter(ball.expmap0(0.3 * problems.randn(3, 2, seed=1)), manifold=ball)
    optimizer = solver([x], max_iter=100, tolerance_grad=1e-8)
    optimizer.step(problems.closure_of(optimizer, x, lambda x: ball.dist2(x[:, None].expand_as(points), points).sum()))
    assert optimizer.param_groups[0]["n_iter"] <= (6 if solver is optim.RiemannianTrustRegion else 12)
    pull = ball.logmap(x.detach()[:, None].expand_as(points), points).mean(1)
    assert pull.abs().max() < 1e-7


@pytest.mark.parametrize("seed", range(3))
def test_planted_graph_matching_finds_the_permutation(seed):
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(10, 10, dtype=torch.float64, generator=generator)
    graph = (noise + noise.mT) / 2
    planted = torch.eye(10, dtype=torch.float64)[torch.randperm(10, generator=generator)]
    other = planted.mT @ graph @ planted
    birkhoff = manifolds.Birkhoff()
    x = geoopt.ManifoldParameter(birkhoff.origin(10, 10, dtype=torch.float64), manifold=birkhoff)
    optimizer = optim.RiemannianAdam([x], lr=0.1)
    matching = problems.descend(optimizer, x, lambda x: (graph @ x - x @ other).square().sum(), 300)
    rows, columns = linear_sum_assignment(matching.numpy(), maximize=True)
    found = torch.zeros(10, 10, dtype=torch.float64)
    found[rows, columns] = 1
    assert torch.equal(found, planted)
