"""Weights know what layer they are of, and streams of float64 what precision they have."""

import copy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from jpmhc import layers


def layer(**options):
    return layers.HyperConnection(8, nn.Linear(8, 8), **options)


PAIRS = [
    ({"mixer": "sinkhorn"}, {"mixer": "free"}, r"weights of Sinkhorn\(4.*the layer is Free\(4\)"),
    ({"mixer": "cayley"}, {"mixer": layers.Cayley(4, step=0.1)}, r"step=1\.0.*step=0\.1"),
    ({"gate": "softmax"}, {"gate": "sigmoid"}, "SoftmaxGate.*SigmoidGate"),
    ({"layer_index": 0}, {"layer_index": 1}, "favourite=0.*favourite=1"),
    ({"norm": "rms"}, {"norm": "layer"}, "norm='rms'.*norm='layer'"),
]


@pytest.mark.parametrize(("one", "other", "message"), PAIRS)
def test_weights_of_another_layer_of_the_same_shape_are_refused_and_left_out(one, other, message):
    source, target = nn.Sequential(layer(**one)), nn.Sequential(layer(**other))
    before = [p.clone() for p in target[0].parameters(recurse=False)]
    with pytest.raises(RuntimeError, match=rf"(?s)0: .*{message}"):
        target.load_state_dict(source.state_dict())
    for parameter, value in zip(target[0].parameters(recurse=False), before, strict=True):
        assert torch.equal(parameter, value)


def test_options_that_a_mixer_from_outside_shows_are_compared():
    class Tempered(layers.Free):
        def __init__(self, temperature):
            super().__init__(4)
            self.temperature = temperature

        def extra_repr(self):
            return f"{super().extra_repr()}, temperature={self.temperature}"

    state = layer(mixer=Tempered(1.0)).state_dict()
    layer(mixer=Tempered(1.0)).load_state_dict(state)
    with pytest.raises(RuntimeError, match=r"weights of Tempered\(4, temperature=1\.0\).*temperature=2\.0"):
        layer(mixer=Tempered(2.0)).load_state_dict(state)


@pytest.mark.parametrize("assign", [False, True])
def test_weights_of_the_same_layer_load_with_and_without_a_label(assign):
    source, target = layer(mixer="sinkhorn"), layer(mixer="sinkhorn")
    with torch.no_grad():
        source.static.add_(1.0)
    state = source.state_dict()
    target.load_state_dict(state, assign=assign)
    assert torch.equal(target.static, source.static)
    old = {name: value for name, value in state.items() if not name.endswith("label")}
    fresh = layer(mixer="sinkhorn")
    fresh.load_state_dict(old, assign=assign)
    assert torch.equal(fresh.static, source.static)
    del old["static"]
    with pytest.raises(RuntimeError, match="Missing key"):
        fresh.load_state_dict(old, assign=assign)


def test_a_state_dict_that_was_cast_as_a_whole_still_says_what_it_is():
    state = {name: value.bfloat16() for name, value in layer(mixer="sinkhorn").state_dict().items()}
    layer(mixer="sinkhorn").load_state_dict(state)
    with pytest.raises(RuntimeError, match="weights of Sinkhorn"):
        layer(mixer="free").load_state_dict(state)


AVERAGES = {
    "ema": {"multi_avg_fn": get_ema_multi_avg_fn(0.9)},
    "swa": {},
    "function": {"avg_fn": lambda ours, theirs, number: 0.9 * ours + 0.1 * theirs},
}


@pytest.mark.parametrize("average", AVERAGES.values(), ids=AVERAGES)
@pytest.mark.parametrize("use_buffers", [False, True])
def test_averaged_weights_load_as_what_they_are(average, use_buffers):
    model = nn.Sequential(layer(mixer="sinkhorn"), nn.BatchNorm1d(4))
    averaged = AveragedModel(model, use_buffers=use_buffers, **average)
    for _ in range(10):
        with torch.no_grad():
            model[0].static.add_(0.1)
        averaged.update_parameters(model)
    state = averaged.module.state_dict()
    fresh = nn.Sequential(layer(mixer="sinkhorn"), nn.BatchNorm1d(4))
    fresh.load_state_dict(state)
    assert torch.equal(fresh[0].static, averaged.module[0].static)
    assert torch.equal(fresh.state_dict()["0.label"], model.state_dict()["0.label"])
    with pytest.raises(RuntimeError, match="weights of Sinkhorn"):
        nn.Sequential(layer(mixer="free"), nn.BatchNorm1d(4)).load_state_dict(state)
    again = copy.deepcopy(averaged)
    again.load_state_dict(averaged.state_dict())
    assert torch.equal(again.module[0].label, model[0].label)


def test_an_average_that_walks_over_state_dicts_in_place_changes_no_label():
    model = layer(mixer="sinkhorn")
    averaged = copy.deepcopy(model)
    for _ in range(5):
        with torch.no_grad():
            for ours, theirs in zip(averaged.state_dict().values(), model.state_dict().values(), strict=True):
                ours.copy_(0.9 * ours + 0.1 * theirs)
    state = averaged.state_dict()
    assert torch.equal(state["label"], model.state_dict()["label"])
    fresh = layer(mixer="sinkhorn")
    fresh.load_state_dict(state)
    assert torch.equal(fresh.static, averaged.static)


