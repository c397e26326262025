import math

import numpy as np
import pytest
import torch
from torch import nn

from jpmhc import layers, spectrum
from tests.spectrum.jacobians import gates, mixers

LAYERS, STREAMS, WIDTH, DRAWS = 5, 3, 100, 40


def setting():
    read, write = gates("random", LAYERS, STREAMS)
    return mixers("free", LAYERS, STREAMS), read, 0.3 * write


def mean_of_draws(*args, width=WIDTH):
    """Energies of the branches and Gram matrices of random networks, from the definition."""
    draws = (run(*args, seed, width) for seed in range(DRAWS))
    return (torch.stack(values).mean(0) for values in zip(*draws, strict=True))


def run(M, read, write, phi, first, second, norm, seed, width=WIDTH):
    generator = torch.Generator().manual_seed(seed)

    def matrix(rows, columns, variance):
        return (variance / columns) ** 0.5 * torch.randn(rows, columns, generator=generator, dtype=torch.float64)

    n = M.shape[-1]
    x = torch.randn(width, generator=generator, dtype=torch.float64)
    # Of mean zero: the outputs of a ReLU are not.
    x = (x - x.mean()).expand(n, width) / x.std(correction=0)
    energies, grams = [], [x @ x.mT / width]
    for l in range(len(M)):
        u = x.reshape(-1) if read is None else read[l] @ x
        scale = u.square().mean().rsqrt() if norm else 1.0
        W = matrix(len(u), len(u), first)
        h = (W @ (u * scale)).requires_grad_()
        y = phi(h)
        (slopes,) = torch.autograd.grad(y.sum(), h)
        X, y = scale * slopes[:, None] * W, y.detach()
        if second is not None:
            V = matrix(len(u), len(u), second)
            X, y = V @ X, V @ y
        energies.append(X.square().sum() / len(u))
        x = M[l] @ x + (y.view_as(x) if write is None else write[l][:, None] * y)
        grams.append(x @ x.mT / width)
    return torch.stack(energies), torch.stack(grams)


@pytest.mark.parametrize(
    ("name", "phi", "second", "norm"),
    [
        ("relu", torch.relu, 0.5, False),
        ("relu", torch.relu, None, False),
        ("gelu", nn.functional.gelu, 0.7, True),
        ("tanh", torch.tanh, None, True),
    ],
)
def test_energies_and_grams_are_those_of_a_wide_random_network(name, phi, second, norm):
    M, read, write = setting()
    found = spectrum.propagate(M, read, write, activation=name, weight_variance=1.7, output_variance=second, norm=norm)
    # Energies behind a norm scatter by 3 % over draws of width 100.
    energies, grams = mean_of_draws(M, read, write, phi, 1.7, second, norm, width=400)
    assert torch.allclose(found.energy, energies, rtol=0.03)
    assert float((found.gram - grams).abs().max()) < 0.04 * float(grams.abs().max())


def test_a_branch_on_all_streams_too():
    M = 0.8 * mixers("free", LAYERS, STREAMS)
    found = spectrum.propagate(M, activation="relu", weight_variance=0.6)
    energies, grams = mean_of_draws(M, None, None, torch.relu, 0.6, None, False)
    assert torch.allclose(found.energy, energies, rtol=0.03)
    assert float((found.gram - grams).abs().max()) < 0.04 * float(grams.abs().max())


@pytest.mark.parametrize(("name", "phi"), [("tanh", np.tanh), ("linear", np.asarray)])
def test_expectations_are_those_of_gauss_and_hermite(name, phi):
    # psi and kappa by a hundred nodes, as the paper takes them; derivatives by differences.
    nodes, weights = np.polynomial.hermite_e.hermegauss(100)
    weights = weights / weights.sum()
    q = 0.8
    psi = weights @ ((phi(q**0.5 * nodes + 1e-5) - phi(q**0.5 * nodes - 1e-5)) / 2e-5) ** 2
    kappa = weights @ phi(q**0.5 * nodes) ** 2
    found = spectrum.propagate(torch.zeros(1, 1, 1), [1.0], [1.0], activation=name, weight_variance=q)
    assert float(found.variance) == pytest.approx(q)
    assert float(found.energy) == pytest.approx(q * psi, rel=1e-7)
    assert float(found.gram[1]) == pytest.approx(kappa, rel=1e-9)


