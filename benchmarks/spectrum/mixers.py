"""The mixers that spectra are compared on: one of each family, drawn with a fixed seed."""

from __future__ import annotations

import torch
from torch import Tensor

from jpmhc import layers

STREAMS = 4
# Raw numbers of this spread around the charts' origin: far from the start, as after long training.
_DRAWN = {"bistochastic": ("sinkhorn", 1.0), "rotation": ("cayley", 1.0), "projector": ("grassmann", 1.0)}
FAMILIES = ("identity", *_DRAWN, "reflector", "free")


def draw(family: str, depth: int, seed: int = 0, *, alike: bool = False) -> Tensor:
    """Return mixers (L, n, n), float64, n = 4.

    Parameters
    ----------
    family : str
        One of `FAMILIES`; ``free`` is I plus normal numbers of spread 0.3 / sqrt n.
    depth : int
        Number of layers.
    seed : int
        Of the draw.
    alike : bool
        One matrix in all layers.
    """
    generator = torch.Generator().manual_seed(seed)
    count = 1 if alike else depth
    eye = torch.eye(STREAMS, dtype=torch.float64).expand(count, STREAMS, STREAMS)
    if family == "identity":
        found = eye
    elif family == "free":
        noise = torch.randn(count, STREAMS, STREAMS, generator=generator, dtype=torch.float64)
        found = eye + 0.3 / STREAMS**0.5 * noise
    elif family == "reflector":
        found = 2 * draw("projector", count, seed) - eye
    else:
        name, spread = _DRAWN[family]
        chart = layers.make_mixer(name, STREAMS)
        found = chart(spread * torch.randn(count, chart.n_coefficients, generator=generator, dtype=torch.float64))
    return found.expand(depth, STREAMS, STREAMS).contiguous()


def gates(depth: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Return reads of sum 1 and writes of sum n, each (L, n), softmaxes of normal numbers."""
    generator = torch.Generator().manual_seed(seed)
    raw = torch.randn(2, depth, STREAMS, generator=generator, dtype=torch.float64)
    return raw[0].softmax(-1), STREAMS * raw[1].softmax(-1)
