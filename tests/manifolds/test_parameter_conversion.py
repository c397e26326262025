"""Conversions of a module, in every way in which torch can put the converted values in their place."""

import copy

import geoopt
import pytest
import torch
from torch import nn

from jpmhc import layers, optim
from jpmhc import manifolds as m


def point():
    return m.Parameter(m.Stiefel().origin(4, 2), m.Stiefel())


def weight():
    return nn.Parameter(torch.eye(4, 2))


def holding(parameter):
    module = nn.Module()
    module.weight = parameter
    return module


@pytest.fixture(params=["set_data", "swap", "overwrite"])
def mode(request, monkeypatch):
    monkeypatch.setattr(torch.__future__, "_swap_module_params_on_conversion", request.param == "swap")
    monkeypatch.setattr(torch.__future__, "_overwrite_module_params_on_conversion", request.param == "overwrite")
    return request.param


NO_CHANGE = {
    "float": lambda net: net.float(),
    "to_none": lambda net: net.to(None),
    "to_cpu": lambda net: net.to("cpu"),
    "share_memory": lambda net: net.share_memory(),
}
CHANGES = {
    "double": lambda net: net.double(),
    "to_meta": lambda net: net.to("meta"),
    "to_empty": lambda net: net.to_empty(device="cpu"),
    "from_meta": lambda net: net.to("meta").to_empty(device="cpu"),
}


@pytest.mark.parametrize("convert", [*NO_CHANGE.values(), *CHANGES.values()], ids=[*NO_CHANGE, *CHANGES])
def test_a_point_keeps_its_identity_where_a_plain_parameter_does(convert, mode):
    same = []
    for make in (weight, point):
        given = make()
        net = convert(holding(given))
        same.append(net.weight is given)
    assert same[0] == same[1]
    assert type(net.weight) is m.Parameter
    assert net.weight.manifold == m.Stiefel()
    assert net.weight.requires_grad
    assert net.weight.is_leaf
    assert m.lost_parameters(net) == []


@pytest.mark.parametrize("convert", NO_CHANGE.values(), ids=NO_CHANGE)
def test_a_conversion_to_what_it_is_keeps_values_gradient_and_storage(convert, mode):
    net = holding(point())
    net.weight.grad = torch.ones(4, 2)
    storage = net.weight.data_ptr()
    convert(net)
    assert torch.equal(net.weight.detach(), torch.eye(4, 2))
    assert torch.equal(net.weight.grad, torch.ones(4, 2))
    assert net.weight.data_ptr() == storage or convert is NO_CHANGE["share_memory"]


def test_an_optimiser_goes_on_moving_what_was_converted(mode):
    net = holding(point())
    optimiser = optim.RiemannianSGD(net.parameters(), lr=0.1)
    target = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    for dtype in (torch.float32, torch.float64):
        net.to(dtype)
        if mode == "overwrite":  # as everywhere in torch, an optimiser is made after it
            optimiser = optim.RiemannianSGD(net.parameters(), lr=0.1)
        before = net.weight.detach().clone()
        optimiser.zero_grad()
        (net.weight * target.to(dtype)).sum().backward()
        optimiser.step()
        assert optimiser.param_groups[0]["params"][0] is net.weight
        assert (net.weight.detach() - before).abs().max() > 1e-3
        assert m.Stiefel().point_error(net.weight.detach()) < 1e-6


def test_a_gradient_follows_its_point(mode):
    net = holding(point())
    net.weight.grad = torch.ones(4, 2)
    net.double()
    assert torch.equal(net.weight.grad, torch.ones(4, 2, dtype=torch.float64))


def test_a_frozen_point_stays_frozen(mode):
    net = holding(point().requires_grad_(False)).double()
    assert isinstance(net.weight, m.Parameter)
    assert not net.weight.requires_grad


def test_modules_that_share_a_point_share_it_after_a_conversion_as_with_a_plain_one(mode):
    shared = []
    for make in (weight, point):
        parameter = make()
        pair = nn.ModuleList([holding(parameter), holding(parameter)])
        pair.again = parameter
        pair.double().double()
        shared.append([module.weight is pair.again for module in pair])
    assert shared[0] == shared[1]
    assert all(isinstance(parameter, m.Parameter) for parameter in pair.parameters())


def test_a_conversion_that_fails_half_way_loses_no_point(mode):
    net = holding(point())
    net.other = nn.Parameter(torch.zeros(3))

    def convert(tensor):
        if tensor.shape == (3,):
            raise RuntimeError("out of memory")
        return tensor.double()

    with pytest.raises(RuntimeError, match="out of memory"):
        net._apply(convert)
    assert isinstance(net.weight, m.Parameter)
    assert m.lost_parameters(net) == []


def test_layers_with_a_base_point_are_made_cast_and_trained(mode):
    mixer = layers.Manifold(4, m.SpecialOrthogonal(), tangent=False)
    layer = layers.HyperConnection(8, nn.Linear(8, 8), streams=4, mixer=mixer)
    twin = copy.deepcopy(layer).bfloat16()
    assert isinstance(twin.mixer.base, m.Parameter)
    assert twin.mixer.base.dtype == torch.float32
    layer.double()
    optimiser = optim.RiemannianAdam(optim.parameter_groups(layer), lr=0.1)
    before = layer.mixer.base.detach().clone()
    layer(torch.randn(2, 3, 4, 8, dtype=torch.float64)).square().sum().backward()
    optimiser.step()
    assert (layer.mixer.base.detach() - before).abs().max() > 1e-3
    layer.double()


def test_a_subclass_sees_the_point_as_soon_as_torch_has_converted_it(mode):
    class Watching(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = point()

        def _apply(self, fn, recurse=True):
            super()._apply(fn, recurse)
            self.seen = type(self.weight)
            return self

    assert Watching().double().seen is m.Parameter


def test_what_a_conversion_finds_lost_is_left_to_be_found():
    net = holding(point())
    stand_in = nn.Parameter(torch.eye(4, 2).as_subclass(Shard))
    net._parameters["weight"] = stand_in
    net.double()
    assert net.weight is stand_in
    assert type(net.weight) is Shard
    assert m.lost_parameters(net) == ["weight"]


def test_a_plain_parameter_put_behind_the_module_is_a_point_after_a_conversion():
    net = holding(point())
    net._parameters["weight"] = plain = weight()
    net.double()
    assert net.weight is plain
    assert isinstance(plain, m.Parameter)


class Shard(torch.Tensor):
    """Has a place among parameters by a flag and not by its class, as FSDP2's shards."""


def test_modules_without_a_point_convert_as_they_did(mode):
    net = nn.Sequential(nn.Linear(2, 2), nn.LSTM(2, 2)).double()
    assert all(type(parameter) is nn.Parameter for parameter in net.parameters())
    assert not any("keeper" in name for module in net.modules() for name in vars(module))


def test_a_buffer_of_points_stays_one_where_nothing_is_converted():
    module = torch.nn.Module()
    module.point = m.Parameter(m.Stiefel().origin(4, 2), m.Stiefel())
    module.register_buffer("others", geoopt.ManifoldTensor(torch.eye(3), manifold=geoopt.EuclideanStiefel()))
    module.float()
    assert isinstance(module.others, geoopt.ManifoldTensor)
    assert isinstance(module.point, m.Parameter)