@pytest.mark.parametrize("weight", [0.1, 0.3, 0.5, 0.7, 1 / 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_interpolated_state_dicts_say_what_they_are(weight, dtype):
    one, other = (layer(mixer="sinkhorn").state_dict() for _ in range(2))
    state = {name: (weight * one[name] + (1 - weight) * other[name]).to(dtype) for name in one}
    layer(mixer="sinkhorn").load_state_dict(state)
    with pytest.raises(RuntimeError, match="weights of Sinkhorn"):
        layer(mixer="free").load_state_dict(state)


def test_a_label_outlives_a_change_of_precision_and_a_place_without_data():
    hc = layer(mixer="sinkhorn").bfloat16()
    layer(mixer="sinkhorn").load_state_dict(hc.state_dict())
    with torch.device("meta"):
        empty = layer(mixer="sinkhorn")
    empty.to_empty(device="cpu")
    empty.load_state_dict(hc.state_dict())
    assert torch.equal(empty.label, hc.label)


@pytest.mark.parametrize("mixer", [str(info) for info in layers.mixers()])
def test_a_layer_made_without_data_runs_on_the_weights_it_is_given(mixer):
    given = layer(mixer=mixer)
    with torch.device("meta"):
        made, other = layer(mixer=mixer), layer(mixer="free" if mixer == "identity" else "identity")
    made.load_state_dict(given.state_dict(), assign=True)
    x = torch.randn(3, 4, 8)
    assert torch.equal(made.read(x)[1](x[:, 0]), given.read(x)[1](x[:, 0]))
    with pytest.raises(RuntimeError, match="weights of "):
        other.load_state_dict(given.state_dict(), assign=True)


def test_weights_with_three_factors_do_not_load_into_a_layer_whose_mixer_shares_one_and_others_load_as_they_did():
    given, tied = layer(mixer="free"), layer(mixer="free", tie_mixer_scale=True)
    assert (given.scale.shape, tied.scale.shape) == ((3,), (2,))
    for source, target in ((given, tied), (tied, given)):
        with pytest.raises(RuntimeError, match=r"weights of Free\(4\).*tied"):
            target.load_state_dict(source.state_dict())
    layer(mixer="free", tie_mixer_scale=True).load_state_dict(tied.state_dict())
    assert bytes(given.label.tolist()).endswith(b"projection='reduced'")  # as files written before say
    x = torch.randn(5, 4, 8)
    with torch.no_grad():
        for target in (given, tied):
            target.projection.copy_(torch.linspace(-1, 1, target.projection.numel()).view_as(target.projection))
        given.scale.copy_(torch.tensor([0.7, 0.9, 0.7]))
        tied.scale.copy_(torch.tensor([0.7, 0.9]))
    torch.testing.assert_close(tied(x), given(x))
    with pytest.raises(ValueError, match="tie_mixer_scale: expected False where learn_mixer_scale is"):
        layer(tie_mixer_scale=True, learn_mixer_scale=False)


def test_every_mixer_tells_its_choices():
    labels = {layers.make_mixer(str(info), 4).describe() for info in layers.mixers() if info.supports(4)}
    assert len(labels) == len([info for info in layers.mixers() if info.supports(4)])
    from jpmhc import manifolds

    variants = [
        layers.Permutations(4),
        layers.Permutations(4, layers.JPMHC_PERMUTATIONS),
        layers.Sinkhorn(4, iterations=20),
        layers.Sinkhorn(4, iterations=20, last="rows"),
        layers.Sinkhorn(4, clamp=10.0),
        layers.Cayley(4, packed=False),
        layers.Grassmann(4, reflector=True),
        layers.Manifold(4, manifolds.Birkhoff()),
        layers.Manifold(4, tangent=True),
        layers.Kronecker(4, (4,)),
    ]
    assert len({v.describe() for v in variants} | labels) == len(labels) + len(variants) - 1


@pytest.mark.parametrize("dynamic", [True, False])
def test_coefficients_are_never_narrower_than_the_streams(dynamic):
    torch.manual_seed(0)
    hc = layers.HyperConnection(8, dynamic=dynamic)
    with torch.no_grad():
        for parameter in hc.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    x = torch.randn(5, 4, 8, dtype=torch.float64)
    wide = layers.HyperConnection(8, dynamic=dynamic, dtype=torch.float64)
    wide.load_state_dict({name: p.double() if p.is_floating_point() else p for name, p in hc.state_dict().items()})
    for actual, expected in zip(hc.coefficients(x), wide.coefficients(x), strict=True):
        assert actual.dtype == torch.float64
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-14)
    u, write = hc.read(x)
    assert u.dtype == write(u).dtype == torch.float64


def test_the_identity_is_not_multiplied_by():
    hc = layers.HyperConnection(8, nn.Linear(8, 8), mixer="identity")
    x = torch.randn(5, 4, 8, requires_grad=True)
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU]) as record:
        hc(x)
    names = {event.key for event in record.key_averages()}
    assert not names & {"aten::baddbmm", "aten::bmm"}

    class Turned(layers.Identity):
        def forward(self, raw):
            return super().forward(raw).flip(-1)

    assert not layers.Identity(4).mixes
    assert Turned(4).mixes
