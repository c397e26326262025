import itertools
import math

import pytest
import torch
from torch import nn

from jpmhc import layers, spectrum

WIDTH, STREAMS, TOKENS = 6, 3, 5


def network(mixer="cayley", depth=4, noise=0.3, **options):
    torch.manual_seed(0)
    model = nn.Sequential(
        *(
            layers.HyperConnection(
                WIDTH,
                nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()),
                streams=STREAMS,
                mixer=mixer,
                layer_index=i,
                **options,
            )
            for i in range(depth)
        )
    ).double()
    with torch.no_grad():
        for parameter in layers.mixing_parameters(model):
            parameter.add_(noise * torch.randn_like(parameter))
    return model


def walk(model, x):
    """Inputs and coefficients of every layer, by running them one after the other."""
    steps = []
    for layer in model:
        pre, post, matrix = (c.detach() for c in layer.coefficients(x))
        steps.append((x.detach(), pre, post, matrix))
        x = layer(x)
    return steps


@pytest.mark.parametrize("mixer", ["cayley", "sinkhorn", "free"])
@pytest.mark.parametrize("dynamic", [True, False])
def test_every_number_is_its_definition(mixer, dynamic):
    model = network(mixer, dynamic=dynamic)
    x = torch.randn(TOKENS, STREAMS, WIDTH, dtype=torch.float64)
    report = spectrum.inspect(model, x)
    assert len(report) == 4
    steps = walk(model, x)
    mixers = [matrix.expand(TOKENS, STREAMS, STREAMS) for *_, matrix in steps]
    for l, (x_l, pre, post, _) in enumerate(steps):
        layer, M = report[l], mixers[l]
        assert (layer.index, layer.name, layer.call, layer.chain) == (l, str(l), 0, 0)
        up_to = M if l == 0 else torch.stack([torch.linalg.multi_dot([m[t] for m in mixers[l::-1]]) for t in range(5)])
        onward = (
            M
            if l == 3
            else torch.stack(
                [torch.linalg.multi_dot([m[t] for m in mixers[: l - 1 if l else None : -1]]) for t in range(5)]
            )
        )
        s, product = torch.linalg.svdvals(M), torch.linalg.svdvals(up_to)
        expected = {
            "residual": model[l].mixer.residual(M).max(),
            "sigma_min": s.min(),
            "sigma_max": s.max(),
            "product_min": product.min(),
            "product_max": product.max(),
            "layer_forward_gain": torch.linalg.matrix_norm(M, torch.inf).mean(),
            "layer_backward_gain": torch.linalg.matrix_norm(M, 1).mean(),
            "forward_gain": torch.linalg.matrix_norm(up_to, torch.inf).mean(),
            "backward_gain": torch.linalg.matrix_norm(onward, 1).mean(),
        }
        ones = torch.ones(STREAMS, dtype=torch.float64)
        J = torch.ones(STREAMS, STREAMS, dtype=torch.float64) / STREAMS
        off = torch.eye(STREAMS, dtype=torch.float64) - J
        expected["mean_gain"] = (ones @ M @ ones).mean() / STREAMS
        expected["leak_out"] = torch.linalg.matrix_norm(off @ M @ J, 2).mean()
        expected["leak_in"] = torch.linalg.matrix_norm(J @ M @ off, 2).mean()
        pairs = list(itertools.permutations(range(STREAMS), 2))
        cosines = [nn.functional.cosine_similarity(x_l[:, i], x_l[:, j], dim=-1).mean() for i, j in pairs]
        expected["similarity"] = torch.stack(cosines).mean()
        spread = (x_l - x_l.mean(1, keepdim=True)).square().sum((1, 2)) / x_l.square().sum((1, 2))
        expected["difference"] = spread.mean()
        energy = torch.linalg.svdvals(x_l).square()
        expected["effective_streams"] = (energy.sum(-1).square() / energy.square().sum(-1)).mean()
        expected["norm"] = x_l.square().mean().sqrt()
        for name, weights in (("read", pre), ("write", post)):
            share = weights.abs() / weights.abs().sum(-1, keepdim=True)
            entropy = -(share * share.log()).sum(-1)
            expected[f"{name}_entropy"] = entropy.mean() / math.log(STREAMS)
            expected[{"read": "streams_read", "write": "streams_written"}[name]] = entropy.exp().mean()
        for name, value in expected.items():
            assert getattr(layer, name) == pytest.approx(float(value), rel=1e-9, abs=1e-12), name
        assert layer.singular_values == pytest.approx(s.mean(0).tolist())
        assert layer.product_values == pytest.approx(product.mean(0).tolist())
        torch.testing.assert_close(report.mixers[l], M.mean(0))
        torch.testing.assert_close(report.reads[l], pre.expand(TOKENS, STREAMS).mean(0))
        torch.testing.assert_close(report.writes[l], post.expand(TOKENS, STREAMS).mean(0))


