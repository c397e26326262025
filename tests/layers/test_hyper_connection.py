import copy
import math
import pickle

import pytest
import torch
from torch import nn

from jpmhc import layers, optim

MIXERS = [str(info) for info in layers.mixers() if info.supports(3)]


def layer(mixer="cayley", branch=None, dim=5, streams=3, dtype=torch.float64, **options):
    """A layer away from its start, so that nothing is trivially right."""
    torch.manual_seed(0)
    hc = layers.HyperConnection(dim, branch, streams=streams, mixer=mixer, dtype=dtype, **options)
    with torch.no_grad():
        for parameter in layers.mixing_parameters(hc):
            parameter.add_(0.3 * torch.randn_like(parameter))
    return hc


@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize(("dynamic", "static"), [(True, True), (True, False), (False, True)])
def test_layer_is_its_equation(mixer, dynamic, static):
    branch = nn.Linear(5, 5, dtype=torch.float64)
    hc = layer(mixer, branch, dynamic=dynamic, static=static)
    x = torch.randn(2, 4, 3, 5, dtype=torch.float64)
    actual = hc(x)
    expected = torch.empty_like(x)
    for b in range(2):
        for t in range(4):
            pre, post, matrix = hc.coefficients(x[b, t])  # a token alone: nothing looks at its neighbours
            u = sum(pre[i] * x[b, t, i] for i in range(3))
            y = branch(u)
            for j in range(3):
                expected[b, t, j] = sum(matrix[j, i] * x[b, t, i] for i in range(3)) + post[j] * y
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


def test_raw_numbers_are_static_plus_scaled_projection_of_the_normed_streams():
    hc = layer("free", eps=1e-3)
    x = torch.randn(7, 3, 5, dtype=torch.float64)
    flat = x.flatten(-2)
    normed = flat / (flat.square().mean(-1, keepdim=True) + 1e-3).sqrt()
    read, write, mix = (normed @ hc.projection.mT).split(hc.sizes, -1)
    static = hc.static.split(hc.sizes)
    pre, post, matrix = hc.coefficients(x)
    raw = static[0] + hc.scale[0] * read
    raw = raw + torch.tensor([2.0, 0, 0])
    torch.testing.assert_close(pre, raw.softmax(-1))
    torch.testing.assert_close(post, 3 * (static[1] + hc.scale[1] * write).softmax(-1))
    torch.testing.assert_close(matrix.flatten(-2), static[2] + hc.scale[2] * mix.tanh())


def test_layer_norm_takes_the_mean_out_of_the_streams():
    hc = layer("cayley", norm="layer", eps=1e-3)
    x = 2 + torch.randn(7, 3, 5, dtype=torch.float64)
    normed = nn.functional.layer_norm(x.flatten(-2), (15,), eps=1e-3)
    raw = (normed @ hc.projection.mT).split(hc.sizes, -1)[1]
    expected = 3 * (hc.static.split(hc.sizes)[1] + hc.scale[1] * raw).softmax(-1)
    torch.testing.assert_close(hc.coefficients(x)[1], expected)


@pytest.mark.parametrize(("mean", "spread"), [(1.0, 1e-3), (100.0, 1e-1), (1000.0, 1.0), (123.4, 0.0)])
def test_layer_norm_does_not_cancel_where_the_mean_is_large(mean, spread):
    hc = layer("cayley", norm="layer", dtype=torch.float32, dim=64)
    x = mean + spread * torch.randn(50, 3, 64, generator=torch.Generator().manual_seed(0))
    exact = copy.deepcopy(hc).double().coefficients(x.double())
    for actual, expected in zip(hc.coefficients(x), exact, strict=True):
        assert actual.isfinite().all()
        torch.testing.assert_close(actual.double(), expected, rtol=0, atol=5e-4)


@pytest.mark.parametrize("norm", ["rms", "layer", "streams"])
def test_second_derivatives_are_finite_at_zero_streams(norm):
    hc = layer("cayley", nn.Linear(5, 5, dtype=torch.float64), norm=norm)
    x = torch.zeros(2, 3, 5, dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(hc(x).sin().sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), x)
    assert second.isfinite().all()


