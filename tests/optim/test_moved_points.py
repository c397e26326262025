"""A point that somebody moved off its manifold between two steps is found at the next."""

import pytest
import torch

from jpmhc import manifolds, optim
from tests.optim.stacks import points, separate

SO = manifolds.SpecialOrthogonal()
MAKE = {
    "adam": optim.RiemannianAdam,
    "sgd": lambda p: optim.RiemannianSGD(p, lr=1e-3, momentum=0.9),
    "conjugate gradient": optim.RiemannianConjugateGradient,
    "trust region": optim.RiemannianTrustRegion,
}
MOVES = {
    "written": lambda p: p.mul_(2.0),
    "initialised": torch.nn.init.normal_,
    "emptied": lambda p: p.fill_(torch.nan),
}


def stepped(optimizer, parameters, count=1):
    for _ in range(count):
        targets = [torch.arange(9.0).view(3, 3).to(p) for p in parameters]

        def closure(targets=targets):
            optimizer.zero_grad()
            loss = sum((p * t).sum() for p, t in zip(parameters, targets, strict=True))
            loss.backward()
            return loss

        optimizer.step(closure)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("steps_before", [0, 2])
@pytest.mark.parametrize("move", MOVES.values(), ids=MOVES)
@pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)
def test_a_point_moved_off_its_manifold_is_refused_by_name(make, move, steps_before, count):
    parameters = separate(points(SO, count, 3, 3), SO)
    optimizer = make([(f"p{i}", p) for i, p in enumerate(parameters)])
    stepped(optimizer, parameters, steps_before)
    with torch.no_grad():
        move(parameters[-1])
    before = [p.detach().clone() for p in parameters]
    with pytest.raises(ValueError, match=f"p{count - 1}: (off the SpecialOrthogonal manifold|holds NaN)"):
        stepped(optimizer, parameters)
    assert all(torch.equal(p, b) for p, b in zip(parameters[:-1], before[:-1], strict=True))
    with torch.no_grad():
        parameters[-1].copy_(SO.random(3, 3, dtype=torch.float64))
    stepped(optimizer, parameters, 2)
    assert all(SO.check_point_on_manifold(p) for p in parameters)


@pytest.mark.parametrize("options", [{"check": "none"}, {"capturable": True}], ids=str)
def test_nothing_is_looked_at_where_gradients_are_not(options):
    parameters = separate(points(SO, 2, 3, 3), SO)
    optimizer = optim.RiemannianSGD(parameters, lr=1e-3, **options)
    with torch.no_grad():
        parameters[0].mul_(2.0)
    before = [p.detach().clone() for p in parameters]
    stepped(optimizer, parameters)
    assert not any(torch.equal(p, b) for p, b in zip(parameters, before, strict=True))
    assert [SO.check_point_on_manifold(p) for p in parameters] == [False, True]


def test_values_are_looked_at_only_where_somebody_else_wrote(monkeypatch):
    parameters = separate(points(SO, 3, 3, 3), SO)
    optimizer = optim.RiemannianAdam(parameters)
    stepped(optimizer, parameters)
    looks = []
    monkeypatch.setattr(SO, "check_point_on_manifold", lambda p: looks.append(p) or True, raising=False)
    stepped(optimizer, parameters, 3)
    assert not looks
    parameters[0].data.copy_(SO.random(3, 3, dtype=torch.float64))
    stepped(optimizer, parameters, 3)
    assert len(looks) == 1
