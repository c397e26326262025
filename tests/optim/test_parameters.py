import copy
import functools

import pytest
import torch

from jpmhc import manifolds, optim
from jpmhc.manifolds.peer import geoopt
from jpmhc.optim.parameters import kind, label, manifold_of

ALIKE = [
    (manifolds.Stiefel(), manifolds.Stiefel()),
    (manifolds.Birkhoff(), manifolds.Birkhoff()),
    (geoopt.Sphere(), geoopt.Sphere()),
    (geoopt.CanonicalStiefel(), geoopt.CanonicalStiefel()),
    (geoopt.BirkhoffPolytope(tol=1e-6), geoopt.BirkhoffPolytope(tol=1e-6)),
]
DIFFERENT = [
    (manifolds.Stiefel(), manifolds.Stiefel(metric="euclidean")),
    (manifolds.Stiefel(), manifolds.Grassmann()),
    (geoopt.Sphere(), manifolds.Sphere()),
    (geoopt.CanonicalStiefel(), geoopt.EuclideanStiefel()),
    (geoopt.BirkhoffPolytope(tol=1e-6), geoopt.BirkhoffPolytope(tol=1e-5)),
    (geoopt.Stereographic(-1.0), geoopt.Stereographic(-1.0)),
    (geoopt.Scaled(geoopt.Sphere(), 2.0), geoopt.Scaled(geoopt.Sphere(), 3.0)),
    (geoopt.Sphere(torch.eye(3)[:, :2]), geoopt.Sphere(torch.eye(3)[:, 1:])),
]


@pytest.mark.parametrize(("left", "right"), ALIKE, ids=str)
def test_manifolds_that_compute_the_same_are_of_one_kind(left, right):
    assert kind(left) == kind(right)
    assert hash(kind(left)) == hash(kind(right))


@pytest.mark.parametrize(("left", "right"), DIFFERENT, ids=str)
def test_manifolds_that_may_differ_are_not(left, right):
    assert kind(left) != kind(right)
    assert kind(left) == kind(left)


def test_flat_parameters_have_no_manifold():
    sphere = geoopt.Sphere()
    assert manifold_of(torch.ones(2)) is None
    assert manifold_of(geoopt.ManifoldParameter(torch.ones(2), manifold=geoopt.Euclidean(1))) is None
    assert manifold_of(geoopt.ManifoldParameter(torch.eye(2)[0], manifold=sphere)) is sphere
    assert manifold_of(geoopt.ManifoldTensor(torch.eye(2)[0], manifold=sphere)) is sphere


def test_labels_are_names_or_places():
    groups = [{"params": [0, 1], "param_names": ["a", "b"]}, {"params": [2]}]
    assert label(groups, 0, 1) == "b"
    assert label(groups, 1, 0) == "param_groups[1]['params'][0]"


every_optimiser = pytest.mark.parametrize(
    "make",
    [
        lambda p: optim.RiemannianAdam(p, lr=0.1),
        lambda p: optim.RiemannianSGD(p, lr=0.1, momentum=0.5),
        optim.RiemannianConjugateGradient,
        optim.RiemannianTrustRegion,
    ],
    ids=["adam", "sgd", "conjugate-gradient", "trust-region"],
)


@every_optimiser
def test_a_parameter_that_left_its_manifold_in_place_is_refused_by_name(make):
    layer = torch.nn.Linear(4, 8)
    layer.weight = manifolds.Parameter(manifolds.Stiefel().origin(8, 4), manifolds.Stiefel())
    torch.nn.init.normal_(layer.weight, std=2.0)
    with pytest.raises(ValueError, match=r"weight: off the Stiefel manifold by .* project it with projx"):
        make(layer.named_parameters())
    with torch.no_grad():
        layer.weight.copy_(layer.weight.manifold.projx(layer.weight))
    make(layer.named_parameters())


def test_a_group_with_a_parameter_off_its_manifold_is_not_added():
    sphere = manifolds.Sphere()
    good, bad = (manifolds.Parameter(sphere.origin(3), sphere) for _ in range(2))
    optimizer = optim.RiemannianAdam([good])
    with torch.no_grad():
        bad.fill_(float("nan"))
    with pytest.raises(ValueError, match=r"param_groups\[1\]\['params'\]\[0\]: holds NaN"):
        optimizer.add_param_group({"params": [bad]})
    assert len(optimizer.param_groups) == 1
    theirs = geoopt.ManifoldParameter(torch.ones(3), manifold=geoopt.Sphere())
    with pytest.raises(ValueError, match=r"param_groups\[1\]\['params'\]\[0\]: not lying on Sphere"):
        optimizer.add_param_group({"params": [theirs]})


