import copy
import math
import warnings

import pytest
import torch
from torch import nn

from jpmhc import layers, manifolds


def model(mixer, **options):
    torch.manual_seed(0)
    return nn.Sequential(
        layers.HyperConnection(8, nn.Linear(8, 8), streams=4, mixer=mixer, layer_index=0, **options),
        layers.HyperConnection(8, nn.Linear(8, 8), streams=4, mixer=mixer, layer_index=1, **options),
    )


@pytest.mark.parametrize("mixer", ["cayley", "sinkhorn", "free"])
@pytest.mark.parametrize("dynamic", [True, False])
def test_measures_are_their_definitions(mixer, dynamic):
    network = model(mixer, dynamic=dynamic)
    with torch.no_grad():
        for parameter in layers.mixing_parameters(network):
            parameter.add_(0.3 * torch.randn_like(parameter))
    x = torch.randn(5, 4, 8)
    network(x)
    first, second = layers.statistics(network)
    assert (first.name, second.name) == ("0", "1")
    pre, _, matrix = network[0].coefficients(x)
    torch.testing.assert_close(first.matrix, matrix.detach())
    torch.testing.assert_close(first.residual, network[0].mixer.residual(matrix.detach()))
    values = torch.linalg.svdvals(matrix.detach())
    torch.testing.assert_close(first.sigma_max, values[..., 0])
    torch.testing.assert_close(first.sigma_min, values[..., -1])
    eye = torch.eye(4)
    torch.testing.assert_close(
        first.distance_from_identity, torch.linalg.matrix_norm(matrix.detach() - eye) / 2, rtol=1e-4, atol=1e-6
    )
    share = pre.detach()
    torch.testing.assert_close(first.read_entropy, -(share * share.log()).sum(-1) / math.log(4))
    assert not any(t.requires_grad for t in (first.pre, first.post, first.matrix))
    assert "residual" in str(first)


def test_entropy_is_one_where_all_streams_are_alike_and_zero_where_one_is():
    network = model("identity", gate="tanh", dynamic=False)
    network(torch.randn(5, 4, 8))
    first = layers.statistics(network)[0]
    assert first.write_entropy.item() == pytest.approx(1.0)
    assert first.read_entropy.item() == pytest.approx(0.0)