def test_gradients_are_those_of_the_loss():
    model = network()
    x = torch.randn(TOKENS, STREAMS, WIDTH, dtype=torch.float64)
    loss = lambda out: out.square().sum()  # noqa: E731
    report = spectrum.inspect(model, x, loss)
    assert report.loss == pytest.approx(loss(model(x)).item())
    assert x.grad is None
    assert not x.requires_grad
    assert all(p.grad is None for p in model.parameters())
    for l in range(4):
        inputs = walk(model, x)[l][0].requires_grad_()
        (expected,) = torch.autograd.grad(loss(model[l:](inputs)), inputs)
        assert report[l].gradient == pytest.approx(float(expected.norm()), rel=1e-9)
    loss(model(x)).backward()
    for l in range(4):
        squares = [p.grad.square().sum() for p in model[l].parameters()]
        assert report[l].parameter_gradient == pytest.approx(float(torch.stack(squares).sum().sqrt()), rel=1e-9)


def test_the_default_loss_is_a_unit_direction():
    # A network that does nothing hands the direction back: its norm is one at every layer.
    model = network("identity", noise=0.0)
    for layer in model:
        nn.init.zeros_(layer.branch[0].weight)
    report = spectrum.inspect(model, torch.randn(TOKENS, STREAMS, WIDTH, dtype=torch.float64))
    assert [layer.gradient for layer in report] == pytest.approx([1.0] * 4)


def test_energies_are_squares_of_the_branch_jacobians():
    model = network(depth=2)
    x = torch.randn(TOKENS, STREAMS, WIDTH, dtype=torch.float64)
    report = spectrum.inspect(model, x, energy_probes=400)
    for layer, (x_l, *_), measured in zip(model, walk(model, x), report, strict=True):
        u = layer.read(x_l)[0].detach()
        jacobian = torch.autograd.functional.jacobian(layer.branch, u)
        assert measured.energy == pytest.approx(float(jacobian.square().sum() / u.numel()), rel=0.05)
    assert spectrum.inspect(model, x, energy_probes=0)[0].energy is None


def test_the_chain_is_what_a_prediction_takes():
    model = network(dynamic=False)
    x = torch.randn(TOKENS, STREAMS, WIDTH, dtype=torch.float64)
    report = spectrum.inspect(model, x)
    chain = report.chain(slice(1, 3))
    assert {name: tuple(value.shape) for name, value in chain.items()} == {
        "mixers": (2, 3, 3), "read": (2, 3), "write": (2, 3), "energy": (2,)
    }  # fmt: skip
    torch.testing.assert_close(chain["mixers"][0], model[1].coefficients(x)[2].detach())
    torch.testing.assert_close(report.chain([2])["read"][0], model[2].coefficients(x)[0].detach())
    with pytest.raises(ValueError, match="layers: expected at least one"):
        report.chain([])
    with pytest.raises(ValueError, match="the branch of '0' is no module"):
        spectrum.inspect(network(), x, energy_probes=0).chain()


