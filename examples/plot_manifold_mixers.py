"""
A mixer without a chart: points on a manifold, moved by a Riemannian optimiser
==============================================================================

A chart makes a mixer of raw numbers that any optimiser may change. ``mixer="manifold"`` does without: the matrix itself
is the parameter, a point on a manifold, and :class:`~jpmhc.optim.RiemannianAdam` moves it along the manifold while
everything else in the model gets AdamW. Here both ways train the same small network, on rotations, on doubly stochastic
matrices and on projectors onto a subspace, and a third run shows what an ordinary optimiser does to a point.
"""

import matplotlib.pyplot as plt
import torch
from torch import nn

from jpmhc import layers, manifolds, optim

# %%
# A network that applies one layer six times, like a recursive model: its static mixer is composed with itself, so it
# matters. The task is a fixed nonlinear map of twelve numbers.

width, streams, repeats, steps = 12, 4, 6, 80
torch.manual_seed(0)
teacher = torch.randn(width, width) / width**0.5


class Recursive(nn.Module):
    def __init__(self, mixer):
        super().__init__()
        torch.manual_seed(1)
        branch = nn.Sequential(nn.Linear(width, 32), nn.Tanh(), nn.Linear(32, width))
        self.layer = layers.HyperConnection(width, branch, streams=streams, mixer=mixer, dynamic=False)

    def forward(self, x):
        x = layers.expand_streams(x, streams)
        for _ in range(repeats):
            x = self.layer(x)
        return layers.reduce_streams(x)

    def matrix(self):
        return self.layer.coefficients(torch.zeros(streams, width))[2].detach()


def train(mixer, make):
    model = Recursive(mixer)
    optimiser = make(model)
    torch.manual_seed(2)
    losses, residuals = [], []
    for _ in range(steps):
        x = torch.randn(64, width)
        loss = (model(x) - torch.sin(3 * x @ teacher)).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
        residuals.append(model.layer.mixer.residual(model.matrix()).item())
    return losses, residuals, model.matrix()


def riemannian(model):
    return optim.RiemannianAdam(optim.parameter_groups(model, lr=5e-3, weight_decay=0.01))


def ordinary(model):
    return torch.optim.AdamW(optim.parameter_groups(model, lr=5e-3, weight_decay=0.01))


# %%
# Each set three times: its chart with AdamW, a point on it with RiemannianAdam, and the same point with AdamW.

runs = {
    ("rotations", "chart (cayley), AdamW"): ("cayley", ordinary),
    ("rotations", "point, RiemannianAdam"): (layers.Manifold(streams, manifolds.SpecialOrthogonal()), riemannian),
    ("rotations", "point, AdamW"): (layers.Manifold(streams, manifolds.SpecialOrthogonal()), ordinary),
    ("doubly stochastic", "chart (sinkhorn), AdamW"): ("sinkhorn", ordinary),
    ("doubly stochastic", "point, RiemannianAdam"): (layers.Manifold(streams, manifolds.Birkhoff()), riemannian),
    ("doubly stochastic", "point, AdamW"): (layers.Manifold(streams, manifolds.Birkhoff()), ordinary),
    ("projectors", "chart (grassmann), AdamW"): ("grassmann", ordinary),
    ("projectors", "point, RiemannianAdam"): (layers.Grassmann(streams, stored=True), riemannian),
    ("projectors", "point, AdamW"): (layers.Grassmann(streams, stored=True), ordinary),
}
results = {}
for key, (mixer, make) in runs.items():
    results[key] = train(mixer, make)
    losses, residuals, _ = results[key]
    print(f"{key[0]:18} {key[1]:25} loss {sum(losses[-20:]) / 20:.4f}, off the set by {residuals[-1]:.1e}")

# %%
# The chart and the point on its manifold find similar losses: for one small static matrix the choice is a matter of
# taste. What differs is who keeps the constraint. The chart cannot leave its set, the Riemannian optimiser does not,
# and an ordinary one walks off it at once; the layer then runs with whatever the matrix has become. Always give
# ``optim.parameter_groups(model)`` to an optimiser of ``jpmhc.optim`` or geoopt where a model holds such points.

figure, axes = plt.subplots(2, 3, figsize=(11, 6), layout="constrained", sharex=True)
for (title, name), (losses, residuals, _) in results.items():
    column = ["rotations", "doubly stochastic", "projectors"].index(title)
    smooth = torch.tensor(losses).unfold(0, 10, 1).mean(-1)
    axes[0, column].plot(range(9, steps), smooth, label=name)
    axes[1, column].semilogy([max(r, 1e-8) for r in residuals], label=name)
    axes[0, column].set(title=title, yscale="log")
axes[0, 0].set(ylabel="loss, mean of ten steps")
axes[1, 0].set(ylabel="distance from the set")
for column in range(3):
    axes[1, column].set(xlabel="step")
    axes[0, column].legend(fontsize=8)
plt.show()