def entropy_of_even_reads(gate, **sizes):
    hc = layers.HyperConnection(8, lambda *inputs: inputs[0], gate=gate, **sizes)
    with torch.no_grad():
        start = hc.gate.preference
        hc.static[: hc.sizes[0]] = 1.0 - start.expand(hc.sizes[0] // start.numel(), *start.shape).flatten()
    hc(torch.randn(5, sizes.get("streams", 4), 8))
    return hc, layers.statistics(hc)[0].read_entropy


@pytest.mark.parametrize("gate", ["softmax", "tanh"])
@pytest.mark.parametrize("sizes", [{"fractions": 2}, {"reads": 2, "fractions": 4}, {"streams": 1, "fractions": 4}])
def test_entropy_of_an_even_read_is_one_with_fractions_too(gate, sizes):
    """A fraction of a read has weights for its own fraction of every stream, and with the tanh gate for all."""
    hc, found = entropy_of_even_reads(gate, **sizes)
    pre = hc.last[0]
    assert (pre != 0).sum(-1).unique().tolist() == [hc.streams * (hc.fractions if gate == "tanh" else 1)]
    torch.testing.assert_close(found, torch.ones_like(found))
    with torch.no_grad():  # towards one of the weights
        hc.static[: hc.sizes[0]] += 30 * torch.eye(hc.gate.weighed)[0].repeat(hc.sizes[0] // hc.gate.weighed)
    hc(torch.randn(5, hc.streams, 8))
    assert hc.gate.weighed == 1 or layers.statistics(hc)[0].read_entropy.max() < 0.6


def test_a_single_pass_shows_the_weights_that_layers_read_with():
    torch.manual_seed(0)
    chain = layers.SinglePass(layers.HyperConnection(8, nn.Linear(8, 8), layer_index=i) for i in range(3))
    with torch.no_grad():
        for parameter in layers.mixing_parameters(chain):
            parameter.add_(0.3 * torch.randn_like(parameter))
    x = torch.randn(5, 4, 8)
    chain(x)
    first, second, _ = layers.statistics(chain)
    assert torch.equal(first.pre, torch.eye(4)[0].expand(5, 4))
    assert first.read_entropy.max() < 1e-6
    torch.testing.assert_close(second.pre, chain.connections[0].coefficients(x)[0].detach())


def test_an_iteration_outside_its_range_is_warned_of():
    network = model("cayley-iterated")
    network(torch.randn(5, 4, 8))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        str(layers.statistics(network))
    with torch.no_grad():
        network[1].static[8:] = 3.0
    network(torch.randn(5, 4, 8))
    with pytest.warns(layers.ConstraintWarning, match="1: CayleyIterated is .* off its set, more than the 1e-03"):
        str(layers.statistics(network))


def test_too_few_sweeps_are_warned_of():
    network = nn.Sequential(layers.HyperConnection(8, nn.Linear(8, 8), mixer=layers.Sinkhorn(4, iterations=2)))
    with torch.no_grad():
        network[0].static[8:] = 3 * torch.randn(16, generator=torch.Generator().manual_seed(0))
    network(torch.randn(5, 4, 8))
    with pytest.warns(layers.ConstraintWarning, match="Sinkhorn"):
        layers.statistics(network).warn()


def test_a_model_that_did_not_run_is_named():
    with pytest.raises(ValueError, match="none of its hyper-connections has run"):
        layers.statistics(model("cayley"))
    with pytest.raises(ValueError, match="Linear has no HyperConnection"):
        layers.statistics(nn.Linear(2, 2))


def test_coefficients_of_the_last_forward_stay_with_the_layer():
    network = model("cayley")
    network(torch.randn(5, 4, 8))
    twin = copy.deepcopy(network)
    assert twin[0].last is None
    assert network[0].last is not None


class Checkpointed(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return torch.utils.checkpoint.checkpoint(self.network, x, use_reentrant=False)


def fused(network):
    return layers.HyperStack(network)


def chained(network):
    return layers.SinglePass(network)


@pytest.mark.parametrize("around", [nn.Sequential, fused, chained])
@pytest.mark.parametrize("options", [{}, {"dynamic": False}])
def test_a_compiled_forward_leaves_nothing_of_an_older_eager_one(around, options):
    torch._dynamo.reset()
    network = model("cayley", **options)
    run = around(network)
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(run, fullgraph=True, backend=backend)
    x = torch.randn(5, 4, 8)
    for _ in range(3):
        run(x)
        assert len(layers.statistics(network)) == 2
        compiled(x)
        with pytest.raises(ValueError, match=r"kept nothing.*without compiling it"):
            layers.statistics(network)
    assert len(graphs) == 1


@pytest.mark.parametrize("around", [nn.Sequential, fused])
def test_a_transformed_forward_leaves_nothing_of_an_older_eager_one(around):
    network = model("cayley")
    run = around(network)
    x = torch.randn(5, 4, 8)
    weights = dict(run.named_parameters())
    for transformed in (
        lambda: torch.func.vmap(run)(torch.stack([x, x])),
        lambda: torch.func.grad(lambda x: run(x).sum())(x),
        lambda: torch.func.grad(lambda w: torch.func.functional_call(run, w, (x,)).sum())(weights),
        lambda: torch.func.jvp(run, (x,), (x,)),
    ):
        run(x)
        transformed()
        with pytest.raises(ValueError, match="kept nothing"):
            layers.statistics(network)


def test_a_static_layer_that_reads_with_transformed_weights_keeps_none_of_them():
    network = nn.Sequential(*(layers.HyperConnection(8, nn.Linear(8, 8), layer_index=i, dynamic=not i) for i in (0, 1)))
    run, x = chained(network), torch.randn(3, 5, 4, 8)
    run(x)
    torch.func.vmap(run)(x)
    assert network[1].last is None


def test_what_cannot_leave_nothing_when_compiled_is_warned_of():
    torch._dynamo.reset()
    network = model("cayley")
    x = torch.randn(5, 4, 8)
    expected = network(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layers.statistics(network)
    compiled = torch.compile(Checkpointed(network), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), expected)
    with pytest.warns(UserWarning, match=r"0 was compiled where.*may be older than the last compiled one"):
        layers.statistics(network)


def test_exporting_is_no_run_and_changes_nothing():
    network = model("cayley")
    x = torch.randn(5, 4, 8)
    network(x)
    before = network[0].last
    for strict in (False, True):
        torch.export.export(network, (x,), strict=strict)
        assert all(torch.equal(now, then) for now, then in zip(network[0].last, before, strict=True))


def test_a_base_point_off_its_manifold_is_not_blamed_on_raw_numbers():
    mixer = layers.Manifold(4, manifolds.SpecialOrthogonal())
    network = nn.Sequential(layers.HyperConnection(8, nn.Linear(8, 8), mixer=mixer))
    with torch.no_grad():
        mixer.base.mul_(1.1)
    network(torch.randn(5, 4, 8))
    with pytest.warns(layers.ConstraintWarning, match=r"0: Manifold is .*its base point has left.*jpmhc\.optim"):
        layers.statistics(network).warn()
