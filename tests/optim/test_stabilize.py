"""Projecting points and momenta back, every few steps or when it is called."""

import pytest
import torch

from jpmhc import manifolds, optim
from jpmhc.manifolds.peer import geoopt
from tests.optim.stacks import parameter, points, run, separate


def test_stabilize_honours_its_interval_and_can_be_called(monkeypatch):
    manifold = geoopt.Sphere()
    x = parameter(points(manifold, 1, 5)[0], manifold)
    calls = []
    monkeypatch.setattr(geoopt.Sphere, "projx", lambda self, x: calls.append(None) or x / x.norm())
    monkeypatch.setattr(geoopt.Sphere, "retr_transp", lambda self, x, u, v: (x + u, v))
    optimizer = optim.RiemannianAdam([x], lr=0.1, stabilize=3)
    run(optimizer, [x], 7)
    assert len(calls) == 2
    assert abs(x.norm() - 1) > 1e-4
    optimizer.stabilize()
    assert abs(x.norm() - 1) < 1e-12
    assert abs(x @ optimizer.state[x]["exp_avg"]) < 1e-12


@pytest.mark.parametrize("make", [optim.RiemannianAdam, lambda p: optim.RiemannianSGD(p, momentum=0.9)])
def test_stabilize_reaches_parameters_without_a_gradient_and_every_momentum(make):
    sphere = manifolds.Sphere()
    many = separate(points(sphere, 3, 5), sphere)
    optimizer = make(many)
    run(optimizer, many[:2], 2)
    before = [{k: v.clone() for k, v in optimizer.state[p].items()} for p in many[:2]]
    optimizer.zero_grad()
    with torch.no_grad():
        for p in many:
            p.mul_(2).add_(0.1)
    optimizer.stabilize()
    for p in many:
        assert sphere.point_error(p) < 1e-12
    for p, old in zip(many[:2], before, strict=True):
        momentum = optimizer.state[p][optimizer._momentum]
        torch.testing.assert_close(momentum, sphere.proju(p.detach(), old[optimizer._momentum]))
    assert many[2] not in optimizer.state
    run(optimizer, many, 1, first=2)
    assert optimizer._momentum in optimizer.state[many[2]]


def test_the_interval_reaches_parameters_that_have_a_gradient_alone(monkeypatch):
    sphere = geoopt.Sphere()
    many = separate(points(sphere, 2, 5), sphere)
    monkeypatch.setattr(geoopt.Sphere, "retr", lambda self, x, u: x + u)
    optimizer = optim.RiemannianSGD(many, lr=0.1, stabilize=1)
    with torch.no_grad():
        many[1].mul_(2)
    run(optimizer, many[:1], 1)
    assert abs(many[0].norm() - 1) < 1e-12
    assert abs(many[1].norm() - 2) < 1e-12
