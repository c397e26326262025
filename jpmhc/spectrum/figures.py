"""Figures fit for a paper: densities, and what an inspection found against depth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from jpmhc.spectrum.law import Law
from jpmhc.spectrum.pyplot import pyplot
from jpmhc.spectrum.report import Report
from jpmhc.spectrum.ticks import name_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, which everybody can tell apart; the measured is grey, the predicted the first.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
GREY = "0.78"
# What is smaller is zero to double precision.
_SMALLEST = 1e-12


def densities(
    ax: Axes,
    measured: Law | None,
    predicted: Mapping[str, Law | tuple[Tensor, Tensor]],
    *,
    log: bool = False,
    bins: int = 60,
    points: int = 300,
    limits: tuple[float, float] | None = None,
    histogram: str = "measured",
) -> Axes:
    """Draw predicted densities over the histogram of the measured singular values.

    Parameters
    ----------
    ax : matplotlib.axes.Axes
        Where to draw.
    measured : Law or None
        Drawn as a histogram.
    predicted : mapping of Law, or of places and densities
        By label; each a line of its own colour and dash.
    log : bool
        Densities of log s over a logarithmic axis.
    bins, points : int
        Of the histogram and of the lines.
    limits : (float, float), optional
        Of the axis; by default what holds all laws.
    histogram : str
        Label of the histogram.

    Returns
    -------
    matplotlib.axes.Axes
    """
    dashes: tuple[Any, ...] = ("solid", (0, (4, 1.5)), (0, (1, 1)))
    if measured is not None:
        measured.plot(ax, log=log, points=bins, label=histogram, color=GREY)
    heights = [ax.get_ylim()[1]] if measured is not None else []
    for i, (label, law) in enumerate(predicted.items()):
        style: dict[str, Any] = {
            "color": COLOURS[i % len(COLOURS)],
            "linestyle": dashes[i % len(dashes)],
            "linewidth": 1.6,
        }
        if isinstance(law, Law):
            law.plot(ax, log=log, points=points, label=label, **style)
        else:
            s, density = (part.detach() for part in law)
            ax.plot(s.numpy(), (s * density if log else density).numpy(), label=label, **style)
    if heights:
        # A peak far above the histogram would press everything else onto the axis.
        ax.set_ylim(0, min(ax.get_ylim()[1], 2.2 * heights[0]))
    if limits is not None:
        ax.set_xlim(*limits)
    elif log:
        # Twelve decades are more than a figure can tell; below lies zero to double precision.
        low, high = ax.get_xlim()
        ax.set_xlim(max(low, 1e-12 * high), high)
    if log:
        name_ticks(ax.xaxis, *ax.get_xlim())
    _plain(ax)
    return ax


def singular_values(ax: Axes, source: Report | Tensor, *, log: bool = True, products: bool = True) -> Axes:
    """Draw every ordered singular value of the mixers, and of their running products, against depth.

    Parameters
    ----------
    ax : matplotlib.axes.Axes
        Where to draw.
    source : Report or Tensor of shape (L, n, n)
        An inspection, whose values are means over tokens, or mixers, the first layer first.
    log, products : bool
        Logarithmic axis; whether to draw the products.

    Returns
    -------
    matplotlib.axes.Axes
    """
    # Lists of (layer, values of M, values of the product), one a chain.
    chains: list[list[tuple[int, Sequence[float], Sequence[float]]]] = []
    if isinstance(source, Report):
        for indices in _chains(source):
            chosen = [source[i] for i in indices]
            chains.append([(r.index + 1, r.singular_values, r.product_values) for r in chosen])
    else:
        mixers = source.detach().double()
        product, chain = torch.eye(mixers.shape[-1], dtype=torch.float64), []
        for l, matrix in enumerate(mixers):
            product = matrix @ product
            chain.append((l + 1, torch.linalg.svdvals(matrix).tolist(), torch.linalg.svdvals(product).tolist()))
        chains.append(chain)
    everything: list[float] = []
    labels = {1: "of M", 2: "of the product"}
    for which, colour in ((1, GREY), (2, COLOURS[0])) if products else ((1, GREY),):
        label = labels[which]
        for points in chains:
            for values in zip(*(point[which] for point in points), strict=True):
                everything += values
                line = [max(v, 1e-300) for v in values] if log else values
                depth = [point[0] for point in points]
                ax.plot(depth, line, color=colour, marker="o", markersize=2.5, linewidth=1.3, label=label)
                label = "_nolegend_"
    _depth(ax, "singular value", log, everything)
    return ax


def composite_gain(ax: Axes, report: Report, *, log: bool = True) -> Axes:
    """Draw the largest absolute row and column sums of the compositions up to, and from, every layer."""
    depth = range(1, len(report) + 1)
    lines = {
        "forward, up to the layer": [layer.forward_gain for layer in report],
        "backward, from the layer on": [layer.backward_gain for layer in report],
        "one layer": [layer.layer_forward_gain for layer in report],
    }
    for (label, values), colour, marker in zip(
        lines.items(), (COLOURS[0], COLOURS[1], "0.6"), ("o", "s", "x"), strict=True
    ):
        ax.plot(depth, values, color=colour, marker=marker, markersize=3, linewidth=1.3, label=label)
    _depth(ax, "composite gain", log, [v for values in lines.values() for v in values])
    return ax


def stream_similarity(ax: Axes, report: Report) -> Axes:
    """Draw the mean cosine between streams and the share of their energy outside their mean, at every layer's input."""
    depth = range(1, len(report) + 1)
    ax.plot(
        depth, [r.similarity for r in report], color=COLOURS[0], marker="o", markersize=3, label="cosine of two streams"
    )
    ax.plot(
        depth, [r.difference for r in report], color=COLOURS[2], marker="s", markersize=3, label="share in differences"
    )
    n = max(len(layer.singular_values) for layer in report)
    if n > 1:
        used = [(layer.effective_streams - 1) / (n - 1) for layer in report]
        ax.plot(depth, used, color=COLOURS[3], marker="^", markersize=3, label=f"streams in use, 1 to {n}")
    ax.set_ylim(min(0.0, *(layer.similarity for layer in report)) - 0.03, 1.03)
    _depth(ax, "of the streams", log=False)
    return ax


