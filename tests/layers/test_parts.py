"""Several reads, fractions, uniform gates, carried reads and learned ends, against their equations and laws."""

import itertools

import pytest
import torch
from torch import nn

from jpmhc import layers

N, D = 3, 8


def shaken(hc, size=0.3):
    """Away from the start, so that nothing is trivially right."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in layers.mixing_parameters(hc):
            parameter.add_(size * torch.randn_like(parameter))
    return hc


def double(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- several reads ------------------------------------------------------------------------------------


@pytest.mark.parametrize("gate", ["softmax", "sigmoid", "tanh"])
def test_every_input_of_a_branch_has_a_read_of_its_own(gate):
    branch = nn.Bilinear(D, D, D, dtype=torch.float64)
    hc = shaken(layers.HyperConnection(D, branch, streams=N, reads=2, gate=gate, dtype=torch.float64))
    x = double(5, N, D)
    pre, post, matrix = hc.coefficients(x)
    assert pre.shape == (5, 2, N)
    first, second = (torch.einsum("ti,tid->td", pre[:, r], x) for r in range(2))
    assert (first - second).abs().max() > 1e-2
    expected = matrix @ x + post.unsqueeze(-1) * branch(first, second).unsqueeze(-2)
    torch.testing.assert_close(hc(x), expected)
    inputs, write = hc.read(x)
    torch.testing.assert_close(inputs[1], second)
    torch.testing.assert_close(write(branch(*inputs)), expected)


def test_one_of_several_reads_is_the_read_of_a_layer_with_one():
    one = shaken(layers.HyperConnection(D, streams=N, dtype=torch.float64))
    two = layers.HyperConnection(D, streams=N, reads=2, dtype=torch.float64)
    with torch.no_grad():
        two.scale.copy_(one.scale)
        for name in ("static", "projection"):
            ours, theirs = getattr(two, name), getattr(one, name)
            ours.copy_(torch.cat([theirs[:N], theirs]))
    x = double(5, N, D)
    pre, post, matrix = one.coefficients(x)
    for actual, expected in zip(two.coefficients(x), (torch.stack([pre, pre], 1), post, matrix), strict=True):
        torch.testing.assert_close(actual, expected)


def test_values_of_the_first_layer_reach_later_ones():
    """Value residuals: a branch returns its values beside its result and takes those of the first as an argument."""

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.qk, self.v = nn.Linear(D, 2 * D), nn.Linear(D, D)
            self.share = nn.Parameter(torch.tensor([0.5]))

        def forward(self, u, first=None):
            q, k = self.qk(u).chunk(2, -1)
            own = self.v(u)
            v = own if first is None else (1 - self.share) * own + self.share * first
            return nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True), own

    torch.manual_seed(0)
    first, second = (layers.HyperConnection(D, Attention(), streams=N, layer_index=i) for i in range(2))
    x = layers.expand_streams(torch.randn(2, 5, D), N)
    x, values = first(x)
    assert values.shape == (2, 5, D)
    out, _ = second(x, first=values)
    u, write = second.read(x)
    y, _ = second.branch(u, values)
    assert torch.equal(out, write(y))
    out.sum().backward()
    assert first.branch.v.weight.grad.abs().max() > 0
    assert second.branch.share.grad.abs() > 0


FORMS = [{}, {"norm": "layer"}, {"fractions": 2}, {"reads": 2}, {"dynamic": False}]


@pytest.mark.parametrize("options", FORMS, ids=str)
def test_a_branch_may_change_its_input_in_place(options):
    """As pre-activation blocks do, whose first layer is ``ReLU(inplace=True)``."""
    linear = nn.Linear(D, D, dtype=torch.float64)
    branches = {
        True: lambda u, v=0.0: linear(u.relu_() + v),
        False: lambda u, v=0.0: linear(u.relu() + v),
    }
    found = {}
    for in_place, branch in branches.items():
        hc = shaken(layers.HyperConnection(D, branch, streams=N, dtype=torch.float64, **options))
        x = double(5, N, D).requires_grad_()
        out = hc(x)
        found[in_place] = out, torch.autograd.grad(out.sin().sum(), [x, linear.weight, *hc.parameters()])
    torch.testing.assert_close(found[True], found[False], rtol=0, atol=0)


# --- fractions ----------------------------------------------------------------------------------------


def test_fractions_are_frac_connections():
    """One vector cut into m parts: reads Y, mixer A and write B of arXiv 2503.14125, written part by part."""
    m, width = 4, D // 4
    hc = shaken(
        layers.HyperConnection(
            D, nn.Linear(D, D).double(), streams=1, fractions=m, mixer="free", gate="tanh", dtype=torch.float64
        )
    )
    h = double(5, 1, D)
    y_read, b, a = hc.coefficients(h)
    assert y_read.shape == (5, m, m)
    for t in range(5):
        parts = h[t, 0].view(m, width)
        inputs = [sum(y_read[t, f, g] * parts[g] for g in range(m)) for f in range(m)]
        result = hc.branch(torch.cat(inputs)).view(m, width)
        expected = torch.cat([sum(a[t, f, g] * parts[g] for g in range(m)) + b[t, f] * result[f] for f in range(m)])
        torch.testing.assert_close(hc(h)[t, 0], expected)


@pytest.mark.parametrize(("gate", "streams"), [*itertools.product(["softmax", "sigmoid", "tanh"], [1, 3])])
def test_fractions_start_as_the_plain_network(gate, streams):
    branch = nn.Linear(D, D).double()
    x = double(5, D)
    hc = layers.HyperConnection(D, branch, streams=streams, fractions=2, gate=gate, dtype=torch.float64)
    out = hc(layers.expand_streams(x, streams))
    torch.testing.assert_close(layers.reduce_streams(out), x + branch(x))
    hc = shaken(hc)
    u, write = hc.read(out)
    assert u.shape == x.shape
    assert torch.equal(write(branch(u)), hc(out))
    if gate != "tanh":  # these never turn negative or to another part
        pre = hc.coefficients(out)[0].view(5, 2, streams, 2)
        assert pre[:, 0, :, 1].abs().max() == 0
        assert pre[:, 0, :, 0].min() > 0


def test_fractions_learn_to_mix_parts_of_a_vector():
    torch.manual_seed(0)
    model = nn.Sequential(
        *(layers.HyperConnection(D, nn.Linear(D, D), streams=1, fractions=4, layer_index=i) for i in range(2))
    )
    x, target = torch.randn(2, 16, 1, D)
    optimiser = torch.optim.Adam(layers.mixing_parameters(model), lr=1e-2)
    losses = []
    for _ in range(60):
        optimiser.zero_grad()
        loss = (model(x) - target).square().mean()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.95 * losses[0]
    assert (model[0].coefficients(x)[2] - torch.eye(4)).abs().max() > 0.05


def test_fractions_that_cannot_start_as_the_plain_network_are_refused():
    for mixer in ("sinkhorn", "grassmann", "permutations", "spectral"):
        with pytest.raises(ValueError, match="fractions: expected a mixer that starts at I"):
            layers.HyperConnection(D, streams=2, fractions=2, mixer=mixer)
    with torch.device("meta"), pytest.raises(ValueError, match="fractions: expected a mixer that starts at I"):
        layers.HyperConnection(D, streams=2, fractions=2, mixer="spectral")
    for mixer in ("cayley", "manifold", "identity"):
        with torch.device("meta"):
            hc = layers.HyperConnection(D, streams=1, fractions=2, mixer=mixer)
        assert hc.static.is_meta
    with pytest.raises(ValueError, match="fractions: expected a divisor of dim=8, got 3"):
        layers.HyperConnection(D, fractions=3)
    with pytest.raises(ValueError, match="published has one read of whole streams"):
        layers.HyperConnection(D, fractions=2, projection="published")
    with pytest.raises(ValueError, match="shared has no form"):
        layers.HyperConnection(D, fractions=2, projection="shared", mixer="free")


# --- the projection that all streams share ----------------------------------------------------------------


@pytest.mark.parametrize("gate", ["softmax", "tanh"])
@pytest.mark.parametrize("norm", ["rms", "layer", "streams", "streams-layer", None])
def test_a_shared_projection_is_a_reduced_one_of_blocks(gate, norm):
    options = {"streams": N, "mixer": "free", "gate": gate, "norm": norm, "dtype": torch.float64}
    shared = shaken(layers.HyperConnection(D, projection="shared", **options))
    assert shared.projection.shape == (N + 2, D)
    reduced = layers.HyperConnection(D, **options)
    with torch.no_grad():
        reduced.static.copy_(shared.static)
        reduced.scale.copy_(shared.scale)
        blocks = torch.zeros(N * N + 2 * N, N, D, dtype=torch.float64)
        for i in range(N):  # stream i alone makes its read, its write and its column of the mixer
            blocks[i, i], blocks[N + i, i] = shared.projection[0], shared.projection[1]
            for j in range(N):
                blocks[2 * N + j * N + i, i] = shared.projection[2 + j]
        reduced.projection.copy_(blocks.flatten(1))
    x = double(5, N, D)
    for actual, expected in zip(shared.coefficients(x), reduced.coefficients(x), strict=True):
        torch.testing.assert_close(actual, expected)


# --- the uniform gate and the ends ----------------------------------------------------------------------


def test_a_uniform_gate_without_an_embedding_is_refused():
    with pytest.raises(ValueError, match="gate: with 'uniform' streams that start equal stay equal for ever"):
        layers.HyperConnection(D, gate="uniform")
    hc = layers.HyperConnection(D, nn.Identity(), gate="uniform", streams=1)
    torch.testing.assert_close(hc(torch.ones(1, D)), 2 * torch.ones(1, D))


@pytest.mark.parametrize("kind", [{}, {"dynamic": False}, {"static": False}, {"scale": None}], ids=str)
@pytest.mark.parametrize("gate", ["softmax", "sigmoid", "tanh", "uniform"])
@pytest.mark.parametrize("mixer", [str(info) for info in layers.mixers()])
def test_every_parameter_gets_a_gradient(mixer, gate, kind):
    """DDP waits for all of them."""
    hc = layers.HyperConnection(D, nn.Linear(D, D), mixer=mixer, gate=gate, stream_embedding=True, **kind)
    hc(torch.randn(5, 4, D)).sum().backward()
    assert all(p.grad is not None for p in hc.parameters())


class Embedded(nn.Module):
    def __init__(self, mixer, wrap):
        super().__init__()
        torch.manual_seed(0)
        self.expand = layers.StreamEmbedding(D, 4, dtype=torch.float64)
        branches = [nn.Sequential(nn.Linear(D, D), nn.Tanh()).double() for _ in range(3)]
        self.layers = nn.ModuleList(wrap(branch, mixer, i) for i, branch in enumerate(branches))

    def streams(self, x):
        x = self.expand(x)
        for layer in self.layers:
            x = layer(x)
        return x

    def forward(self, x):
        return layers.reduce_streams(self.streams(x))


@pytest.mark.parametrize("kind", ["static", "dynamic", "both"])
@pytest.mark.parametrize("mixer", [str(info) for info in layers.mixers()])
def test_uniform_gates_keep_both_laws_of_the_start_between_an_embedding_and_the_mean(mixer, kind):
    def uniform(branch, mixer, index):
        return layers.HyperConnection(
            D,
            branch,
            mixer=mixer,
            gate="uniform",
            stream_embedding=True,
            layer_index=index,
            dtype=torch.float64,
            static=kind != "dynamic",
            dynamic=kind != "static",
        )

    model = Embedded(mixer, uniform)
    x, target = double(16, D), double(16, D, seed=2)
    plain = x
    for layer in model.layers:
        plain = plain + layer.branch(plain)
    torch.testing.assert_close(model(x), plain, rtol=0, atol=1e-6)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    largest = [0.0] * len(model.layers)
    for _ in range(40):
        optimiser.zero_grad()
        (model(x) - target).square().mean().backward()
        for index, layer in enumerate(model.layers):
            mixing = [layer.static, layer.projection] if layer.mixer.n_coefficients else []
            found = [p.grad.abs().max().item() for p in mixing if isinstance(p, nn.Parameter)]
            largest[index] = max(largest[index], *found, 0.0)
        optimiser.step()
    streams = model.streams(x)
    assert (streams - streams.mean(-2, keepdim=True)).norm() / streams.norm() > 1e-3
    # The mean of streams that are read and written alike hides whatever keeps sums: only others can learn.
    if mixer in ("cayley", "cayley-iterated", "quaternion", "free", "reflection", "grassmann"):
        assert min(largest) > 1e-8
    else:
        assert max(largest) < 1e-12


def test_reductions():
    x = double(2, 3, D)
    torch.testing.assert_close(layers.reduce_streams(x, "sum"), 3 * layers.reduce_streams(x))
    with pytest.raises(ValueError, match="reduction: expected 'mean' or 'sum', got 'head'; StreamHead"):
        layers.reduce_streams(x, "head")


@pytest.mark.parametrize("gate", ["softmax", "sigmoid", "tanh"])
def test_a_head_starts_at_the_mean_and_learns(gate):
    head = layers.StreamHead(D, N, gate=gate, dtype=torch.float64)
    x = double(5, N, D)
    torch.testing.assert_close(head(x), layers.reduce_streams(x))
    head = shaken(head)
    flat = x.flatten(-2)
    z = (flat / (flat.square().mean(-1, keepdim=True) + 1e-6).sqrt()) @ head.projection.T
    raw = head.static + head.scale * (z.tanh() if gate == "tanh" else z)
    third = torch.full((N,), 1 / N, dtype=torch.float64)
    pre = {"softmax": raw.softmax(-1), "sigmoid": (raw + third.logit()).sigmoid(), "tanh": raw + third}[gate]
    torch.testing.assert_close(head(x), torch.einsum("ti,tid->td", pre, x))
    head(x).sin().sum().backward()
    assert all(p.grad.abs().max() > 1e-8 for p in head.parameters())


def test_the_head_of_deepseek():
    peer = pytest.importorskip("transformers.models.deepseek_v4.modeling_deepseek_v4")

    class Config:
        hc_mult, hc_eps, hidden_size, rms_norm_eps = N, 1e-6, D, 1e-6

    theirs, ours = peer.DeepseekV4HyperHead(Config()), layers.StreamHead(D, N, gate="sigmoid")
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(0.3 * torch.randn_like(parameter))
        ours.projection.copy_(theirs.hc_fn)
        ours.static.copy_(theirs.hc_base - ours.gate.preference.float())
        ours.scale.copy_(theirs.hc_scale)
    x = torch.randn(2, 5, N, D)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)


def test_ends_are_mixing_parameters_and_refuse_wrong_shapes():
    embedding, head = layers.StreamEmbedding(D, N), layers.StreamHead(D, N)
    assert len(layers.mixing_parameters(nn.Sequential(embedding, head))) == 4
    assert layers.StreamEmbedding(D, N)(torch.zeros(2, D, dtype=torch.bfloat16)).dtype == torch.bfloat16
    with pytest.raises(ValueError, match=r"x: expected shape \(\.\.\., 8\), got \(2, 7\)"):
        embedding(torch.zeros(2, 7))
    with pytest.raises(ValueError, match=r"x: expected shape \(\.\.\., 3, 8\), got \(2, 8\)"):
        head(torch.zeros(2, 8))
    with pytest.raises(ValueError, match="gate: a uniform head learns nothing"):
        layers.StreamHead(D, N, gate="uniform")


# --- reads that are carried on ----------------------------------------------------------------------------


def chain(depth=3, **options):
    torch.manual_seed(0)
    return layers.SinglePass(
        layers.HyperConnection(D, nn.Linear(D, D).double(), streams=N, layer_index=i, dtype=torch.float64, **options)
        for i in range(depth)
    )


def test_a_single_pass_reads_with_the_weights_made_one_layer_before():
    model = shaken(chain())
    x = double(5, N, D)
    expected, pre = x, torch.tensor([1.0, 0, 0], dtype=torch.float64).expand(5, N)
    for layer in model.connections:
        u = torch.einsum("ti,tid->td", pre, expected)
        pre, post, matrix = layer.coefficients(expected)
        expected = matrix @ expected + post.unsqueeze(-1) * layer.branch(u).unsqueeze(-2)
    torch.testing.assert_close(model(x), torch.einsum("ti,tid->td", pre, expected))


@pytest.mark.parametrize("mixer", ["cayley", "sinkhorn", "identity"])
def test_a_single_pass_starts_as_the_plain_network_and_parts_its_streams(mixer):
    model = chain(mixer=mixer)
    x, target = double(16, D), double(16, D, seed=2)
    plain = x
    for layer in model.connections:
        plain = plain + layer.branch(plain)
    torch.testing.assert_close(model(layers.expand_streams(x, N)), plain)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(40):
        optimiser.zero_grad()
        (model(layers.expand_streams(x, N)) - target).square().mean().backward()
        optimiser.step()
    streams = layers.expand_streams(x, N)
    for layer in model.connections:
        streams = layer(streams)
    assert (streams - streams.mean(-2, keepdim=True)).norm() / streams.norm() > 1e-3


def test_a_single_pass_returns_what_branches_return_beside_their_result():
    class Caching(nn.Linear):
        def forward(self, u):
            return super().forward(u), "cache"

    model = chain(2)
    x = double(5, N, D)
    expected = model(x)
    model.connections[1].branch.__class__ = Caching
    found, rests = model(x)
    assert torch.equal(found, expected)
    assert rests == [None, ("cache",)]


def test_a_wrong_chain_is_named():
    with pytest.raises(ValueError, match="connections: expected at least one"):
        layers.SinglePass([])
    with pytest.raises(TypeError, match="connections: expected HyperConnection, got Linear"):
        layers.SinglePass([nn.Linear(2, 2)])
    with pytest.raises(ValueError, match="connections: expected layers around a branch"):
        layers.SinglePass([layers.HyperConnection(4)])
    with pytest.raises(ValueError, match="connections: expected one number of streams and width"):
        layers.SinglePass([layers.HyperConnection(4, nn.Identity()), layers.HyperConnection(8, nn.Identity())])
    with pytest.raises(ValueError, match="connections: expected one read of whole streams"):
        layers.SinglePass([layers.HyperConnection(4, nn.Identity(), reads=2)])
    hc = layers.HyperConnection(8)
    with pytest.raises(ValueError, match=r"pre: expected shape \(\.\.\., 4\), got \(3,\)"):
        hc.carry(torch.zeros(4, 8), torch.zeros(3))
