"""
Spectra of Jacobians, predicted and measured
============================================

What a skip matrix does to a deep product of layers is written in the singular values of the Jacobian. They can be
measured on a network, drawn at random, or predicted from the mixers alone; this page does all three.
"""

# %%
# A network, measured
# -------------------
# Sixteen layers of four streams, their mixers moved away from the start as training would. All singular values of the
# dense Jacobian, and their distribution from products with vectors alone, which is what a large model allows.

import matplotlib.pyplot as plt
import torch
from torch import nn

from jpmhc import layers, spectrum
from jpmhc.spectrum import figures

WIDTH = 48


def network(mixer, depth=16):
    torch.manual_seed(0)
    stack = []
    for index in range(depth):
        branch = nn.Sequential(nn.RMSNorm(WIDTH), nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))
        stack.append(layers.HyperConnection(WIDTH, branch, mixer=mixer, dynamic=False, layer_index=index))
    model = nn.Sequential(*stack)
    with torch.no_grad():
        for parameter in layers.mixing_parameters(model):
            parameter.add_(0.5 * torch.randn_like(parameter))
    return model


x = torch.randn(4, WIDTH)
models = {mixer: network(mixer) for mixer in ("sinkhorn", "cayley")}
measured = {mixer: spectrum.measure(model, x) for mixer, model in models.items()}
for mixer, model in models.items():
    print(f"{mixer:9} {measured[mixer]}")
    print(f"{'':9} {spectrum.measure(model, x, method='lanczos')}")

# %%
# The same network, predicted
# ---------------------------
# An inspection gives the mixers, the gates and the energies of the branches. The prediction knows nothing else: neither
# the weights nor the input. It is exact for wide branches with two independent layers around the activation.

figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
for ax, (mixer, model) in zip(axes, models.items(), strict=True):
    report = spectrum.inspect(model, x, energy_probes=16)
    law = spectrum.predict(**report.chain(), branch=spectrum.Hidden(2.0))
    comparison = spectrum.compare(law, measured[mixer])
    print(f"{mixer}\n{comparison}")
    comparison.plot(ax, log=True, points=60, bins=40)
    ax.set_title(mixer)

# %%
# What the mixers do
# ------------------
# The bistochastic mixers forget the differences between the streams, and their product is the mean over streams after a
# few layers; the rotations keep them.

spectrum.inspect(models["sinkhorn"], x).plot()
plt.show()

# %%
# The first figure of the paper
# -----------------------------
# JPmHC (arXiv 2602.18308) predicts the spectra of ``prod (M (x) I + noise)`` by free probability. For one layer it is
# right. For several, its recipe composes laws as if the layers were free of one another; mixers alike in all layers are
# not: they share their singular vectors. Solving for all layers at once is right at every depth.

generator = torch.Generator().manual_seed(0)


def mixer_matrix(name):
    chart = layers.make_mixer(name, 4)
    return chart(torch.randn(chart.n_coefficients, generator=generator, dtype=torch.float64))


# ``python -m benchmarks spectrum`` draws all rows and columns.
columns = {"bistochastic": mixer_matrix("sinkhorn"), "rotation": mixer_matrix("cayley")}
depths = {1: 30, 2: 20, 10: 10}
figure, axes = plt.subplots(len(depths), len(columns), figsize=(7, 6), layout="constrained")
for row, (depth, draws) in zip(axes, depths.items(), strict=True):
    for ax, (name, matrix) in zip(row, columns.items(), strict=True):
        model = {"mixers": matrix.expand(depth, 4, 4), "energy": 0.05 / depth}
        drawn = spectrum.simulate(**model, branch="isotropic", width=25, draws=draws)
        top = 1.1 * drawn.edges[1]
        s = torch.linspace(2e-3, top, 80, dtype=torch.float64)
        recipe = s, spectrum.published(matrix.expand(depth, 4, 4), 0.05 / depth, s, eta=2e-3)
        laws = {"predicted": spectrum.predict(**model, branch="isotropic"), "as published": recipe}
        figures.densities(ax, drawn, laws, points=80, limits=(0, top), histogram="drawn")
        ax.set(xlabel="singular value" if depth == 10 else "", ylabel=f"L = {depth}" if name == "bistochastic" else "")
        ax.set_title(name if depth == 1 else "")
        bulk = drawn.density(torch.linspace(0.03 * top, top, 100, dtype=torch.float64)).max()
        ax.set_ylim(0, 1.5 * float(bulk))
axes[0, 0].legend(frameon=False, fontsize=8)
plt.show()
