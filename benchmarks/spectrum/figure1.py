"""The first figure of JPmHC: isotropic noise on mixers alike in all layers, drawn and predicted in two ways."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.extras import require
from benchmarks.spectrum.accuracy import error
from benchmarks.spectrum.mixers import STREAMS, draw
from benchmarks.spectrum.timing import timed
from jpmhc import spectrum

# The paper's validation panel: 4 streams of width 25, noise of 0.05 over all layers, its numbers of draws.
WIDTH, LOAD = 25, 0.05
DRAWS = {1: 300, 2: 200, 10: 100}
# The paper smears by 0.02, which is not the recipe's fault.
PLACES, ETA = 200, 2e-3
_NEAR_ZERO = 0.03
FAMILIES = ("identity", "bistochastic", "cayley", "projector")


@dataclass(frozen=True)
class Panel:
    """One cell of the figure; ``published`` is density at ``places``."""

    family: str
    depth: int
    drawn: spectrum.MeasuredLaw
    ours: spectrum.Law
    places: Tensor
    published: Tensor


def run(quick: bool, panels: list[Panel] | None = None) -> dict[str, Any]:
    """Compare both predictions with the drawn singular values.

    Parameters
    ----------
    quick : bool
        A tenth of the draws.
    panels : list, optional
        Gets the cells, for `figure`.

    Returns
    -------
    dict
        JSON-able: ``rows`` of mixer, layers, Kolmogorov distance of ours and of the published recipe (its density
        integrated), mean error of log s and relative error of the median of ours (of any median, where one lies in
        a gap), seconds of each and of the draws.
        Ours is solved at some 300 places and the quantiles, the recipe at `PLACES`.
    """
    rows = []
    for depth, draws in DRAWS.items():
        for family in FAMILIES:
            mixers, energy = draw(family, depth, alike=True), LOAD / depth
            count = max(1, draws // 10) if quick else draws
            options = {"energy": energy, "branch": "isotropic"}
            drawn, draw_s = timed(lambda m=mixers, o=options, c=count: spectrum.simulate(m, **o, width=WIDTH, draws=c))
            law = spectrum.predict(mixers, **options)
            ours, ours_s = timed(lambda law=law, drawn=drawn: spectrum.compare(law, drawn))
            # To where the smeared density has fallen.
            places = torch.linspace(2e-3, 1.5 * drawn.edges[1], PLACES, dtype=torch.float64)
            density, published_s = timed(lambda m=mixers, v=energy, s=places: spectrum.published(m, v, s, eta=ETA))
            rows.append(
                {
                    "mixer": family,
                    "layers": depth,
                    "kolmogorov": ours.kolmogorov,
                    "published_kolmogorov": kolmogorov(places, density, drawn),
                    "mean_log_error": ours.wasserstein_log,
                    "median_percent": 100 * error(0.5, ours.predicted_quantiles[2], drawn, law.floor),
                    "predict_s": ours_s,
                    "published_s": published_s,
                    "draw_s": draw_s,
                }
            )
            if panels is not None:
                panels.append(Panel(family, depth, drawn, law, places, density))
    return {"streams": STREAMS, "width": WIDTH, "load": LOAD, "rows": rows}


def kolmogorov(places: Tensor, density: Tensor, drawn: spectrum.Law) -> float:
    """Return the largest distance of a law from one of which the density at ascending places is known.

    Up to a tenth of the places may be NaN and are interpolated, as the paper does; beyond that the result is NaN.

    Examples
    --------
    >>> law = spectrum.measure(lambda x: x * torch.linspace(0, 1, 101), torch.zeros(101))
    >>> s = torch.linspace(0, 1, 101, dtype=torch.float64)
    >>> round(kolmogorov(s, torch.ones_like(s), law), 2)
    0.01
    """
    known = ~density.isnan()
    if known.double().mean() < 0.9:
        return math.nan
    places, density = places[known], density[known]
    steps = (density[1:] + density[:-1]) / 2 * places.diff()
    below = torch.cat([density[:1] * places[:1] / 2, steps]).cumsum(0)
    return float((below - drawn.cdf(places)).abs().max())


def figure(panels: list[Panel], path: Path) -> None:
    """Draw the cells, one row a depth and one column a family, as the paper does."""
    figure_module = require("matplotlib.figure", "bench")
    from jpmhc.spectrum import figures

    depths, families = list(dict.fromkeys(p.depth for p in panels)), list(dict.fromkeys(p.family for p in panels))
    drawing = figure_module.Figure(figsize=(2.5 * len(families), 2.0 * len(depths)), layout="constrained")
    axes = drawing.subplots(len(depths), len(families), squeeze=False)
    for cell in panels:
        row, column = depths.index(cell.depth), families.index(cell.family)
        ax = axes[row, column]
        top = 1.1 * float(cell.drawn.quantile(1.0))
        laws = {"predicted": cell.ours, "published recipe": (cell.places, cell.published)}
        figures.densities(ax, cell.drawn, laws, limits=(0, top), histogram="drawn")
        near_zero = float(cell.drawn.cdf(_NEAR_ZERO * top))
        if near_zero > 0.2:
            # A spike at zero would flatten everything else.
            rest = cell.drawn.density(torch.linspace(_NEAR_ZERO * top, top, 200, dtype=torch.float64))
            ax.set_ylim(0, 1.5 * float(rest.max()))
            ax.annotate(f"{100 * near_zero:.0f} % near 0", (0.05, 0.9), xycoords="axes fraction", fontsize=8)
        ax.set(xlabel="", ylabel="", title=cell.family if row == 0 else "")
        if column == 0:
            ax.set_ylabel(f"L = {cell.depth}")
        if row == len(depths) - 1:
            ax.set_xlabel("singular value s")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    drawing.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False, fontsize=9)
    drawing.savefig(path, dpi=160)
