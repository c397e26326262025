"""No configuration makes coefficients from other tokens: what comes later, or stands beside, changes nothing.

Two public hyper-connections pool over the sequence and so show every token the future. Here outputs of the first tokens
must be the same to the bit when later tokens and other samples change, and gradients must not reach those.
"""

import itertools

import pytest
import torch
from torch import nn

from jpmhc import layers, manifolds

N, D, TOKENS, CUT = 4, 8, 6, 3
MIXERS = [str(info) for info in layers.mixers()]
GATES = ["softmax", "sigmoid", "tanh", "uniform"]
# On a CPU their solvers stop when the last matrix of a batch is done, which others feel in their last bits.
ADAPTIVE = (layers.Sinkhorn, layers.Grassmann, manifolds.Birkhoff, manifolds.Stiefel, manifolds.Grassmann)
NORMS = ["rms", "layer", "streams", "streams-layer", None]


def shaken(module):
    """Away from the start, where projections are zero and nothing could leak; points stay on their manifolds."""
    torch.manual_seed(0)
    points = {p for m in module.modules() if isinstance(m, layers.Manifold) for p in m.parameters()}
    with torch.no_grad():
        for parameter in layers.mixing_parameters(module):
            if parameter not in points:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return module


def parts(model):
    for module in model.modules():
        yield module
        yield getattr(module, "manifold", None)


def first_of(output):
    while not isinstance(output, torch.Tensor):
        output = output[0]
    return output


def assert_causal(model, *shape):
    """Check a function of streams or vectors (2, tokens, ...): the first tokens of a sample see themselves only."""
    x = torch.randn(2, TOKENS, *shape, generator=torch.Generator().manual_seed(1)).requires_grad_()
    changed = x.detach().clone()
    changed[:, CUT:] += 1.0
    changed[1] -= 1.0
    out, other = first_of(model(x)), first_of(model(changed))
    if any(isinstance(m, ADAPTIVE) for m in parts(model)):
        torch.testing.assert_close(out[0, :CUT], other[0, :CUT], rtol=0, atol=3e-6)
    else:
        assert torch.equal(out[0, :CUT], other[0, :CUT])
    assert not torch.equal(out[0, CUT:], other[0, CUT:])
    (gradient,) = torch.autograd.grad(out[0, :CUT].sin().sum(), x)
    assert gradient[0, :CUT].abs().min(-1).values.max() > 0
    assert (gradient[0, CUT:] == 0).all()
    assert (gradient[1] == 0).all()


def connection(**options):
    if options.get("gate") == "uniform":
        options["stream_embedding"] = True
    return shaken(layers.HyperConnection(D, nn.Linear(D, D), **options))


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("mixer", MIXERS)
def test_every_mixer_and_gate(mixer, gate):
    assert_causal(connection(mixer=mixer, gate=gate), N, D)


PROJECTIONS = [
    {"gate": gate, "norm": norm, "projection": projection, "mixer": mixer}
    for gate, norm, projection, mixer in itertools.product(
        GATES, NORMS, ["reduced", "published", "shared"], ["cayley", "free"]
    )
    if not (projection == "published" and gate != "softmax") and not (projection == "shared" and mixer == "cayley")
]


def name(options):
    return "-".join(str(value).partition("\n")[0] for value in options.values())


@pytest.mark.parametrize("options", PROJECTIONS, ids=name)
def test_every_norm_and_projection(options):
    if options["projection"] == "shared" and options["gate"] == "uniform":
        with pytest.raises(ValueError, match="shared has no form"):
            connection(**options)
    else:
        assert_causal(connection(**options), N, D)


FORMS = [
    {"dynamic": False},
    {"static": False},
    {"scale": None},
    {"learn_mixer_scale": False},
    {"tie_mixer_scale": True},
    *({"fractions": 2, "gate": gate, "mixer": mixer} for gate, mixer in itertools.product(GATES, ["cayley", "free"])),
    {"fractions": 2, "streams": 1},
    {"streams": 1},
    {"streams": 3, "layer_index": 2},
    *(
        {"mixer": mixer}
        for mixer in (
            layers.Sinkhorn(4, iterations=20, clamp=10.0),
            layers.Permutations(4, layers.JPMHC_PERMUTATIONS),
            layers.Grassmann(4, rank=1, reflector=True),
            layers.Orthostochastic(4, blocks=3),
            *(
                layers.Manifold(4, getattr(manifolds, point)(), tangent=True)
                for point in ("SpecialOrthogonal", "Stiefel", "Birkhoff", "Grassmann")
            ),
        )
    ),
]


@pytest.mark.parametrize("options", FORMS, ids=name)
def test_every_other_form_of_a_layer(options):
    assert_causal(connection(**options), options.get("streams", N), D)


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("fractions", [1, 2])
def test_several_reads(gate, fractions):
    hc = layers.HyperConnection(
        D, nn.Bilinear(D, D, D), reads=2, gate=gate, fractions=fractions, stream_embedding=gate == "uniform"
    )
    assert_causal(shaken(hc), N, D)


