import copy
from itertools import pairwise

import pytest
import torch

from jpmhc import autodiff, manifolds, optim
from jpmhc.manifolds.peer import geoopt
from tests.optim import problems


def test_convergence_is_quadratic():
    problem = problems.procrustes()
    x = problem.starts(count=1)
    optimizer = optim.RiemannianTrustRegion([x], max_iter=1, tolerance_grad=0.0)
    closure = problems.closure_of(optimizer, x, problem.loss)
    errors = []
    for _ in range(9):
        optimizer.step(closure)
        errors.append(float(problem.error(x.detach())))
    asymptotic = [(a, b) for a, b in pairwise(errors) if 1e-7 < a < 0.3]
    assert asymptotic
    assert all(b <= 10 * a**2 + 1e-14 for a, b in asymptotic)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", problems.ALL)
def test_a_step_ends_at_round_off_of_the_gradient(name, dtype):
    # Directions of the inner iteration that are round-off may have negative curvature; they led far away, for good.
    problem = problems.ALL[name]()
    for seed in range(3):
        start = problem.manifold.random(*problem.shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))
        x = manifolds.Parameter(start, problem.manifold)
        optimizer = optim.RiemannianTrustRegion([x], max_iter=200, tolerance_grad=0.0)
        optimizer.step(problems.closure_of(optimizer, x, lambda v: problem.loss(v.double()).to(dtype)))
        assert optimizer.param_groups[0]["n_iter"] <= 20
        assert problem.error(x.detach().double()) < 100 * torch.finfo(dtype).eps


def test_a_given_hessian_is_used_and_agrees_with_the_closures():
    problem = problems.brockett()
    given, taken = problem.starts(), problem.starts()
    calls = []

    def hessian(direction):
        calls.append(direction.shape)
        return torch.func.jvp(torch.func.grad(problem.loss), (given.detach(),), (direction,))[1]

    first = optim.RiemannianTrustRegion([given], max_iter=6, hessian=hessian)
    second = optim.RiemannianTrustRegion([taken], max_iter=6)
    first.step(problems.closure_of(first, given, problem.loss))
    second.step(problems.closure_of(second, taken, problem.loss))
    assert set(calls) == {given.shape}
    assert torch.allclose(given, taken, atol=1e-10)


