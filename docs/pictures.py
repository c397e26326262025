"""Pictures of the mixers for their pages: the start, a typical matrix, and what is left of differences over depth."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import torch

from jpmhc import layers

STREAMS, DEPTH, DRAWS, SPREAD = 4, 24, 200, 1.0


def typical(mixer: layers.Mixer, count: int) -> torch.Tensor:
    """Matrices of raw numbers around the start; of random points where a mixer has no raw numbers but a point."""
    if isinstance(mixer, layers.Manifold):
        return mixer.manifold.embed(mixer.manifold.random(count, *mixer.base.shape, dtype=torch.float64))
    raw = mixer.start() + SPREAD * torch.randn(count, mixer.n_coefficients, dtype=torch.float64)
    return mixer(raw).detach()


def draw(name: str, file: Path) -> None:
    torch.manual_seed(0)
    mixer = layers.make_mixer(name, STREAMS)
    start, one = mixer(mixer.start()).detach(), typical(mixer, 1)[0]
    product, values = torch.eye(STREAMS, dtype=torch.float64).expand(DRAWS, STREAMS, STREAMS), []
    for _ in range(DEPTH):
        product = typical(mixer, DRAWS) @ product
        values.append(torch.linalg.svdvals(product).clamp_min(1e-12).log10().quantile(0.5, dim=0))
    figure, axes = plt.subplots(1, 3, figsize=(9, 2.7), width_ratios=(1, 1, 1.6), layout="constrained")
    for axis, matrix, title in zip(axes[:2], (start, one), ("at the start", "typical"), strict=True):
        axis.imshow(matrix, cmap="RdBu_r", vmin=-1, vmax=1)
        for i in range(STREAMS):
            for j in range(STREAMS):
                dark = abs(matrix[i, j]) > 0.6
                axis.text(
                    j, i, f"{matrix[i, j]:z.2f}", ha="center", va="center", color="w" if dark else "k", fontsize=8
                )
        found = ", ".join(f"{value:.2f}" for value in torch.linalg.svdvals(matrix))
        axis.set(title=title, xlabel=f"singular values\n{found}", xticks=[], yticks=[])
    for k, line in enumerate(torch.stack(values, 1)):
        # Where values are equal, the wider lines show behind the narrower.
        width = 1.0 + 1.2 * (STREAMS - 1 - k)
        axes[2].plot(range(1, DEPTH + 1), 10**line, linewidth=width, label=f"$\\sigma_{k + 1}$")
    axes[2].set(yscale="log", ylim=(5e-7, 2e3), xlabel="matrices in the product", title="singular values of products")
    axes[2].grid(alpha=0.3)
    axes[2].legend(fontsize=8, ncols=2)
    figure.savefig(file, dpi=110)
    plt.close(figure)


def draw_all(folder: Path) -> None:
    """Draw every mixer into a folder; what is there already stays."""
    folder.mkdir(parents=True, exist_ok=True)
    for info in layers.mixers():
        file = folder / f"{info.name}.png"
        if not file.exists():
            draw(info.name, file)
