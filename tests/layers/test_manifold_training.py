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


def train(optimiser_of, steps, share, end):
    """Points that a static layer would have, and numbers of the token as tangent vectors at them."""
    torch.manual_seed(0)
    model = Network([layers.Manifold(4, manifold, tangent=True) for manifold in SETS.values()])
    start = [layer.mixer.base.detach().clone() for layer in model.layers]
    optimiser = optimiser_of(model)
    losses, farthest = [], [0.0] * len(start)
    for _ in range(steps):
        x = torch.randn(32, 8)
        target = torch.sin(3 * x.roll(1, -1))
        optimiser.zero_grad()
        loss = (model(x) - target).square().mean()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
        moved = [
            (layer.mixer.base.detach() - x).abs().max().item() for layer, x in zip(model.layers, start, strict=True)
        ]
        farthest = list(map(max, farthest, moved))
    assert sum(losses[-20:]) < share * sum(losses[:20])
    # A point may come back near its start: it does on the Stiefel manifold, 0.007 after two thousand steps of geoopt's.
    assert min(farthest) > 1e-2
    assert min(moved) > end
    for layer, name in zip(model.layers, SETS, strict=True):
        base, manifold = layer.mixer.base.detach(), layer.mixer.manifold
        assert isinstance(layer.mixer.base, manifolds.Parameter)
        assert manifold.point_error(base).max() < 1e-5, name
        assert layer.mixer.residual(layer.coefficients(torch.randn(4, 4, 8))[2]).max() < 1e-5, name


def ours(model):
    return optim.RiemannianAdam(optim.parameter_groups(model, lr=1e-2, weight_decay=0.01))


def geoopts(model):
    return geoopt.optim.RiemannianAdam(optim.parameter_groups(model, lr=1e-2, weight_decay=0.0))


@pytest.mark.parametrize("optimiser", [ours, geoopts])
def test_base_points_move_and_stay_on_their_manifolds(optimiser):
    train(optimiser, 100, share=0.8, end=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("optimiser", [ours, geoopts])
def test_base_points_stay_on_their_manifolds_for_two_thousand_steps(optimiser):
    train(optimiser, 2000, share=0.7, end=1e-3)