def test_norm_of_streams_takes_every_stream_by_itself():
    hc = layer("cayley", norm="streams", eps=1e-3)
    x = torch.randn(7, 3, 5, dtype=torch.float64)
    normed = x / (x.square().mean(-1, keepdim=True) + 1e-3).sqrt()
    raw = (normed.flatten(-2) @ hc.projection.mT).split(hc.sizes, -1)[1]
    expected = 3 * (hc.static.split(hc.sizes)[1] + hc.scale[1] * raw).softmax(-1)
    torch.testing.assert_close(hc.coefficients(x)[1], expected)


def test_gates_are_those_of_the_papers():
    x = torch.randn(7, 3, 5, dtype=torch.float64)
    p0 = torch.tensor([2.0, 0, 0], dtype=torch.float64).softmax(-1)
    for gate, squash in (("sigmoid", lambda z: z), ("tanh", torch.tanh)):
        hc = layer("free", gate=gate, norm=None)
        read, write, _ = (x.flatten(-2) @ hc.projection.mT).split(hc.sizes, -1)
        static = hc.static.split(hc.sizes)
        read, write = static[0] + hc.scale[0] * squash(read), static[1] + hc.scale[1] * squash(write)
        pre, post, _ = hc.coefficients(x)
        if gate == "sigmoid":
            torch.testing.assert_close(pre, torch.sigmoid(read + p0.logit()))
            torch.testing.assert_close(post, 2 * torch.sigmoid(write))
        else:
            torch.testing.assert_close(pre, torch.tensor([1.0, 0, 0]) + read)
            torch.testing.assert_close(post, 1 + write)


@pytest.mark.parametrize("mixer", ["cayley", "cayley-iterated", "sinkhorn", "free"])
def test_a_reduced_layer_embeds_in_a_published_one(mixer):
    """Equal rows of the read matrix, equal columns of the write matrix, the skew matrix above the diagonal."""
    reduced = layer(mixer)
    published = layer(mixer, projection="published")
    assert published.sizes == [9, 9, 9]

    def embed(raw):
        read, write, mix = raw.split(reduced.sizes)
        if mixer.startswith("cayley"):
            upper = torch.zeros(3, 3, *raw.shape[1:], dtype=raw.dtype)
            upper[tuple(torch.triu_indices(3, 3, 1))] = mix
            mix = upper.flatten(0, 1)
        return torch.cat([read.repeat(3, *[1] * (raw.ndim - 1)), write.repeat_interleave(3, 0), mix])

    with torch.no_grad():
        published.scale.copy_(reduced.scale)
        published.static.copy_(embed(reduced.static))
        published.projection.copy_(embed(reduced.projection))
    x = torch.randn(7, 3, 5, dtype=torch.float64)
    for actual, expected in zip(published.coefficients(x), reduced.coefficients(x), strict=True):
        torch.testing.assert_close(actual, expected)


def test_published_gates_are_those_of_the_paper():
    hc = layer("cayley", projection="published", static=False)
    x = torch.randn(3, 5, dtype=torch.float64)
    flat = x.flatten() / (x.square().mean() + hc.eps).sqrt()
    raw = [s * part.view(3, 3) for s, part in zip(hc.scale, (hc.projection @ flat).split(9), strict=True)]
    pre, post, matrix = hc.coefficients(x)
    h_pre = (raw[0] + torch.tensor([2.0, 0, 0], dtype=torch.float64)).softmax(-1)  # the start favours stream 0
    h_post = raw[1].softmax(-2)
    torch.testing.assert_close(pre @ x, (h_pre @ x).mean(0))
    torch.testing.assert_close(post, h_post @ torch.ones(3, dtype=torch.float64))
    half, eye = (raw[2] - raw[2].mT) / 2, torch.eye(3, dtype=torch.float64)
    torch.testing.assert_close(matrix, torch.linalg.solve(eye - half, eye + half))


