"""Predictions of reading and writing layers against drawn Jacobians: how right, and in what time."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from benchmarks.spectrum.mixers import FAMILIES, STREAMS, draw, gates
from benchmarks.spectrum.timing import timed
from jpmhc import spectrum

# Energy of all branches together, per direction: the scalar law of this load has condition number 8.
LOAD = 0.5
DEPTHS = (1, 2, 10, 50)
# Jacobians of that width that are drawn and pooled; four of half the width cost half as much as one.
DRAWS = {256: 4, 512: 1}
# How far from its level a quantile may be: two values of a draw of width 256.
_LEVEL = 0.002
# The transform is compared at so many places of the bulk, seen under this angle from the axis.
_PLACES, _ANGLE = 13, 0.1
# What counts as right: median error of the transform, Kolmogorov distance, quantiles inside and the outer two.
_TRANSFORM, _KOLMOGOROV, _INSIDE, _OUTSIDE = 0.5, 0.02, 3.0, 5.0


def run(quick: bool) -> dict[str, Any]:
    """Compare transforms, distribution functions and quantiles for mixers and gates alike in all layers and not.

    Parameters
    ----------
    quick : bool
        One draw of width 64, at most ten layers, three families.

    Returns
    -------
    dict
        JSON-able: ``rows`` of mixer, layers, whether they are alike, width, median relative error of the transform in
        the bulk in percent, Kolmogorov distance, relative errors of the quantiles 1, 10, 50, 90 and 99 % in percent,
        whether all are as small as asked (half a percent, 0.02, 3 % and 5 % at the ends), seconds of the prediction
        (transform, distribution function at some 300 places, quantiles) and of the draws.
    """
    rows = []
    for depth in DEPTHS[:3] if quick else DEPTHS:
        for alike in (True, False) if depth > 1 else (False,):
            for family in FAMILIES[1:4] if quick else FAMILIES:
                rows += compare(chain(family, depth, alike), {64: 1} if quick else DRAWS, family, depth, alike)
    return {"streams": STREAMS, "load": LOAD, "rows": rows, "right": sum(row["right"] for row in rows)}


def chain(family: str, depth: int, alike: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return mixers, reads, writes and energies, the load spread evenly over the layers."""
    read, write = (gate[:1].expand_as(gate) if alike else gate for gate in gates(depth))
    energy = LOAD * STREAMS / depth / (read.square().sum(-1) * write.square().sum(-1))
    return draw(family, depth, alike=alike), read, write, energy


def compare(
    layers: tuple[Tensor, ...], draws: dict[int, int], family: str, depth: int, alike: bool
) -> list[dict[str, Any]]:
    """Return one row a width."""
    law = spectrum.predict(*layers)
    # Everything that is asked of the law below, once, so that its time is not that of what a row leaves behind.
    _, seconds = timed(lambda: (bulk(law), law.cdf(torch.linspace(*law.edges, 300)), law.quantile(0.5)))
    rows = []
    for width, count in draws.items():
        drawn, draw_seconds = timed(lambda w=width, c=count: spectrum.simulate(*layers, width=w, draws=c))
        found = spectrum.compare(law, drawn)
        w, g = bulk(law)
        transform = 100 * float(((drawn.stieltjes(w) - g).abs() / g.abs()).median())
        errors = [100 * error(row["level"], row["predicted"], drawn, law.floor) for row in found.table()]
        right = transform <= _TRANSFORM and found.kolmogorov <= _KOLMOGOROV
        right = right and all(abs(e) <= _INSIDE for e in errors[1:-1])
        rows.append(
            {
                "mixer": family,
                "layers": depth,
                "alike": alike,
                "width": width,
                "transform_percent": transform,
                "kolmogorov": found.kolmogorov,
                **{f"q{100 * row['level']:g}_percent": e for row, e in zip(found.table(), errors, strict=True)},
                "right": right and all(abs(e) <= _OUTSIDE for e in errors),
                "predict_s": seconds,
                "draw_s": draw_seconds,
            }
        )
    return rows


def error(level: float, predicted: float, drawn: spectrum.Law, floor: float) -> float:
    """Return the relative error of a quantile against those drawn at levels within `_LEVEL`.

    Between two bands of a spectrum every number is a quantile of one level, the share of the bands below.
    """
    around = torch.tensor([level - _LEVEL, level + _LEVEL], dtype=torch.float64).clamp(0, 1)
    low, high = drawn.quantile(around).tolist()
    nearest = min(max(predicted, low), high)
    zero = max(floor, 1e-9 * drawn.edges[1])
    return 0.0 if max(predicted, nearest) <= zero else predicted / nearest - 1


def bulk(law: spectrum.Law) -> tuple[Tensor, Tensor]:
    """Return points over the middle nine tenths of a law, and its transform there."""
    places = law.quantile(torch.linspace(0.05, 0.95, _PLACES, dtype=torch.float64)).detach()
    places = places[places > 1e-6 * law.edges[1]]
    w = places * complex(math.cos(_ANGLE), math.sin(_ANGLE))
    return w, law.stieltjes(w)
