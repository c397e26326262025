import copy

import pytest
import torch

from jpmhc import manifolds, optim
from jpmhc.manifolds.peer import geoopt
from tests.optim.stacks import error, parameter, points, run, separate, set_gradients

MANIFOLDS = {
    "birkhoff": (manifolds.Birkhoff(), (4, 4)),
    "stiefel": (manifolds.Stiefel(), (5, 3)),
    "grassmann": (manifolds.Grassmann(), (5, 3)),
    "rotations": (manifolds.SpecialOrthogonal(), (4, 4)),
    "geoopt-canonical": (geoopt.CanonicalStiefel(), (5, 3)),
    "geoopt-sphere": (geoopt.Sphere(), (6,)),
}
every_manifold = pytest.mark.parametrize(("manifold", "shape"), MANIFOLDS.values(), ids=list(MANIFOLDS))
MOMENTA = [{}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}, {"momentum": 0.5, "dampening": 0.5}]
every_momentum = pytest.mark.parametrize("options", MOMENTA, ids=str)


def plain():
    return [torch.nn.Parameter(torch.linspace(-1, 1, n, dtype=torch.float64)) for n in (3, 5)]


@every_manifold
@every_momentum
def test_separate_parameters_move_as_one_stacked_one(manifold, shape, options):
    values = points(manifold, 6, *shape)
    many, one = separate(values, manifold), parameter(values, manifold)
    optimizers = [optim.RiemannianSGD(p, lr=0.05, **options) for p in (many, [one])]
    for step in range(5):
        set_gradients(many, step)
        one.grad = torch.stack([p.grad for p in many])
        for optimizer in optimizers:
            optimizer.step()
    assert error(many, one) < 1e-12
    assert error(many, values) > 0.01


@every_manifold
@pytest.mark.parametrize("dampening", [0.0, 0.3])
def test_momentum_starts_from_the_riemannian_gradient(manifold, shape, dampening):
    x = parameter(points(manifold, 1, *shape)[0], manifold)
    start = x.detach().clone()
    set_gradients([x], 0)
    gradient = manifold.egrad2rgrad(start, x.grad)
    optimizer = optim.RiemannianSGD([x], lr=0.01, momentum=0.9, dampening=dampening)
    optimizer.step()
    moved, transported = manifold.retr_transp(start, -0.01 * gradient, gradient)
    assert torch.allclose(x, moved, atol=1e-13)
    assert torch.allclose(optimizer.state[x]["momentum_buffer"], transported, atol=1e-13)


def test_parameters_that_join_later_start_their_momentum_then():
    manifold = manifolds.Stiefel()
    values = points(manifold, 2, 4, 2)
    together, alone = separate(values, manifold), separate(values, manifold)
    shared = optim.RiemannianSGD(together, lr=0.1, momentum=0.7, dampening=0.2)
    own = [optim.RiemannianSGD([p], lr=0.1, momentum=0.7, dampening=0.2) for p in alone]
    for step in range(4):
        for parameters in (together, alone):
            set_gradients(parameters, step)
            if step < 2:
                parameters[1].grad = None
        for optimizer in (shared, *own):
            optimizer.step()
    assert error(together, torch.stack(list(alone))) < 1e-13


@every_momentum
@pytest.mark.parametrize("maximize", [False, True])
def test_parameters_without_manifold_get_torchs_sgd_to_the_last_bit(options, maximize):
    ours, theirs = plain(), plain()
    optimizer = optim.RiemannianSGD(ours, lr=0.05, maximize=maximize, **options)
    reference = torch.optim.SGD(theirs, lr=0.05, foreach=True, maximize=maximize, **options)
    for step in range(6):
        set_gradients(ours, step)
        set_gradients(theirs, step)
        optimizer.step()
        reference.step()
    for p, q in zip(ours, theirs, strict=True):
        assert torch.equal(p, q)


def test_weight_decay_is_decoupled():
    decayed, still = plain(), plain()
    optimizer = optim.RiemannianSGD(decayed, lr=0.1, weight_decay=0.5)
    for p in decayed:
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for p, q in zip(decayed, still, strict=True):
        assert torch.allclose(p, 0.95 * q, rtol=1e-15)


def test_weight_decay_leaves_points_alone():
    manifold = manifolds.Stiefel()
    values = points(manifold, 2, 4, 2)
    ours, reference = separate(values, manifold), separate(values, manifold)
    run(optim.RiemannianSGD(ours, lr=0.1, weight_decay=0.9), ours, 3)
    run(optim.RiemannianSGD(reference, lr=0.1), reference, 3)
    assert error(ours, torch.stack(list(reference))) == 0.0