def gradient_norms(ax: Axes, report: Report, *, log: bool = True) -> Axes:
    """Draw the gradient's norm at every layer's streams and over its parameters."""
    lines = {
        "at the streams": [layer.gradient for layer in report],
        "over the parameters": [layer.parameter_gradient for layer in report],
    }
    known = [v for values in lines.values() for v in values if v is not None]
    for (label, values), colour, marker in zip(lines.items(), COLOURS[:2], "os", strict=True):
        points = [(i + 1, v) for i, v in enumerate(values) if v is not None]
        if points:
            ax.plot(*zip(*points, strict=True), color=colour, marker=marker, markersize=3, linewidth=1.3, label=label)
    _depth(ax, "gradient norm", log, known)
    return ax


def overview(report: Report, *, log: bool = True) -> Figure:
    """Draw the four panels of an inspection."""
    plt = pyplot()

    figure, axes = plt.subplots(2, 2, figsize=(8.6, 5.6), layout="constrained", sharex=True)
    singular_values(axes[0, 0], report, log=log)
    composite_gain(axes[0, 1], report, log=log)
    stream_similarity(axes[1, 0], report)
    gradient_norms(axes[1, 1], report, log=log)
    titles = ("Singular values", "Composite gain", "Streams at the input", "Gradients")
    for ax, title in zip(axes.flat, titles, strict=True):
        ax.set_title(title, fontsize=10, loc="left")
    for ax in axes[0]:
        ax.set_xlabel("")
    return figure


def prediction(law: Law, mixers: Tensor, drawn: Law | None = None, *, log: bool = True) -> Figure:
    """Draw a predicted density, over that of drawn Jacobians if there are any, beside the mixers' values by depth."""
    plt = pyplot()

    figure, (left, right) = plt.subplots(1, 2, figsize=(8.6, 3.2), layout="constrained")
    densities(left, drawn, {"predicted": law}, log=log, histogram="drawn")
    left.legend(fontsize=7.5, frameon=False)
    left.set_title("Jacobian", fontsize=10, loc="left")
    singular_values(right, mixers, log=log)
    right.set_title("Mixers alone", fontsize=10, loc="left")
    return figure


def _chains(report: Report) -> list[list[int]]:
    chains: dict[int, list[int]] = {}
    for layer in report:
        chains.setdefault(layer.chain, []).append(layer.index)
    return list(chains.values())


def _depth(ax: Axes, label: str, log: bool, values: Sequence[float] = ()) -> None:
    from matplotlib.ticker import MaxNLocator

    ax.set_xlabel("layer, in order of application")
    ax.set_ylabel(label)
    ax.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    if log:
        ax.set_yscale("log")
        shown = [value for value in values if value >= _SMALLEST]
        if shown and len(shown) < len(values):
            # Zeros are off the axis, and must not stretch it.
            ax.set_ylim(min(shown) / 3.2, 3.2 * max(shown))
        low, high = ax.get_ylim()
        if high / low < 10:
            # Less than a decade would show scatter as if it were drift.
            ax.set_ylim(low / 3.2, high * 3.2)
        name_ticks(ax.yaxis, *ax.get_ylim())
    _plain(ax)
    ax.legend(fontsize=7.5, frameon=False)


def _plain(ax: Axes) -> None:
    ax.grid(alpha=0.25, linewidth=0.6)
    ax.set_axisbelow(True)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