@pytest.mark.parametrize("recipe", [str(recipe) for recipe in layers.recipes()])
def test_every_recipe(recipe):
    assert_causal(shaken(layers.HyperConnection.from_recipe(recipe, D, nn.Linear(D, D))), N, D)


class Attention(nn.Module):
    """A causal branch that returns its values beside its result, and takes those of the first layer."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(D, 3 * D)

    def forward(self, u, first=None):
        q, k, own = self.qkv(u).chunk(3, -1)
        values = own if first is None else (own + first) / 2
        return nn.functional.scaled_dot_product_attention(q, k, values, is_causal=True), own


class ValueResidual(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.layers = nn.ModuleList(layers.HyperConnection(D, Attention(), layer_index=i, **options) for i in range(3))

    def forward(self, x):
        values = None
        for layer in self.layers:
            x, own = layer(x, first=values)
            values = own if values is None else values
        return x


@pytest.mark.parametrize("mixer", ["cayley", "sinkhorn"])
def test_value_residuals(mixer):
    assert_causal(shaken(ValueResidual(mixer=mixer)), N, D)


CHAINS = [
    *itertools.product([layers.HyperStack, layers.SinglePass], ["cayley", "sinkhorn", "identity", "grassmann"]),
]


@pytest.mark.parametrize(("kind", "mixer"), CHAINS)
@pytest.mark.parametrize("branch", [lambda: nn.Linear(D, D), Attention], ids=["linear", "attention"])
@pytest.mark.parametrize("options", [{}, {"norm": "layer", "gate": "sigmoid"}], ids=name)
def test_chains_of_layers(kind, mixer, branch, options):
    made = [layers.HyperConnection(D, branch(), mixer=mixer, layer_index=i, **options) for i in range(3)]
    assert_causal(shaken(kind(made)), N, D)


def test_stacks_with_a_norm_and_layers_of_every_kind():
    made = [
        layers.HyperConnection(D, nn.Linear(D, D), layer_index=i, **options)
        for i, options in enumerate(
            [{}, {"fractions": 2}, {"mixer": "free", "projection": "shared"}, {"dynamic": False}]
        )
    ]
    assert_causal(shaken(layers.HyperStack(made, post_norm="rms")), N, D)


@pytest.mark.parametrize("gate", ["softmax", "sigmoid", "tanh"])
def test_ends_of_the_streams(gate):
    assert_causal(shaken(nn.Sequential(layers.StreamEmbedding(D, N), layers.StreamHead(D, N, gate=gate))), D)


@pytest.mark.parametrize("mixer", ["cayley", "sinkhorn"])
def test_a_converted_decoder(mixer):
    from tests.layers.families import build

    model = shaken(layers.convert(build("llama"), mixer=mixer))
    ids = torch.arange(1, 8).expand(2, 7)
    changed = ids.clone()
    changed[:, CUT:] += 9
    changed[1] += 20
    with torch.no_grad():
        first, second = (model(input_ids=tokens).logits for tokens in (ids, changed))
    torch.testing.assert_close(first[0, :CUT], second[0, :CUT], rtol=0, atol=1e-5)
    assert (first[0, CUT:] - second[0, CUT:]).abs().max() > 1e-2


class CausalConvolution(nn.Module):
    """A residual block whose branch looks at this moment and the two before."""

    def __init__(self, channels_last):
        super().__init__()
        self.conv, self.channels_last = nn.Conv1d(D, D, 3), channels_last

    def forward(self, x):
        if self.channels_last:
            return x + torch.relu(self.conv(nn.functional.pad(x.mT, (2, 0)))).mT
        return x + torch.relu(self.conv(nn.functional.pad(x, (2, 0))))


@pytest.mark.parametrize("mixer", ["cayley", "sinkhorn"])
def test_a_converted_convolution_whose_channels_come_last(mixer):
    torch.manual_seed(0)
    model = nn.Sequential(*(CausalConvolution(True) for _ in range(3)))
    # As many moments as channels: sizes alone do not tell which is which.
    assert_causal(shaken(layers.convert(model, example=torch.randn(2, D, D), mixer=mixer)), D)


@pytest.mark.parametrize("moments", [TOKENS, D])
def test_a_convolution_whose_channels_come_first_has_no_tokens_to_convert(moments):
    model = nn.Sequential(*(CausalConvolution(False) for _ in range(3)))
    with pytest.raises(ValueError, match=rf"0: channels must come last.*{moments}\): Conv1d reads them"):
        layers.convert(model, example=torch.randn(2, D, moments))


def test_a_leak_is_seen():
    class Pooling(layers.Cayley):
        def forward(self, raw):
            return super().forward(raw - raw.mean(-2, keepdim=True))

    with pytest.raises(AssertionError):
        assert_causal(connection(mixer=Pooling(4)), N, D)