def test_moments_of_a_relu_are_exact():
    found = spectrum.propagate(torch.ones(1, 1, 1), [1.0], [1.0], activation="relu", weight_variance=3.0)
    assert float(found.energy) == pytest.approx(1.5, rel=1e-12)
    # Mean sqrt(3 / 2 pi) beside streams of mean zero, mean square 3 / 2.
    assert float(found.gram[1]) == pytest.approx(1 + 1.5, rel=1e-12)
    twice = spectrum.propagate(torch.ones(2, 1, 1), [1.0], [1.0], activation="relu", weight_variance=3.0)
    levels = (3 / (2 * math.pi)) ** 0.5, (3 * 2.5 / (2 * math.pi)) ** 0.5
    assert float(twice.gram[2]) == pytest.approx(2.5 + 3.75 + 2 * levels[0] * levels[1], rel=1e-12)


@pytest.mark.parametrize("variance", [1.0, 1e2, 1e4, 1e6, 1e8, 1e16])
def test_a_saturating_activation_keeps_its_slope_at_any_variance(variance):
    # E q sech^4(sqrt(q) Z) over the pre-activation, whose scale the slope has.
    y = np.linspace(-30, 30, 200001)
    density = np.exp(-(y**2) / (2 * variance)) / math.sqrt(2 * math.pi * variance)
    expected = variance * np.trapezoid(np.cosh(y) ** -4 * density, y)
    found = spectrum.propagate(torch.zeros(1, 1, 1), [1.0], [1.0], activation="tanh", weight_variance=variance)
    assert float(found.energy) == pytest.approx(expected, rel=1e-9)
    if variance > 1e3:
        assert float(found.energy) == pytest.approx(4 / 3 * (variance / (2 * math.pi)) ** 0.5, rel=1e-3)
    linear = spectrum.propagate(torch.zeros(1, 1, 1), [1.0], [1.0], activation="linear", weight_variance=variance)
    assert float(linear.gram[1]) == pytest.approx(variance, rel=1e-12)


@pytest.mark.parametrize("layer", [0, 1])
def test_a_norm_of_streams_that_cancel_is_refused(layer):
    read = torch.tensor([[1.0, 1.0], [1.0, 1.0]])
    read[layer] = torch.tensor([1.0, -1.0])
    given = {"mixers": torch.eye(2).expand(2, 2, 2), "read": read, "write": torch.ones(2)}
    with pytest.raises(ValueError, match=f"read: expected something to divide by .* in layer {layer} the streams"):
        spectrum.propagate(**given, norm=True)
    assert float(spectrum.propagate(**given).variance[layer]) == pytest.approx(0, abs=1e-12)


def test_energies_carry_derivatives():
    M, read, write = setting()
    variance = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
    read = read.clone().requires_grad_()

    def total(v, r):
        return spectrum.propagate(M, r, write, activation="tanh", weight_variance=v).energy.sum()

    assert torch.autograd.gradcheck(total, (variance, read))


def test_measured_energies_are_those_of_the_branches():
    torch.manual_seed(0)
    branches = [nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(3)]
    model = nn.Sequential(*(layers.HyperConnection(8, b, layer_index=i) for i, b in enumerate(branches))).double()
    x = torch.randn(20, 4, 8, dtype=torch.float64)
    found = spectrum.branch_energies(model, x, probes=60)
    expected = []
    for layer in model:
        u, _ = layer.read(x)
        jacobians = torch.func.vmap(torch.func.jacrev(layer.branch))(u.detach())
        expected.append(jacobians.square().sum((-2, -1)).mean() / 8)
        x = layer(x)
    assert torch.allclose(found, torch.stack(expected).detach(), rtol=0.06)


