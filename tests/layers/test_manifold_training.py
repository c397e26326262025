"""Base points of mixers stay on their manifolds however long a Riemannian optimiser moves them, ours or geoopt's."""

import geoopt
import pytest
import torch
from torch import nn

from jpmhc import layers, manifolds, optim

# A doubly stochastic matrix learns nothing in the first layer, where all streams are equal.
SETS = {
    "stiefel": manifolds.Stiefel(),
    "birkhoff": manifolds.Birkhoff(),
    "rotations": manifolds.SpecialOrthogonal(),
    "grassmann": manifolds.Grassmann(),
}


class Network(nn.Module):
    def __init__(self, mixers):
        super().__init__()
        self.layers = nn.ModuleList(
            layers.HyperConnection(
                8, nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 8)), mixer=mixer, layer_index=i
            )
            for i, mixer in enumerate(mixers)
        )

    def forward(self, x):
        x = layers.expand_streams(x, 4)
        for layer in self.layers:
            x = layer(x)
        return layers.reduce_streams(x)


def train(optimiser_of, steps, share):
    """Points that a static layer would have, and numbers of the token as tangent vectors at them."""
    torch.manual_seed(0)
    model = Network([layers.Manifold(4, manifold, tangent=True) for manifold in SETS.values()])
    start = [layer.mixer.base.detach().clone() for layer in model.layers]
    optimiser = optimiser_of(model)
    losses = []
    for _ in range(steps):
        x = torch.randn(32, 8)
        target = torch.sin(3 * x.roll(1, -1))
        optimiser.zero_grad()
        loss = (model(x) - target).square().mean()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert sum(losses[-20:]) < share * sum(losses[:20])
    for layer, before, name in zip(model.layers, start, SETS, strict=True):
        base, manifold = layer.mixer.base.detach(), layer.mixer.manifold
        assert isinstance(layer.mixer.base, manifolds.Parameter)
        assert (base - before).abs().max() > 1e-2, name
        assert manifold.point_error(base).max() < 1e-5, name
        assert layer.mixer.residual(layer.coefficients(torch.randn(4, 4, 8))[2]).max() < 1e-5, name


def ours(model):
    return optim.RiemannianAdam(optim.parameter_groups(model, lr=1e-2, weight_decay=0.01))


def geoopts(model):
    return geoopt.optim.RiemannianAdam(optim.parameter_groups(model, lr=1e-2, weight_decay=0.0))


@pytest.mark.parametrize("optimiser", [ours, geoopts])
def test_base_points_move_and_stay_on_their_manifolds(optimiser):
    train(optimiser, 100, 0.8)


@pytest.mark.slow
@pytest.mark.parametrize("optimiser", [ours, geoopts])
def test_base_points_stay_on_their_manifolds_for_two_thousand_steps(optimiser):
    train(optimiser, 2000, 0.7)