def test_a_given_hessian_sees_its_directions_in_the_order_of_the_parameters():
    # The batches are formed by shape, which is not the order given.
    parameters = [torch.nn.Parameter(problems.randn(n, seed=i)) for i, n in enumerate((2, 3, 2))]
    weights = [1.0, 2.0, 3.0]
    optimizer = optim.RiemannianTrustRegion(
        parameters, hessian=lambda *u: [2 * w * v for w, v in zip(weights, u, strict=True)]
    )

    def loss(_):
        return sum(w * (p - w).square().sum() for w, p in zip(weights, parameters, strict=True))

    optimizer.step(problems.closure_of(optimizer, None, loss))
    for p, w in zip(parameters, weights, strict=True):
        assert torch.allclose(p, torch.full_like(p, w), atol=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_float32_ends_at_the_precision_of_its_gradients(seed):
    matrix = problems.randn(30, 30, seed=seed)
    matrix = matrix @ matrix.mT / 30
    x = manifolds.Parameter(manifolds.Stiefel().projx(problems.randn(30, 3, seed=9)).float(), manifolds.Stiefel())
    optimizer = optim.RiemannianTrustRegion([x], max_iter=100)
    optimizer.step(problems.closure_of(optimizer, x, lambda x: -(x * (matrix.float() @ x)).sum()))
    best = torch.linalg.eigvalsh(matrix)[-3:].sum()
    y = manifolds.Stiefel().projx(x.detach().double())
    assert 1 - (y * (matrix @ y)).sum() / best < 1e-12
    assert optimizer.param_groups[0]["n_iter"] < 100  # it knows when it is done


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("scale", [1e4, 1.0, 1e-4])
def test_float32_ends_at_a_critical_point_whatever_the_scale_of_the_loss(scale, seed):
    sphere = manifolds.Sphere()
    matrix = problems.randn(10, 10, seed=seed)
    matrix = (matrix + matrix.mT).float()
    x = manifolds.Parameter(sphere.projx(problems.randn(10, seed=seed + 50)).float(), sphere)
    optimizer = optim.RiemannianTrustRegion([x], max_iter=200, tolerance_grad=0.0)

    def loss(x):
        return scale * (x @ (matrix @ x) + torch.sin(5 * x).pow(3).sum())

    optimizer.step(problems.closure_of(optimizer, x, loss))
    gradient = sphere.egrad2rgrad(x.detach(), torch.func.grad(loss)(x.detach()))
    assert optimizer.param_groups[0]["n_iter"] < 200
    assert gradient.norm() < 1e-4 * scale


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("seed", range(5))
def test_a_loss_that_cancels_to_zero_at_the_optimum_is_minimised_to_round_off(seed, dtype):
    matrix = problems.randn(10, 10, seed=seed)
    matrix = matrix @ matrix.mT + torch.eye(10)
    target = problems.randn(10, seed=seed + 9)
    shift, slope, m, t = (v.to(dtype) for v in (target @ matrix @ target, 2 * matrix @ target, matrix, target))
    x = torch.nn.Parameter(problems.randn(10, seed=seed + 50).to(dtype))
    optimizer = optim.RiemannianTrustRegion([x], max_iter=200, tolerance_grad=0.0)
    optimizer.step(
        problems.closure_of(
            optimizer, x, lambda x: x @ (m @ x) - slope @ x + shift + 0.01 * (x - t).square().square().sum()
        )
    )
    assert optimizer.param_groups[0]["n_iter"] < 200
    assert (x.detach().double() - target).abs().max() < 100 * torch.finfo(dtype).eps


@pytest.mark.parametrize("make", [optim.RiemannianTrustRegion, optim.RiemannianConjugateGradient])
@pytest.mark.parametrize("given", [False, True])
def test_frozen_and_empty_parameters_stay_out_of_it(make, given):
    sphere = manifolds.Sphere()
    x, still = (manifolds.Parameter(sphere.projx(problems.randn(3, seed=i)), sphere) for i in (0, 1))
    still.requires_grad_(False)
    empty = torch.nn.Parameter(problems.randn(0))
    before, calls = still.clone(), []
    options = {"hessian": lambda *u: calls.append(u) or [torch.zeros_like(v) for v in u]} if given else {}
    if given and make is optim.RiemannianConjugateGradient:
        pytest.skip("it takes no Hessian")
    optimizer = make([still, empty, x], **options)
    optimizer.step(problems.closure_of(optimizer, x, lambda x: x[0] + 2 * x[1] + still.sum()))
    assert abs(x[0] + 2 * x[1] + 5**0.5) < 1e-9
    assert torch.equal(still, before)
    assert all(not u[0].any() and u[1].numel() == 0 for u in calls)


def test_a_point_that_runs_into_a_boundary_gets_as_far_as_its_metric_has_digits():
    spd = geoopt.SymmetricPositiveDefinite()
    x = geoopt.ManifoldParameter(torch.diag(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)), manifold=spd)
    target, _ = problems.symmetric(torch.tensor([-2.0, -1.0, 1.5], dtype=torch.float64))
    optimizer = optim.RiemannianTrustRegion([x])
    closure = problems.closure_of(optimizer, x, lambda x: (x - target).square().sum())
    for _ in range(3):
        optimizer.step(closure)
    assert abs(closure().item() - 5) < 1e-3  # the nearest positive semidefinite matrix leaves 2^2 + 1^2


def test_nothing_to_move_is_refused():
    optimizer = optim.RiemannianTrustRegion([torch.nn.Parameter(torch.ones(2), requires_grad=False)])
    with pytest.raises(ValueError, match="params: expected a parameter to move"):
        optimizer.step(lambda: torch.ones(()))