def stepped(make, parameters, names=False):
    optimizer = make([(f"p{i}", p) for i, p in enumerate(parameters)] if names else parameters)
    for p in parameters:
        p.grad = torch.ones_like(p)
    optimizer.step()
    return optimizer


def weight_and_bias():
    stiefel = manifolds.Stiefel()
    return [manifolds.Parameter(stiefel.origin(4, 2), stiefel), torch.nn.Parameter(torch.zeros(3))]


@pytest.mark.parametrize("other", [torch.optim.AdamW, geoopt.optim.RiemannianAdam])
def test_another_optimisers_state_of_a_parameter_on_a_manifold_is_refused(other):
    theirs = stepped(other, weight_and_bias()).state_dict()
    optimizer = stepped(optim.RiemannianAdam, weight_and_bias())
    before = optimizer.state_dict()["state"]
    with pytest.raises(ValueError, match=r"state of param_groups\[0\]\['params'\]\[0\]: expected .* of shape \("):
        optimizer.load_state_dict(theirs)
    assert optimizer.state_dict()["state"] == before


def test_the_state_of_free_parameters_is_torchs():
    free = [torch.nn.Parameter(torch.zeros(3))]
    optimizer = optim.RiemannianAdam(free)
    optimizer.load_state_dict(stepped(torch.optim.AdamW, [torch.nn.Parameter(torch.zeros(3))]).state_dict())
    assert optimizer.state[free[0]]["step"] == 1


@pytest.mark.parametrize("make", [optim.RiemannianAdam, lambda p: optim.RiemannianSGD(p, momentum=0.9)])
def test_states_in_another_order_are_refused(make):
    saved = stepped(make, weight_and_bias()).state_dict()
    with pytest.raises(ValueError, match=r"of shape \(3,\), got shape \(4, 2\); it is another optimiser's, or of"):
        make(weight_and_bias()[::-1]).load_state_dict(saved)
    same = [torch.nn.Parameter(torch.zeros(3)) for _ in range(2)]
    optimizer = stepped(make, same, names=True)
    saved = optimizer.state_dict()
    saved["param_groups"][0]["param_names"] = ["p1", "p0"]
    with pytest.raises(ValueError, match="state_dict: expected p0 as number 0 of all parameters, got it as number 1"):
        optimizer.load_state_dict(saved)


@pytest.mark.parametrize(
    ("saved", "present", "refused"),
    [
        (["ab", "cd"], ["ac", "bd"], True),
        (["abc"], ["bad"], True),
        (["ab", "cd"], ["ax", "yd"], False),
        (["ab", "cd"], ["wx", "yz"], False),
        (["ab", "cd"], ["ab", "cd"], False),
    ],
    ids=str,
)
@pytest.mark.parametrize("make", [optim.RiemannianAdam, functools.partial(optim.RiemannianSGD, momentum=0.9)])
def test_states_of_names_at_other_places_are_refused(make, saved, present, refused):
    sphere = manifolds.Sphere()
    parameters = {name: manifolds.Parameter(sphere.random(3), sphere) for name in "abcdwxyz"}

    def made(groups):
        return make([{"params": [(name, parameters[name]) for name in group]} for group in groups])

    first, second = made(saved), made(present)
    for parameter in parameters.values():
        parameter.grad = torch.randn(3)
    first.step()
    if not refused:
        second.load_state_dict(first.state_dict())
        return
    with pytest.raises(ValueError, match=r"state_dict: expected [bc] as number"):
        second.load_state_dict(first.state_dict())
    assert not second.state


def match_names(optimizer, saved):
    """Bring a state into the order of the optimiser's names, as torch's documentation of the pre-hooks does."""
    own = optimizer.state_dict()["param_groups"]
    state = {}
    for group, other in zip(own, saved["param_groups"], strict=True):
        place = dict(zip(other["param_names"], other["params"], strict=True))
        names = zip(group["param_names"], group["params"], strict=True)
        state |= {index: saved["state"][place[name]] for name, index in names}
    groups = [
        {**other, "params": group["params"], "param_names": group["param_names"]}
        for group, other in zip(own, saved["param_groups"], strict=True)
    ]
    return {"state": state, "param_groups": groups}


