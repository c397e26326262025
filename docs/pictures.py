"""Pictures of the mixers for their pages: the start, a typical matrix, and what is left of differences over depth.

And the kernels' times beside their floors, from the committed results.
"""

from __future__ import annotations

import json
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


def draw_roofline(results: Path, file: Path) -> None:
    """Draw every kernel's time and floor, the time that moving its bytes once takes, from a result of the benchmark."""
    part = json.loads(results.read_text())["parts"]["roofline"]
    rows = part["rows"]
    figure, axis = plt.subplots(figsize=(8, 0.9 + 0.34 * len(rows)), layout="constrained")
    for place, row in enumerate(rows):
        axis.plot([row["floor_ms"], row["ms"]], [place, place], color="0.75", linewidth=2, zorder=1)
        axis.text(row["ms"] * 1.15, place, f"{row['reached']:.0%}", va="center", fontsize=8)
    places = range(len(rows))
    axis.scatter([row["floor_ms"] for row in rows], places, marker="|", s=120, color="k", label="floor", zorder=2)
    axis.scatter([row["ms"] for row in rows], places, color="tab:blue", label="measured", zorder=2)
    names = [f"{row['kernel']}  {' x '.join(map(str, row['shape']))}" for row in rows]
    axis.set_yticks(places, names, fontsize=8)
    axis.set(xscale="log", xlabel="milliseconds", ylim=(len(rows) - 0.5, -0.5))
    axis.set_xlim(right=3 * max(row["ms"] for row in rows))
    where = f"{part['device']}, {rows[0]['dtype']}, {part['threads']} thread"
    axis.set_title(f"{where}: time, and the share of it that the floor is", fontsize=9)
    axis.grid(axis="x", alpha=0.3)
    axis.legend(fontsize=8, loc="upper right")
    figure.savefig(file, dpi=110)
    plt.close(figure)