def test_a_copy_keeps_the_hessian():
    x = torch.nn.Parameter(problems.randn(3))
    y, optimizer = copy.deepcopy((x, optim.RiemannianTrustRegion([x], hessian=lambda u: 2 * u)))
    optimizer.step(problems.closure_of(optimizer, y, lambda y: y.square().sum()))
    assert y.abs().max() < 1e-7 < x.abs().max()


def test_results_of_a_hessian_that_do_not_fit_are_refused():
    x = torch.nn.Parameter(problems.randn(3))
    optimizer = optim.RiemannianTrustRegion([x], hessian=lambda u: u[:2])
    with pytest.raises(ValueError, match="hessian: expected results of shapes"):
        optimizer.step(problems.closure_of(optimizer, x, lambda x: x.square().sum()))
    with pytest.raises(TypeError, match="hessian: expected a callable, got Tensor"):
        optim.RiemannianTrustRegion([x], hessian=torch.eye(3))


def test_without_a_hessian_gradients_are_left_as_they_were():
    problem = problems.procrustes()
    x = problem.starts()
    x.grad = torch.full_like(x, 7.0)
    optimizer = optim.RiemannianTrustRegion([x])

    def closure():
        loss = problem.loss(x)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert torch.equal(x.grad, torch.full_like(x, 7.0))
    assert problem.error(x.detach()) < 1e-6


def test_closures_through_custom_derivatives_are_differentiated_twice():
    raw = torch.nn.Parameter(0.3 * problems.randn(3, 3))
    target = autodiff.cayley(0.3 * problems.randn(3, 3, seed=5))
    optimizer = optim.RiemannianTrustRegion([raw], max_iter=50)
    optimizer.step(
        problems.closure_of(
            optimizer, raw, lambda raw: (autodiff.cayley(raw) - target).square().sum() + (raw + raw.mT).square().sum()
        )
    )
    assert (autodiff.cayley(raw) - target).abs().max() < 1e-6


def test_a_closure_that_returns_a_number_needs_a_hessian():
    x = torch.nn.Parameter(problems.randn(3))
    optimizer = optim.RiemannianTrustRegion([x])
    closure = problems.closure_of(optimizer, x, lambda x: x.square().sum())
    with pytest.raises(TypeError, match="closure: expected it to return the loss as a tensor"):
        optimizer.step(lambda: float(closure().detach()))
    optim.RiemannianTrustRegion([x], hessian=lambda u: 2 * u).step(lambda: float(closure().detach()))
    assert x.abs().max() < 1e-7


def test_a_linear_loss_has_no_curvature_and_is_followed_to_the_boundary():
    x = torch.nn.Parameter(torch.zeros(4, dtype=torch.float64))
    optimizer = optim.RiemannianTrustRegion([x], max_iter=1, max_radius=8.0)
    optimizer.step(problems.closure_of(optimizer, x, lambda x: x.sum()))
    assert float(x.norm()) == pytest.approx(1.0)


def test_saddles_are_left():
    # Brockett's function has a saddle at every other choice of eigenvectors; a nudge must be enough.
    problem = problems.brockett()
    _, vectors = problems.symmetric(torch.linspace(1, 3, 8, dtype=torch.float64))
    nudged = torch.linalg.qr(vectors[:, 3:6] + 1e-6 * problems.randn(8, 3)).Q
    x = geoopt.ManifoldParameter(nudged, manifold=problem.manifold)
    optimizer = optim.RiemannianTrustRegion([x], max_iter=60)
    optimizer.step(problems.closure_of(optimizer, x, problem.loss))
    assert problem.error(x.detach()) < 1e-6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_inner": 0}, "max_inner: expected at least 1"),
        ({"max_radius": -1.0}, "max_radius: expected"),
        ({"max_radius": 0.0}, "max_radius: expected more than 0"),
        ({"accept": 0.3}, "accept: expected .* below 0.25, got 0.3"),
    ],
)
def test_values_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        optim.RiemannianTrustRegion([torch.nn.Parameter(torch.ones(2))], **options)
