"""The two laws of the start: function-preserving, and not a saddle."""

import pytest
import torch
from torch import nn

from jpmhc import layers

WIDTH, STREAMS, DEPTH, BATCH = 6, 4, 3, 16
MIXERS = [str(info) for info in layers.mixers()]
GATES = ["softmax", "sigmoid", "tanh"]
KINDS = [pytest.param(kind, id="+".join(kind)) for kind in (("static",), ("dynamic",), ("static", "dynamic"))]
# Every row and every column of such a mixer sums to one, so the first and the last one act on nothing that can move.
FIXES_ONES = {
    "cayley-mean",
    "identity",
    "kronecker",
    "orthostochastic",
    "permutations",
    "sinkhorn",
    "spectral",
}


class Branch(nn.Module):
    def __init__(self, generator):
        super().__init__()
        self.up = nn.Parameter(torch.randn(12, WIDTH, dtype=torch.float64, generator=generator) / WIDTH**0.5)
        self.down = nn.Parameter(torch.randn(WIDTH, 12, dtype=torch.float64, generator=generator) / 12**0.5)

    def forward(self, x):
        return torch.tanh(x @ self.up.mT) @ self.down.mT


class Network(nn.Module):
    def __init__(self, wrap):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.layers = nn.ModuleList(wrap(Branch(generator), index) for index in range(DEPTH))
        self.plain = isinstance(self.layers[0], layers.Residual)

    def streams(self, x):
        x = x if self.plain else layers.expand_streams(x, STREAMS)
        for layer in self.layers:
            x = layer(x)
        return x

    def forward(self, x):
        x = self.streams(x)
        return x if self.plain else layers.reduce_streams(x)


def network(mixer, kind, gate="softmax"):
    return Network(
        lambda branch, index: layers.HyperConnection(
            WIDTH,
            branch,
            streams=STREAMS,
            mixer=mixer,
            gate=gate,
            static="static" in kind,
            dynamic="dynamic" in kind,
            layer_index=index,
            dtype=torch.float64,
        )
    )


def task():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(BATCH, WIDTH, dtype=torch.float64, generator=generator)
    return x, torch.sin(3 * x.roll(1, -1))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("mixer", MIXERS)
def test_network_starts_as_the_plain_residual_network(mixer, gate, kind):
    x, target = task()
    plain, wrapped = Network(lambda branch, index: layers.Residual(branch)), network(mixer, kind, gate)
    outputs = [model(x) for model in (plain, wrapped)]
    torch.testing.assert_close(outputs[1], outputs[0], rtol=0, atol=1e-6)
    for output in outputs:
        (output - target).square().sum().backward()
    for reference, layer in zip(plain.layers, wrapped.layers, strict=True):
        for expected, actual in zip(reference.branch.parameters(), layer.branch.parameters(), strict=True):
            torch.testing.assert_close(actual.grad, expected.grad, rtol=0, atol=1e-6)


def must_be_still(mixer, gate, index, part):
    """Equal streams hide a first read of sum one, the mean hides a last write of sum n, both hide what fixes ones."""
    if part == "mixer":
        return mixer in ("identity", "manifold") or (mixer in FIXES_ONES and index in (0, DEPTH - 1))
    return gate == "softmax" and (part, index) in {("read", 0), ("write", DEPTH - 1)}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("mixer", MIXERS)
def test_start_is_not_a_saddle(mixer, gate, kind):
    x, target = task()
    model = network(mixer, kind, gate)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    largest = {}
    for _ in range(40):
        optimiser.zero_grad()
        (model(x) - target).square().mean().backward()
        for index, layer in enumerate(model.layers):
            for name in ("static", "projection", "scale"):
                parameter = getattr(layer, name)
                if not isinstance(parameter, nn.Parameter):
                    continue
                sizes = [1, 1, 1] if name == "scale" else layer.sizes
                for part, gradient in zip(("read", "write", "mixer"), parameter.grad.split(sizes), strict=True):
                    if gradient.numel():
                        key = index, name, part
                        largest[key] = max(largest.get(key, 0.0), gradient.abs().max().item())
        optimiser.step()
    streams = model.streams(x)
    spread = (streams - streams.mean(-2, keepdim=True)).norm() / streams.norm()
    assert spread > 1e-3
    for (index, name, part), value in largest.items():
        if must_be_still(mixer, gate, index, part):
            assert value < 1e-12, (index, name, part)
        else:
            assert value > 1e-8, (index, name, part)


@pytest.mark.parametrize("mixer", ["cayley", "cayley-iterated", "sinkhorn", "free"])
def test_published_layers_start_as_the_plain_network_and_part(mixer):
    x, target = task()
    plain = Network(lambda branch, index: layers.Residual(branch))
    model = Network(
        lambda branch, index: layers.HyperConnection(
            WIDTH, branch, mixer=mixer, projection="published", layer_index=index, dtype=torch.float64
        )
    )
    torch.testing.assert_close(model(x), plain(x), rtol=0, atol=1e-6)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(40):
        optimiser.zero_grad()
        (model(x) - target).square().mean().backward()
        optimiser.step()
    streams = model.streams(x)
    assert (streams - streams.mean(-2, keepdim=True)).norm() / streams.norm() > 1e-3


@pytest.mark.parametrize("mixer", MIXERS)
def test_rows_of_the_start_sum_to_one(mixer):
    info = next(i for i in layers.mixers() if i.name == mixer)
    for streams in filter(info.supports, range(1, 7)):
        chart = layers.make_mixer(mixer, streams)
        matrix = chart(chart.start())
        # Base points are parameters, and those are float32 unless asked otherwise.
        atol = 1e-14 if not list(chart.parameters()) else 1e-6
        torch.testing.assert_close(matrix.sum(-1), torch.ones(streams, dtype=torch.float64), rtol=0, atol=atol)


def test_read_favours_another_stream_in_each_layer():
    favourites = []
    for index in range(6):
        layer = layers.HyperConnection(WIDTH, streams=3, layer_index=index)
        pre, post, _ = layer.coefficients(torch.randn(5, 3, WIDTH))
        torch.testing.assert_close(pre.sum(-1), torch.ones(5))
        torch.testing.assert_close(post, torch.ones(5, 3))
        favourites.append(pre[0].argmax().item())
    assert favourites == [0, 1, 2, 0, 1, 2]


def test_streams_of_a_uniform_read_never_part():
    """The reason for the uneven read: with equal weights everywhere the streams stay equal, whatever the mixer."""
    x, target = task()
    model = network("cayley", ("static", "dynamic"))
    for layer in model.layers:
        layer.gate.preference.zero_()
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(20):
        optimiser.zero_grad()
        (model(x) - target).square().mean().backward()
        optimiser.step()
    streams = model.streams(x)
    assert (streams - streams.mean(-2, keepdim=True)).abs().max() < 1e-10
