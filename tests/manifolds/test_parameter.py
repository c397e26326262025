import copy
import io
import pickle
import subprocess
import sys

import pytest
import torch
from torch import nn

from jpmhc import manifolds as m
from jpmhc import optim
from jpmhc.manifolds.peer import geoopt


class Net(nn.Module):
    def __init__(self, device=None):
        super().__init__()
        self.inner = nn.Module()
        self.inner.weight = m.Parameter(m.Stiefel().origin(4, 2, device=device), m.Stiefel())
        self.bias = nn.Parameter(torch.zeros(2, device=device))

    def forward(self, x):
        return x @ self.inner.weight + self.bias


def through_bytes(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def assigned(net):
    fresh = Net()
    fresh.load_state_dict(through_bytes(net.state_dict()), assign=True)
    return fresh


def from_meta(net):
    fresh = Net("meta").to_empty(device="cpu")
    fresh.load_state_dict(net.state_dict())
    return fresh


def from_meta_assigned(net):
    fresh = Net("meta")
    fresh.load_state_dict(net.state_dict(), assign=True)
    return fresh


@pytest.mark.parametrize(
    "path",
    [
        copy.deepcopy,
        lambda net: pickle.loads(pickle.dumps(net)),
        lambda net: net.double(),
        lambda net: from_meta(pickle.loads(pickle.dumps(net))),
        assigned,
        from_meta,
        from_meta_assigned,
    ],
)
def test_parameter_keeps_its_manifold(path):
    net = path(Net())
    weight = net.inner.weight
    assert isinstance(weight, m.Parameter)
    assert isinstance(weight, geoopt.ManifoldParameter)
    assert weight.manifold == m.Stiefel()
    assert weight.requires_grad
    assert dict(net.named_parameters())["inner.weight"] is weight
    assert m.lost_parameters(net) == []
    torch.testing.assert_close(weight.detach(), torch.eye(4, 2, dtype=weight.dtype))


@pytest.mark.parametrize(
    "manifold",
    [
        m.Grassmann("qr"),
        m.Product((m.Sphere("exp"), 2), (m.Stiefel("euclidean"), (2, 1))),
        m.Product((m.Sphere("exp"), 2), (m.Euclidean(), 2)),
    ],
    ids=str,
)
def test_a_saved_parameter_loads_with_weights_only(manifold):
    shape = (4,) if manifold.ndim == 1 else (4, 2)
    saved = m.Parameter(manifold.random(*shape, generator=torch.Generator().manual_seed(0)), manifold, False)
    loaded = through_bytes(saved)
    assert isinstance(loaded, m.Parameter)
    assert loaded.manifold == manifold
    assert not loaded.requires_grad
    assert torch.equal(loaded, saved)


def test_a_saved_parameter_on_another_class_of_geoopt_loads_where_that_is_allowed():
    saved = m.Parameter(torch.zeros(3), geoopt.PoincareBall())
    with pytest.raises(pickle.UnpicklingError, match="PoincareBall"):
        through_bytes(saved)
    with torch.serialization.safe_globals([geoopt.PoincareBall]):
        assert isinstance(through_bytes(saved).manifold, geoopt.PoincareBall)


def test_a_saved_parameter_in_flat_space_loads_with_weights_only():
    loaded = through_bytes(m.Parameter(torch.ones(3), m.Euclidean(ndim=1)))
    assert type(loaded.manifold) is m.Euclidean
    assert loaded.manifold.ndim == 1


@pytest.mark.parametrize("path", [copy.deepcopy, lambda v: pickle.loads(pickle.dumps(v)), through_bytes])
def test_a_parameter_in_half_precision_is_read_back_as_it_was(path):
    net = Net().bfloat16()
    net.inner.weight.data.normal_()
    twin = path(net.inner.weight)
    assert isinstance(twin, m.Parameter)
    assert twin.dtype == torch.bfloat16
    assert twin.manifold == m.Stiefel()
    assert torch.equal(twin, net.inner.weight)
    with pytest.raises(TypeError, match=r"expected float32 or float64 on a manifold, got torch.bfloat16"):
        optim.RiemannianAdam([twin])
    with pytest.raises(ValueError, match="off the Stiefel manifold"):
        optim.RiemannianAdam([path(net.float().inner.weight)])


def test_swapping_tensors_keeps_the_manifold(monkeypatch):
    monkeypatch.setattr(torch.__future__, "_swap_module_params_on_conversion", True)
    for assign in (False, True):
        net, state = Net(), through_bytes(Net().state_dict())
        net.double().float().load_state_dict(state, assign=assign)
        assert isinstance(net.inner.weight, m.Parameter)
        assert net.inner.weight.requires_grad
        assert torch.equal(net.inner.weight, state["inner.weight"])


def test_copies_still_watch_their_own_parameters():
    for twin in (copy.deepcopy(Net()), pickle.loads(pickle.dumps(Net()))):
        twin.to("meta").to_empty(device="cpu")
        assert isinstance(twin.inner.weight, m.Parameter)


@pytest.mark.parametrize("assign", [False, True])
def test_loading_values_off_the_manifold_raises(assign):
    state = Net().state_dict()
    state["inner.weight"] = 2 * state["inner.weight"]
    with pytest.raises((ValueError, RuntimeError), match="off the Stiefel manifold by 3"):  # torch wraps the second
        Net().load_state_dict(state, assign=assign)


def test_assigning_a_plain_parameter_restores_the_manifold_unless_it_was_deleted():
    net = Net()
    net.inner.weight = nn.Parameter(torch.eye(4, 2))
    assert isinstance(net.inner.weight, m.Parameter)
    del net.inner.weight
    net.inner.weight = nn.Parameter(torch.ones(3))
    assert type(net.inner.weight) is nn.Parameter


@pytest.mark.parametrize(
    ("data", "error", "words"),
    [
        (torch.ones(4, 2), ValueError, "data: off the Stiefel manifold"),
        (torch.full((4, 2), float("nan")), ValueError, "data: holds NaN"),
        (torch.eye(2, 4), ValueError, "data: expected shape"),
        (torch.eye(4, 2).long(), TypeError, "data: expected float32 or float64"),
        (torch.eye(4, 2).to_sparse(), TypeError, "data: expected a dense tensor, got torch.sparse_coo"),
        (torch.eye(4, 2).bfloat16(), TypeError, "data: expected float32 or float64"),
    ],
)
def test_bad_values_are_refused_when_made(data, error, words):
    with pytest.raises(error, match=words):
        m.Parameter(data, m.Stiefel())


def test_a_manifold_of_geoopt_is_accepted_and_checked():
    euclidean = geoopt.Euclidean(ndim=1)
    assert m.Parameter(torch.ones(3), euclidean).manifold is euclidean
    with pytest.raises(ValueError, match="not lying on Sphere"):
        m.Parameter(torch.ones(3), geoopt.Sphere())


def test_parameters_replaced_behind_the_module_are_found():
    net = Net()
    assert m.unsharded_parameters(net) == {net.inner.weight}
    net.inner._parameters["weight"] = nn.Parameter(torch.eye(4, 2))  # as FSDP2 does
    assert m.lost_parameters(net) == ["inner.weight"]


def flattened(net):
    """Do to the point what FSDP1 does by default: a view of a flat parameter takes its place."""
    point = net.inner.weight
    net.flat = nn.Parameter(torch.cat([point.detach().flatten(), torch.zeros(3)]))
    net.flat._is_flat_param = True
    del net.inner.weight
    net.inner.weight = net.flat[:8].view(4, 2)
    return net


def gathered(net):
    """Do what FSDP1 does to load or save: a plain parameter, a piece of the flat one, is there for a while."""
    view = flattened(net).inner.weight
    del net.inner.weight
    net.inner.weight = nn.Parameter(view.detach())
    assert m.lost_parameters(net) == ["inner.weight"]
    del net.inner.weight
    net.inner.weight = view
    return net


def in_shards(net):
    """Do what FSDP1 does with ``use_orig_params=True``: the point is there, and holds a piece of its numbers."""
    net.inner.weight.data = net.inner.weight.data.flatten()[:5]
    return net


@pytest.mark.parametrize("path", [flattened, gathered, in_shards])
def test_a_point_that_was_flattened_or_cut_is_lost_and_no_optimiser_takes_what_moves_for_it(path, monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    net = path(Net())
    assert m.lost_parameters(net) == ["inner.weight"]
    with pytest.raises(TypeError, match=r"got plain tensors or shards for inner\.weight; .*unsharded_parameters"):
        optim.parameter_groups(net)
    name = "inner.weight" if path is in_shards else "flat"
    with pytest.raises(TypeError, match=rf"{name}: .* was Module\.weight, got a Parameter of shape .* out of sharding"):
        optim.RiemannianSGD(net.named_parameters())


def test_a_tensor_in_the_place_of_a_deleted_point_is_no_lost_one():
    net = Net()
    del net.inner.weight
    net.inner.weight = torch.eye(4, 2)
    assert m.lost_parameters(net) == []
    optim.RiemannianSGD(net.parameters())


def test_a_part_of_a_larger_tensor_may_take_the_place_of_a_point_that_was_deleted():
    net = Net()
    del net.inner.weight
    plain = net.inner.weight = nn.Parameter(torch.eye(8)[:4, :2])
    assert m.lost_parameters(net) == []
    optim.RiemannianSGD(net.parameters())
    assert net.to(torch.float64).inner.weight is plain


def test_a_view_of_a_stack_of_points_may_take_the_place_of_one_that_was_deleted():
    net = Net()
    del net.inner.weight
    net.stack = m.Parameter(m.Stiefel().random(3, 4, 2), m.Stiefel())
    net.inner.weight = net.stack[0]
    assert m.lost_parameters(net) == []
    optim.parameter_groups(net)


# In a process of its own that ends at once: gloo's threads may wait for the interpreter's lock while the reducer's
# destructor, which holds it, waits for them (seen once, torch 2.13).
ALONE = """
import os, sys
import torch
from torch import distributed, nn
from jpmhc import manifolds as m
from tests.manifolds.test_parameter import Net

distributed.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=0, world_size=1)
net = nn.parallel.DistributedDataParallel(Net())
net(torch.ones(1, 4)).sum().backward()
assert isinstance(net.module.inner.weight, m.Parameter)
assert net.module.inner.weight.grad is not None
os._exit(0)
"""


def test_distributed_data_parallel_keeps_the_manifold(tmp_path):
    command = [sys.executable, "-c", ALONE, str(tmp_path / "store")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr


def test_geoopts_optimiser_keeps_our_parameter_on_its_manifold():
    net = Net()
    optimiser = geoopt.optim.RiemannianAdam(net.parameters(), lr=0.1)
    target = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    for _ in range(20):
        optimiser.zero_grad()
        (net.inner.weight * target).sum().backward()
        optimiser.step()
    assert m.Stiefel().point_error(net.inner.weight) < 1e-6
