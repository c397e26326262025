"""
What the mixers do to differences between streams
=================================================

A mixer is judged by what it does to the *differences* of the streams when many layers follow one another. Here every
mixer of the library gets random raw numbers of size one around its start, and the singular values of a product of 24
such matrices show what is left: a value of one is a difference that came through, a small one is forgotten, a large one
has exploded.
"""

import matplotlib.pyplot as plt
import torch

from jpmhc import layers

torch.manual_seed(0)
streams, depth, draws = 4, 24, 200


def matrices(mixer):
    if isinstance(mixer, layers.Manifold):  # no raw numbers: random points of its manifold
        return mixer.manifold.random(draws, *mixer.base.shape, dtype=torch.float64)
    raw = mixer.start() + torch.randn(draws, mixer.n_coefficients, dtype=torch.float64)
    return mixer(raw).detach()


names = [str(info) for info in layers.mixers() if info.supports(streams)]
single, products = {}, {}
for name in names:
    mixer = layers.make_mixer(name, streams)
    product = torch.eye(streams, dtype=torch.float64).expand(draws, streams, streams)
    for _ in range(depth):
        last = matrices(mixer)
        product = last @ product
    single[name] = torch.linalg.svdvals(last).quantile(0.5, dim=0)
    products[name] = torch.linalg.svdvals(product).quantile(0.5, dim=0)
    kept = " ".join(f"{value:9.2e}" for value in products[name])
    print(f"{name:16} one matrix {' '.join(f'{v:.2f}' for v in single[name])}   product {kept}")

# %%
# Rotations (``cayley``, ``quaternion``, ``cayley-mean``, points of SO(n)) keep all four; doubly stochastic matrices
# keep the mean of the streams and forget the rest at a rate that differs from chart to chart; ``free`` grows.
# ``grassmann`` erases two directions at once and turns the rest away from one another. ``reflection`` is a rotation
# times a factor that shrinks one direction. The published Cayley iteration follows the exact one while raw numbers
# are this small.

figure, axes = plt.subplots(1, 2, figsize=(10, 4.6), layout="constrained", sharey=True)
for axis, values, title in zip(axes, (single, products), ("one matrix", f"product of {depth}"), strict=True):
    for row, name in enumerate(names):
        axis.scatter(values[name].clamp_min(1e-9), [row] * streams, s=30)
    axis.axvline(1, color="0.7", zorder=0)
    axis.set(xscale="log", xlabel="singular value (median over draws)", title=title)
    axis.grid(alpha=0.3)
axes[0].set_yticks(range(len(names)), names)
axes[0].invert_yaxis()
plt.show()