def test_the_prediction_from_signal_propagation_is_the_measured_law():
    # Feed-forward branches with a norm in real hyper-connections, at their start.
    torch.manual_seed(0)
    depth, width = 6, 128

    def branch():
        first, second = nn.Linear(width, 2 * width, bias=False), nn.Linear(2 * width, width, bias=False)
        nn.init.normal_(first.weight, std=(2 / width) ** 0.5)
        nn.init.normal_(second.weight, std=(0.4 / (2 * width)) ** 0.5)
        return nn.Sequential(nn.RMSNorm(width), first, nn.ReLU(), second)

    model = nn.Sequential(
        *(layers.HyperConnection(width, branch(), mixer="cayley", dynamic=False, layer_index=i) for i in range(depth))
    ).double()
    x = layers.expand_streams(torch.randn(16, width, dtype=torch.float64), 4)
    chain = spectrum.initial_chain("cayley", 4, depth)
    found = spectrum.propagate(**chain, activation="relu", weight_variance=2.0, output_variance=0.4, norm=True)
    assert torch.allclose(found.energy, spectrum.branch_energies(model, x), rtol=0.15)
    law = spectrum.predict(**chain, energy=found.energy, branch=spectrum.Hidden(1.0))
    assert spectrum.compare(law, spectrum.measure(model, x[0])).kolmogorov < 0.03


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"activation": "swish"},
            "activation: expected one of relu, gelu, silu, tanh, linear or a function, got 'swish'",
        ),
        ({"weight_variance": -1.0}, "weight_variance: expected finite numbers >= 0, got -1"),
        ({"weight_variance": [1.0, 2.0, 3.0]}, "weight_variance: expected one number or one for each of 2 layers"),
        ({"output_variance": math.nan}, "output_variance: expected finite numbers >= 0"),
        ({"start": torch.ones(2, 2)}, r"start: expected finite numbers of shape \(4, 4\), got \(2, 2\)"),
        ({"start": -torch.eye(4)}, "start: expected a symmetric positive semidefinite matrix"),
        ({"read": None}, "read: expected weights of shape"),
    ],
)
def test_bad_input_is_named(change, message):
    given = {"mixers": torch.eye(4).expand(2, 4, 4), "read": torch.ones(4), "write": torch.ones(4)}
    with pytest.raises(ValueError, match=message):
        spectrum.propagate(**{**given, **change})


def test_measuring_needs_a_probe_and_modules():
    model = nn.Sequential(layers.HyperConnection(8, lambda u: u))
    with pytest.raises(ValueError, match="probes: expected an integer of at least 1, got 0"):
        spectrum.branch_energies(model, torch.randn(2, 4, 8), probes=0)
    with pytest.raises(ValueError, match="is no module, so its energy cannot be measured"):
        spectrum.branch_energies(model, torch.randn(2, 4, 8))


class Outer(nn.Module):
    """Takes what lies along one direction, so that its Jacobian has rank one; or everything."""

    def __init__(self, whole):
        super().__init__()
        self.whole, self.weight = whole, nn.Parameter(torch.full((64,), 1 / 8))

    def forward(self, u):
        return 8 * self.weight * u if self.whole else (u @ self.weight)[..., None] * self.weight


@pytest.mark.parametrize("whole", [False, True])
def test_energies_vary_between_probes_as_documented(whole):
    model = nn.Sequential(layers.HyperConnection(64, Outer(whole)))
    x = torch.randn(1, 4, 64, generator=torch.Generator().manual_seed(0))
    draws = torch.cat([spectrum.branch_energies(model, x, probes=4, seed=seed) for seed in range(300)])
    deviation = float(draws.std() / draws.mean())
    assert deviation == pytest.approx((2 / (4 * 64 if whole else 4)) ** 0.5, rel=0.15)