@pytest.mark.parametrize("make", [optim.RiemannianAdam, lambda p: optim.RiemannianSGD(p, momentum=0.9)])
def test_a_pre_hook_may_bring_a_state_into_the_order_of_the_names(make):
    named = dict(zip(("weight", "bias"), weight_and_bias(), strict=True))
    optimizer = make(named.items())
    for p in named.values():
        p.grad = torch.ones_like(p)
    optimizer.step()
    turned = make(reversed(named.items()))
    with pytest.raises(ValueError, match="expected bias as number 0 of all parameters, got it as number 1"):
        turned.load_state_dict(optimizer.state_dict())
    assert not turned.state
    turned.register_load_state_dict_pre_hook(match_names)
    turned.load_state_dict(optimizer.state_dict())
    assert turned.param_groups[0]["param_names"] == ["bias", "weight"]
    torch.testing.assert_close([turned.state[p] for p in named.values()], [optimizer.state[p] for p in named.values()])


def pull(optimizer, steps=20):
    """Step towards where the entries of all parameters are largest with length one; return the parameters."""

    def closure():
        optimizer.zero_grad()
        pieces = [p for group in optimizer.param_groups for p in group["params"]]
        loss = sum((p / p.norm() - 1).square().sum() for p in pieces)
        loss.backward()
        return loss

    for _ in range(steps):
        optimizer.step(closure)
    return [p.detach().clone() for group in optimizer.param_groups for p in group["params"]]


def points(count=2):
    sphere = manifolds.Sphere()
    draw = torch.Generator().manual_seed(3)
    bound = [
        manifolds.Parameter(sphere.random(4, dtype=torch.float64, generator=draw), sphere) for _ in range(count - 1)
    ]
    return [*bound, torch.nn.Parameter(torch.randn(4, dtype=torch.float64, generator=draw))]


@every_optimiser
def test_parameters_put_in_a_groups_place_later_move_as_those_of_a_new_optimiser(make):
    old, late, reference = points(), points(), points()
    optimizer = make(old)
    pull(optimizer, 2)
    gone, states = copy.deepcopy([[p.detach() for p in old], [optimizer.state[p] for p in old]])
    optimizer.param_groups[0]["params"] = late
    for p, q in zip(pull(optimizer), pull(make(reference)), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-12)
    torch.testing.assert_close([[p.detach() for p in old], [optimizer.state[p] for p in old]], [gone, states])
    assert abs(float(late[0].detach().norm()) - 1) < 1e-12


@every_optimiser
def test_parameters_appended_to_a_group_and_taken_out_of_it_move_and_rest(make):
    first, second, free = points(3)
    optimizer = make([("first", first), ("free", free)])
    pull(optimizer, 2)
    optimizer.param_groups[0]["params"].append(second)
    pull(optimizer, 200)
    assert all((p.detach() / p.detach().norm() - 0.5).abs().max() < 1e-3 for p in (first, second, free))
    optimizer.param_groups[0]["params"].remove(first)
    with torch.no_grad():
        for p in (first, second):
            p.neg_()
    away = first.detach().clone()
    pull(optimizer, 2)
    assert torch.equal(first, away)
    assert not torch.equal(second, away)


@every_optimiser
def test_what_an_edited_group_must_not_hold_is_refused_before_anything_moves(make):
    net = torch.nn.Module()
    net.frame, net.bias = points()
    optimizer = make(net.named_parameters())
    before = [p.detach().clone() for p in net.parameters()]
    net._parameters["frame"] = torch.nn.Parameter(net.frame.detach().clone())  # as FSDP2 does
    params = optimizer.param_groups[0]["params"]
    for wrong, error, message in [
        (net.frame, TypeError, r"frame: expected the parameter on a manifold that was Module\.frame, got a Parameter"),
        (geoopt.ManifoldParameter(torch.ones(4), manifold=geoopt.Sphere()), ValueError, "frame: not lying on Sphere"),
    ]:
        params[0] = wrong
        with pytest.raises(error, match=message):
            pull(optimizer, 1)
        assert all(torch.equal(p, q) for p, q in zip(net.parameters(), before, strict=True))
    params.append(params[0])  # more parameters than names
    with pytest.raises(ValueError, match=r"param_groups\[0\]\['params'\]\[0\]: not lying on Sphere"):
        pull(optimizer, 1)


@every_optimiser
def test_parameters_that_have_gone_from_all_groups_are_let_go_of(make):
    optimizer = make(points())
    kept = points()
    optimizer.param_groups[0]["params"] = kept
    pull(optimizer, 1)
    assert set(optimizer._manifolds) == set(kept)