def test_norm_none_leaves_the_streams_as_they_are():
    hc = layer("cayley", norm=None)
    x = torch.randn(7, 3, 5, dtype=torch.float64)
    raw = (x.flatten(-2) @ hc.projection.mT).split(hc.sizes, -1)[1]
    expected = 3 * (hc.static.split(hc.sizes)[1] + hc.scale[1] * raw).softmax(-1)
    torch.testing.assert_close(hc.coefficients(x)[1], expected)


@pytest.mark.parametrize("mixer", MIXERS)
def test_gradients_match_finite_differences(mixer):
    hc = layer(mixer, nn.Linear(2, 2, dtype=torch.float64), dim=2)
    x = torch.randn(2, 3, 2, dtype=torch.float64, requires_grad=True)
    parameters = dict(hc.named_parameters())

    def run(x, *values):
        return torch.func.functional_call(hc, dict(zip(parameters, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(run, (x, *parameters.values()))


def test_both_call_patterns_agree():
    branch = nn.Linear(5, 5, dtype=torch.float64)
    hc = layer(branch=branch)
    x = torch.randn(4, 3, 5, dtype=torch.float64)
    u, write = hc.read(x)
    assert u.shape == (4, 5)
    assert torch.equal(write(hc.branch(u)), hc(x))


def test_branch_gets_its_arguments():
    def branch(u, shift, *, scale):
        return scale * u + shift

    hc = layer(branch=branch)
    x = torch.randn(4, 3, 5, dtype=torch.float64)
    u, write = hc.read(x)
    assert torch.equal(hc(x, 1.5, scale=2.0), write(2.0 * u + 1.5))


@pytest.mark.parametrize("gate", ["softmax", "sigmoid", "tanh"])
@pytest.mark.parametrize("mixer", [str(info) for info in layers.mixers() if info.supports(1)])
def test_one_stream_is_the_plain_residual(mixer, gate):
    branch = nn.Linear(5, 5)
    hc = layers.HyperConnection(5, branch, streams=1, mixer=mixer, gate=gate)
    x = torch.randn(4, 5)
    torch.testing.assert_close(hc(x.unsqueeze(-2)).squeeze(-2), layers.Residual(branch)(x))


@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize("shape", [(0,), (2, 0), (), (2, 3, 4)])
def test_any_leading_shape(mixer, shape):
    hc = layer(mixer, nn.Linear(5, 5), dtype=torch.float32)
    x = torch.randn(*shape, 3, 5, requires_grad=True)
    out = hc(x)
    assert out.shape == x.shape
    out.sum().backward()
    assert x.grad.shape == x.shape
    assert x.grad.isfinite().all()


def test_non_contiguous_streams():
    hc = layer(branch=nn.Linear(5, 5, dtype=torch.float64))
    x = torch.randn(5, 3, 4, dtype=torch.float64).permute(2, 1, 0)
    assert torch.equal(hc(x), hc(x.contiguous()))


@pytest.mark.parametrize("mixer", MIXERS)
def test_half_precision_streams_keep_their_dtype_and_single_precision_coefficients(mixer):
    hc = layer(mixer, nn.Linear(5, 5, dtype=torch.bfloat16), dtype=torch.float32)
    x = torch.randn(4, 3, 5, dtype=torch.bfloat16)
    assert all(c.dtype == torch.float32 for c in hc.coefficients(x))
    reference = copy.deepcopy(hc).to(torch.float32)
    out = hc(x)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), reference(x.float()), rtol=2e-2, atol=2e-2)
    hc = hc.to(torch.bfloat16)
    pre, post, matrix = hc.coefficients(x)
    assert pre.dtype == post.dtype == matrix.dtype == torch.float32
    if hc.mixer.residual(reference.coefficients(x.float())[2]).max() < 1e-5:
        assert hc.mixer.residual(matrix).max() < 1e-5  # constants are not rounded with the parameters


@pytest.mark.parametrize("mixer", MIXERS)
def test_double_streams_get_double_coefficients_from_single_parameters(mixer):
    """Nothing narrows them in silence: the result is that of the layer cast to float64."""
    single = layer(mixer, nn.Linear(5, 5, dtype=torch.float64), dtype=torch.float32)
    single.mixer.reset_parameters()
    double, x = copy.deepcopy(single).double(), torch.randn(4, 3, 5, dtype=torch.float64)
    assert single.static.dtype == torch.float32
    for actual, expected in zip(single.coefficients(x), double.coefficients(x), strict=True):
        assert actual.dtype == torch.float64
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-14)
    torch.testing.assert_close(single(x), double(x), rtol=0, atol=1e-13)
    stack = layers.HyperStack([single, copy.deepcopy(single)])
    torch.testing.assert_close(stack(x), double(double(x)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("options", [{}, {"fractions": 2}, {"reads": 2}, {"norm": "layer"}], ids=str)
def test_no_layer_multiplies_by_the_identity(options):
    class Poisoned(layers.Identity):
        mixes = False

        def forward(self, raw):
            return super().forward(raw) * math.nan

    chart = Poisoned(3 * options.get("fractions", 1))
    hc = layers.HyperConnection(4, lambda u, v=0: u + v, streams=3, mixer=chart, **options)
    stack, x = layers.HyperStack([hc, copy.deepcopy(hc)]), torch.randn(5, 3, 4)
    assert hc(x).isfinite().all()
    assert stack(x).isfinite().all()
    if not options:
        assert layers.SinglePass([hc])(x).isfinite().all()


def test_autocast_leaves_the_coefficients_in_single_precision():
    hc = layer(branch=nn.Linear(5, 5), dtype=torch.float32)
    x = torch.randn(4, 3, 5)
    exact = hc.coefficients(x)
    with torch.autocast("cpu", torch.bfloat16):
        inside, out = hc.coefficients(x), hc(x)
    assert all(torch.equal(a, b) for a, b in zip(inside, exact, strict=True))
    assert out.dtype == torch.float32


@pytest.mark.parametrize("mixer", MIXERS)
def test_copies_and_pickles(mixer):
    hc = layer(mixer, nn.Linear(5, 5, dtype=torch.float64))
    hc.mixer.reset_parameters()  # a base point that was shaken off its manifold is refused
    x = torch.randn(4, 3, 5, dtype=torch.float64)
    for twin in (copy.deepcopy(hc), pickle.loads(pickle.dumps(hc))):
        assert torch.equal(twin(x), hc(x))
    fresh = layers.HyperConnection(5, nn.Linear(5, 5), streams=3, mixer=mixer, dtype=torch.float64).double()
    fresh.load_state_dict(hc.state_dict())
    assert torch.equal(fresh(x), hc(x))


def test_mixing_parameters_are_those_of_the_connections_alone():
    model = nn.Sequential(
        layers.HyperConnection(5, nn.Linear(5, 5), streams=3),
        nn.Linear(5, 5),
        layers.HyperConnection(5, nn.Linear(5, 5), streams=3, dynamic=False),
        layers.HyperConnection(5, nn.Linear(5, 5), streams=3, static=False),
    )
    names = {id(p): name for name, p in model.named_parameters()}
    expected = {"0.static", "0.projection", "0.scale", "2.static", "3.projection", "3.scale"}
    assert {names[id(p)] for p in layers.mixing_parameters(model)} == expected
    twin = copy.deepcopy(model)
    twin.load_state_dict(model.state_dict(), assign=True)
    names = {id(p): name for name, p in twin.named_parameters()}
    assert {names[id(p)] for p in layers.mixing_parameters(twin)} == expected


def test_a_layer_made_without_data_is_filled_by_its_reset():
    for mixer in MIXERS:
        with torch.device("meta"):
            hc = layers.HyperConnection(5, streams=3, mixer=mixer)
        hc.to_empty(device="cpu")
        hc.reset_parameters()
        x = torch.randn(4, 3, 5)
        expected = layers.HyperConnection(5, streams=3, mixer=mixer).coefficients(x)
        for actual, value in zip(hc.coefficients(x), expected, strict=True):
            torch.testing.assert_close(actual, value)


def test_parameters_are_never_zero_dimensional():
    assert all(p.ndim > 0 for p in layers.HyperConnection(5, streams=3).parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 0}, "dim: expected at least 1, got 0"),
        ({"streams": 0}, "streams: expected at least 1, got 0"),
        ({"mixer": "caley"}, "mixer: unknown name 'caley', expected one of cayley, cayley-iterated"),
        ({"mixer": "cayley:step=0.1"}, r"arguments go to an instance, make_mixer\(name, streams, step=0\.1\)"),
        ({"mixer": layers.Cayley(3)}, r"mixer: expected one for 4 streams, got Cayley\(3\)"),
        ({"gate": "relu"}, "gate: unknown name 'relu', expected one of softmax, sigmoid, tanh"),
        ({"norm": "batch"}, "norm: expected one of"),
        ({"static": False, "dynamic": False}, "expected at least one to be True"),
        ({"projection": "full"}, "projection: expected one of"),
        ({"projection": "published", "gate": "tanh"}, "gate: only 'softmax' has a form with n x n raw numbers"),
        ({"projection": "published", "mixer": "quaternion"}, "published takes a mixer of n.2 = 16 raw numbers"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        layers.HyperConnection(**{"dim": 8, **options})


def test_wrong_types_are_named():
    with pytest.raises(TypeError, match=r"mixer: expected a name or a layers\.Mixer, got int"):
        layers.HyperConnection(8, mixer=3)
    with pytest.raises(TypeError, match="branch: this HyperConnection wraps none"):
        layers.HyperConnection(8)(torch.zeros(4, 8))


def test_wrong_streams_and_results_are_named():
    hc = layers.HyperConnection(8, nn.Linear(8, 6), streams=4)
    with pytest.raises(
        ValueError, match=r"x: expected shape \(\.\.\., 4, 8\), got \(2, 8\); call expand_streams first"
    ):
        hc(torch.zeros(2, 8))
    with pytest.raises(ValueError, match=r"branch: expected a result of shape \(2, 8\), got \(2, 6\)"):
        hc(torch.zeros(2, 4, 8))
    with pytest.raises(ValueError, match=r"branch: expected a result of shape \(2, 8\), got tuple"):
        hc.read(torch.zeros(2, 4, 8))[1]((torch.zeros(2, 8), None))


def test_mixing_parameters_that_are_parametrised_are_found():
    branch = nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))
    hc = layers.HyperConnection(8, branch, mixer="manifold")
    nn.utils.parametrize.register_parametrization(hc, "static", nn.Identity())
    nn.utils.parametrizations.weight_norm(hc, "projection")
    found = set(layers.mixing_parameters(nn.Sequential(hc)))
    names = {name for name, parameter in hc.named_parameters() if parameter in found}
    assert names == {name for name, _ in hc.named_parameters() if not name.startswith("branch")}
    assert {"parametrizations.static.original", "parametrizations.projection.original1"} < names
    decayed, free = optim.parameter_groups(hc)
    assert set(free["params"]) == found
    assert set(decayed["params"]) == set(branch.parameters())


@pytest.mark.parametrize(
    ("result", "got"),
    [
        (lambda matrix: None, "NoneType"),
        (lambda matrix: matrix[..., :1, :], r"\(2, 4, 1, 4\)"),
        (lambda matrix: matrix[..., 0], r"\(2, 4, 4\)"),
        (lambda matrix: torch.eye(4), r"\(4, 4\)"),
        (lambda matrix: matrix.long(), r"torch\.int64"),
        (lambda matrix: matrix + 0j, r"torch\.complex64"),
    ],
)
@pytest.mark.parametrize("kind", [lambda layer: layer, lambda layer: layers.HyperStack([layer])])
def test_a_mixer_whose_result_would_broadcast_is_named(result, got, kind):
    class Odd(layers.Free):
        def forward(self, raw):
            return result(super().forward(raw))

    layer = kind(layers.HyperConnection(8, nn.Linear(8, 8), mixer=Odd(4)))
    # As many tokens as streams: a row in the place of a matrix fits in shape.
    with pytest.raises(TypeError if "torch" in got else ValueError, match=rf"mixer: .*\(2, 4, 4, 4\) of Odd.*{got}"):
        layer(torch.randn(2, 4, 4, 8))