@every_momentum
@pytest.mark.parametrize("maximize", [False, True])
def test_gradients_are_never_written(options, maximize):
    sphere = manifolds.Sphere()
    parameters = [*plain(), *separate(points(sphere, 2, 4), sphere), parameter(points(sphere, 1, 5)[0], sphere)]
    optimizer = optim.RiemannianSGD(parameters, lr=0.1, weight_decay=0.1, maximize=maximize, **options)
    for step in range(3):
        set_gradients(parameters, step)
        before = [p.grad.clone() for p in parameters]
        optimizer.step()
        for p, gradient in zip(parameters, before, strict=True):
            assert torch.equal(p.grad, gradient)


def test_maximising_is_minimising_the_negative():
    manifold = manifolds.Birkhoff()
    values = points(manifold, 3, 4, 4)
    up, down = separate(values, manifold), separate(values, manifold)
    ascent, descent = (
        optim.RiemannianSGD(p, lr=0.1, momentum=0.9, nesterov=True, maximize=m) for p, m in ((up, True), (down, False))
    )
    for step in range(4):
        set_gradients(up, step)
        for p, q in zip(up, down, strict=True):
            q.grad = -p.grad
        ascent.step()
        descent.step()
    assert error(up, torch.stack(list(down))) == 0.0


def test_training_goes_on_from_a_state_dict_as_if_never_stopped():
    manifold = manifolds.Stiefel()
    values = points(manifold, 3, 4, 2)
    through, first = separate(values, manifold), separate(values, manifold)
    run(optim.RiemannianSGD(through, lr=0.1, momentum=0.9), through, 7)
    optimizer = optim.RiemannianSGD(first, lr=0.1, momentum=0.9)
    run(optimizer, first, 3)
    second = separate(torch.stack(list(first)).detach(), manifold)
    resumed = optim.RiemannianSGD(second, lr=0.5)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    run(resumed, second, 4, first=3)
    assert error(through, torch.stack(list(second))) == 0.0


def test_stabilize_honours_its_interval(monkeypatch):
    sphere = geoopt.Sphere()
    x = parameter(points(sphere, 1, 5)[0], sphere)
    calls = []
    monkeypatch.setattr(geoopt.Sphere, "retr", lambda self, x, u: x + u)
    monkeypatch.setattr(geoopt.Sphere, "projx", lambda self, x: calls.append(None) or x / x.norm())
    run(optim.RiemannianSGD([x], lr=0.1, stabilize=2), [x], 5)
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"momentum": -0.1}, "momentum: expected"),
        ({"dampening": 1.5}, "dampening: expected .* at most 1.0, got 1.5"),
        ({"nesterov": True}, "nesterov: expected momentum > 0 and dampening = 0, got momentum=0.0"),
        ({"nesterov": True, "momentum": 0.9, "dampening": 0.1}, "nesterov: expected momentum > 0"),
        ({"lr": -1.0}, "lr: expected"),
    ],
)
def test_values_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        optim.RiemannianSGD(plain(), **options)


@pytest.mark.parametrize("options", [{"foreach": True}, {"fused": True}, {"lr": torch.tensor(0.1)}])
def test_what_cannot_be_honoured_is_refused(options):
    with pytest.raises(TypeError):
        optim.RiemannianSGD(plain(), **options)


@pytest.mark.parametrize("count", [1, 3])
def test_momentum_that_was_off_starts_anew_where_the_point_is(count):
    sphere = manifolds.Sphere()
    many = [parameter(value, sphere) for value in points(sphere, count, 5)]
    optimizer = optim.RiemannianSGD(many, lr=0.3, momentum=0.9)
    run(optimizer, many, 3)
    optimizer.param_groups[0]["momentum"] = 0.0
    run(optimizer, many, 3, first=3)
    assert not any(optimizer.state[p] for p in many)
    fresh = [parameter(p.detach(), sphere) for p in many]
    optimizer.param_groups[0]["momentum"] = 0.9
    run(optimizer, many, 4, first=6)
    run(optim.RiemannianSGD(fresh, lr=0.3, momentum=0.9), fresh, 4, first=6)
    for p, q in zip(many, fresh, strict=True):
        torch.testing.assert_close(p.detach(), q.detach(), rtol=0, atol=1e-14)
        assert abs(p @ optimizer.state[p]["momentum_buffer"]) < 1e-14