class Looped(nn.Module):
    """One layer three times in halves, the first time without gradients, then one with two streams."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, WIDTH)
        self.hc = layers.HyperConnection(WIDTH, nn.Linear(WIDTH, WIDTH), streams=3, layer_index=0)
        self.out = layers.HyperConnection(WIDTH, nn.Linear(WIDTH, WIDTH), streams=2, layer_index=1)
        self.unused = layers.HyperConnection(WIDTH, nn.Linear(WIDTH, WIDTH), streams=2)
        self.norm = nn.BatchNorm1d(WIDTH)

    def forward(self, tokens):
        x = layers.expand_streams(self.norm(self.embed(tokens)), 3)
        with torch.no_grad():
            u, write = self.hc.read(x)
            x = write(u)
        for _ in range(2):
            u, write = self.hc.read(x)
            x = write(self.hc.branch(u))
        return {"state": x.detach(), "logits": self.out(layers.expand_streams(layers.reduce_streams(x), 2))}


def test_layers_in_halves_and_applied_repeatedly_are_seen():
    model = Looped()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    report = spectrum.inspect(model, {"tokens": torch.tensor([1, 2, 3])})
    assert [(r.name, r.call, r.chain) for r in report] == [("hc", 0, 0), ("hc", 1, 0), ("hc", 2, 0), ("out", 0, 1)]
    assert report[0].gradient is None
    assert all(r.gradient > 0 for r in list(report)[2:])
    assert report[1].parameter_gradient == report[2].parameter_gradient
    assert report[0].energy is None
    assert report[1].energy > 0
    assert "hc[1]" in str(report)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    assert "_read" not in vars(model.hc)
    with pytest.raises(ValueError, match="one number of streams"):
        report.chain(slice(1, 4))


@pytest.mark.parametrize("post_norm", [None, "rms"])
@pytest.mark.parametrize("recompute_reads", [False, True])
def test_stacks_are_seen_as_their_layers_one_by_one(post_norm, recompute_reads):
    model, x = network(), torch.randn(TOKENS, STREAMS, WIDTH, dtype=torch.float64)
    stack = layers.HyperStack(model, post_norm=post_norm, recompute_reads=recompute_reads)

    class Loop(nn.Module):
        def __init__(self):
            super().__init__()
            self.connections = nn.ModuleList(model)

        def forward(self, x):
            for layer in self.connections:
                x = layer(x)
                x = x if post_norm is None else nn.functional.rms_norm(x, x.shape[-1:], eps=1e-5)
            return x

    found, expected = spectrum.inspect(stack, x), spectrum.inspect(Loop(), x)
    assert [layer.name for layer in found] == [f"connections.{l}" for l in range(4)]
    for row, wanted in zip(found.table(), expected.table(), strict=True):
        assert row.keys() == wanted.keys()
        for name, value in row.items():
            # Leaks of mixers that have none are round-off.
            assert value == (wanted[name] if isinstance(value, str) else pytest.approx(wanted[name], 1e-9, 1e-12)), name
    torch.testing.assert_close(spectrum.branch_energies(stack, x), spectrum.branch_energies(Loop(), x))
    # The stack is left as it was: in one pass again.
    assert not any(layer._forward_hooks for layer in model)


def test_converted_models_are_seen():
    block = lambda: nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, norm_first=True)  # noqa: E731
    torch.manual_seed(0)
    model = layers.convert(
        nn.TransformerEncoder(block(), 2, enable_nested_tensor=False).eval(), example=torch.randn(1, 5, 8)
    )
    report = spectrum.inspect(model, torch.randn(2, 5, 8))
    assert len(report) == 4
    assert all(r.similarity == pytest.approx(1.0, abs=1e-5) for r in list(report)[:1])
    assert all(r.energy is None and r.gradient > 0 for r in report)


def test_the_table_is_flat_and_the_text_readable():
    report = spectrum.inspect(network(), torch.randn(TOKENS, STREAMS, WIDTH, dtype=torch.float64))
    table = report.table()
    assert len(table) == 4
    assert {type(value) for row in table for value in row.values()} <= {int, float, str, type(None)}
    lines = str(report).splitlines()
    assert len(lines) == 5
    assert len({len(line) for line in lines}) == 1


@pytest.mark.parametrize("log", [True, False])
@pytest.mark.parametrize("mixer", ["sinkhorn", "identity"])
def test_the_plot_has_four_panels(mixer, log):
    pytest.importorskip("matplotlib").use("agg")
    report = spectrum.inspect(network(mixer), torch.randn(TOKENS, STREAMS, WIDTH, dtype=torch.float64))
    figure = report.plot(log=log)
    assert [len(ax.lines) for ax in figure.axes] == [2 * STREAMS, 3, 3, 2]
    assert figure.axes[0].get_yscale() == ("log" if log else "linear")
    lowest = figure.axes[0].lines[2 * STREAMS - 1].get_ydata()
    assert lowest == pytest.approx([layer.product_values[-1] for layer in report])


def test_mistakes_are_named():
    x = torch.randn(TOKENS, STREAMS, WIDTH, dtype=torch.float64)
    with pytest.raises(ValueError, match="Linear has no HyperConnection"):
        spectrum.inspect(nn.Linear(2, 2), torch.zeros(2))
    with pytest.raises(TypeError, match="model: expected a module"):
        spectrum.inspect(lambda x: x, x)
    with pytest.raises(ValueError, match="layer '0' got no token"):
        spectrum.inspect(network(), x[:0])
    with pytest.raises(ValueError, match="loss: expected a function"):
        spectrum.inspect(network(), x, lambda out: out)
    with pytest.raises(ValueError, match="energy_probes"):
        spectrum.inspect(network(), x, energy_probes=-1)

    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.hc = layers.HyperConnection(WIDTH)

        def forward(self, x):
            return x

    with pytest.raises(ValueError, match="none of its hyper-connections ran"):
        spectrum.inspect(Idle(), x)


@pytest.mark.parametrize("gate", ["softmax", "tanh"])
def test_entropies_of_fractions_are_those_of_statistics(gate):
    model = network(fractions=2, gate=gate, mixer="cayley")
    report = spectrum.inspect(model, torch.randn(TOKENS, STREAMS, WIDTH, dtype=torch.float64))
    for layer, told in zip(report, layers.statistics(model), strict=True):
        assert layer.read_entropy == pytest.approx(told.read_entropy.mean().item())
        assert layer.write_entropy == pytest.approx(told.write_entropy.mean().item())
    weights = model[0].gate.weighed
    assert weights == (2 * STREAMS if gate == "tanh" else STREAMS)
    assert math.exp(report[0].read_entropy * math.log(weights)) <= report[0].streams_read + 1e-9
