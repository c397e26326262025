import copy

import pytest
import torch

from jpmhc import layers, manifolds, optim
from jpmhc.manifolds.peer import geoopt


class Frame(torch.nn.Module):
    def __init__(self):
        super().__init__()
        stiefel = manifolds.Stiefel()
        self.frame = geoopt.ManifoldParameter(torch.eye(4, 2), manifold=stiefel)
        self.flat = geoopt.ManifoldParameter(torch.ones(3), manifold=geoopt.Euclidean(1))
        self.bias = torch.nn.Parameter(torch.ones(2))


def model():
    shared = torch.nn.Linear(8, 8)
    connections = [layers.HyperConnection(8, shared, mixer=mixer) for mixer in ("cayley", "sinkhorn")]
    return torch.nn.Sequential(*connections, Frame())


def test_mixers_and_points_are_not_decayed_and_everything_else_is():
    groups = optim.parameter_groups(model(), lr=0.3, weight_decay=0.1)
    assert [(group["lr"], group["weight_decay"]) for group in groups] == [(0.3, 0.1), (0.3, 0.0)]
    assert groups[0]["param_names"] == ["0.branch.weight", "0.branch.bias", "2.flat", "2.bias"]
    mixing = [f"{i}.{name}" for i in range(2) for name in ("static", "projection", "scale")]
    assert groups[1]["param_names"] == [*mixing, "2.frame"]


def test_every_parameter_is_in_one_group_once():
    net = model()
    groups = optim.parameter_groups(net)
    named = dict(net.named_parameters())
    pairs = [pair for group in groups for pair in zip(group["param_names"], group["params"], strict=True)]
    assert len(pairs) == len(named)
    assert all(named[name] is parameter for name, parameter in pairs)


@pytest.mark.parametrize(
    "make", [optim.RiemannianAdam, optim.RiemannianSGD, torch.optim.AdamW, geoopt.optim.RiemannianAdam]
)
def test_the_groups_suit_any_optimiser(make):
    net = model()
    optimizer = make(optim.parameter_groups(net, lr=1e-2, weight_decay=0.1))
    x = layers.expand_streams(torch.randn(2, 8, generator=torch.Generator().manual_seed(0)), 4)
    loss = net[1](net[0](x)).square().sum() + net[2].frame.sum() + net[2].bias.sum() + net[2].flat.sum()
    loss.backward()
    before = net[0].static.detach().clone()
    optimizer.step()
    assert not torch.equal(net[0].static, before)


def test_options_not_given_are_the_optimisers():
    groups = optim.RiemannianAdam(optim.parameter_groups(model()), lr=0.5, weight_decay=0.25).param_groups
    assert [(group["lr"], group["weight_decay"]) for group in groups] == [(0.5, 0.25), (0.5, 0.0)]


def test_a_model_without_mixers_leaves_the_second_group_empty():
    net = torch.nn.Linear(3, 3)
    groups = optim.parameter_groups(net, weight_decay=0.1)
    assert [len(group["params"]) for group in groups] == [2, 0]
    optim.RiemannianAdam(groups).step()


def test_errors_of_the_optimiser_name_the_parameter():
    net = model()
    optimizer = optim.RiemannianAdam(optim.parameter_groups(net))
    net[2].frame.grad = torch.full((4, 2), float("nan"))
    with pytest.raises(ValueError, match=r"2\.frame: expected a finite gradient"):
        optimizer.step()


def test_a_parameter_that_lost_its_manifold_in_silence_is_named():
    net = model()
    net[2].frame = manifolds.Parameter(torch.eye(4, 2), manifolds.Stiefel())
    net[2]._parameters["frame"] = torch.nn.Parameter(torch.eye(4, 2))
    with pytest.raises(TypeError, match=r"model: expected parameters that kept their manifold, .* for 2\.frame;"):
        optim.parameter_groups(net)


@pytest.mark.parametrize("path", [lambda net: net, copy.deepcopy], ids=["itself", "copied"])
@pytest.mark.parametrize("make", [optim.RiemannianAdam, optim.RiemannianTrustRegion])
def test_no_optimiser_takes_what_stands_in_the_place_of_a_lost_one(make, path):
    net = torch.nn.Module()
    net.frame = manifolds.Parameter(torch.eye(4, 2), manifolds.Stiefel())
    net = path(net)
    make(net.parameters())
    net._parameters["frame"] = torch.nn.Parameter(torch.eye(4, 2))  # as FSDP2 does
    with pytest.raises(TypeError, match=r"frame: expected the parameter on a manifold that was Module\.frame"):
        make(net.named_parameters())


def test_anything_but_a_module_is_refused():
    with pytest.raises(TypeError, match=r"model: expected a torch.nn.Module, got list"):
        optim.parameter_groups([torch.nn.Parameter(torch.ones(1))])
