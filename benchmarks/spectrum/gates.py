"""Predictions of reading and writing layers against one drawn Jacobian: error and time."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.spectrum.mixers import FAMILIES, STREAMS, draw, gates
from benchmarks.spectrum.timing import timed
from jpmhc import spectrum

# Energy of all branches together; at 0.6 per direction the condition number of the scalar law is 10.
LOAD = 2.0
DEPTHS = (1, 2, 10, 50)


def run(quick: bool) -> dict[str, Any]:
    """Compare distribution functions for mixers and gates that differ from layer to layer.

    Parameters
    ----------
    quick : bool
        Width 64, at most ten layers, three families.

    Returns
    -------
    dict
        JSON-able: ``rows`` of mixer, layers, Kolmogorov distance, mean error of log s, relative errors of the quantiles
        1, 10, 50, 90 and 99 %, seconds of the prediction (distribution function at some 300 places, with quantiles) and
        of one draw.
    """
    width = 64 if quick else 512
    families = FAMILIES[:3] if quick else FAMILIES
    rows = []
    for depth in DEPTHS[:3] if quick else DEPTHS:
        read, write = gates(depth)
        energy = torch.full((depth,), LOAD / depth, dtype=torch.float64)
        for family in families:
            chain = (draw(family, depth), read, write, energy)
            drawn, draw_seconds = timed(lambda chain=chain: spectrum.simulate(*chain, width=width))
            law = spectrum.predict(*chain)
            found, seconds = timed(lambda law=law, drawn=drawn: spectrum.compare(law, drawn))
            rows.append(
                {
                    "mixer": family,
                    "layers": depth,
                    "kolmogorov": found.kolmogorov,
                    "mean_log_error": found.wasserstein_log,
                    **{f"q{100 * row['level']:g}_percent": 100 * row["error"] for row in found.table()},
                    "predict_s": seconds,
                    "draw_s": draw_seconds,
                }
            )
    return {"streams": STREAMS, "width": width, "load": LOAD, "rows": rows}
