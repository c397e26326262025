"""Seconds from layers to a law, in full: nothing is computed before, kernels excepted, which are kept on disk."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.spectrum.mixers import draw, gates
from benchmarks.spectrum.timing import timed
from jpmhc import spectrum

LOAD, PLACES = 0.5, 200
# Mixers, layers and streams; four streams at a hundred layers are the case that a promise was made for.
CASES = (
    ("haar", 100, 4),
    ("cayley", 100, 4),
    ("bistochastic", 100, 4),
    ("identity", 100, 4),
    ("free", 100, 4),
    ("haar", 200, 4),
    ("haar", 24, 16),
    ("haar", 200, 16),
)


def run(quick: bool) -> dict[str, Any]:
    """Time the distribution function and the density at 200 places of a law that was never asked before.

    Parameters
    ----------
    quick : bool
        The first case alone.

    Returns
    -------
    dict
        JSON-able: ``rows`` of mixer, layers, streams, seconds without and with the quantiles, places that did not
        converge, and eliminations a place.
    """
    rows = []
    for family, depth, streams in CASES[:1] if quick else CASES:
        layers = chain(family, depth, streams)
        if not rows:
            # Compiles, or loads what was compiled.
            spectrum.predict(*(part[:9] for part in layers)).cdf(1.0)
        law = spectrum.predict(*layers)
        points, seconds = timed(lambda law=law: law.points(torch.linspace(*law.edges, PLACES + 2)[1:-1]))
        _, more = timed(lambda law=law: law.quantile(torch.tensor([0.01, 0.1, 0.5, 0.9, 0.99])))
        rows.append(
            {
                "mixer": family,
                "layers": depth,
                "streams": streams,
                "places": PLACES,
                "seconds": seconds,
                "with_quantiles_s": seconds + more,
                "lost": int((~points.converged).sum()),
                "eliminations_a_place": float(points.steps.double().mean()),
                "threads": torch.get_num_threads(),
            }
        )
    return {"load": LOAD, "rows": rows}


def chain(family: str, depth: int, streams: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return mixers, reads, writes and energies."""
    read, write = gates(depth, streams=streams)
    energy = LOAD * streams / depth / (read.square().sum(-1) * write.square().sum(-1))
    return draw(family, depth, streams=streams), read, write, energy
