"""The mixers that spectra are compared on: one of each family, drawn with a fixed seed."""

from __future__ import annotations

import torch
from torch import Tensor

from jpmhc import layers

STREAMS = 4
# Raw numbers of this spread around the charts' origin: far from the start, as after long training.
_DRAWN = {"cayley": ("cayley", 1.0), "bistochastic": ("sinkhorn", 1.0), "projector": ("grassmann", 1.0)}
FAMILIES = ("identity", "haar", *_DRAWN, "reflector", "free")


def draw(family: str, depth: int, seed: int = 0, *, alike: bool = False, streams: int = STREAMS) -> Tensor:
    """Return mixers (L, n, n), float64.

    Parameters
    ----------
    family : str
        One of `FAMILIES`; ``haar`` are uniform orthogonal matrices, ``free`` is I plus normal numbers of spread
        0.3 / sqrt n, the others are charts of the mixers of those sets; a projector has half the rank.
    depth : int
        Number of layers.
    seed : int
        Of the draw.
    alike : bool
        One matrix in all layers.
    streams : int
        Number of streams n.
    """
    generator = torch.Generator().manual_seed(seed)
    count = 1 if alike else depth
    eye = torch.eye(streams, dtype=torch.float64).expand(count, streams, streams)
    normal = torch.randn(count, streams, streams, generator=generator, dtype=torch.float64)
    if family == "identity":
        found = eye
    elif family == "haar":
        rotation, triangle = torch.linalg.qr(normal)
        found = rotation * triangle.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)
    elif family == "free":
        found = eye + 0.3 / streams**0.5 * normal
    elif family == "reflector":
        found = 2 * draw("projector", count, seed, streams=streams) - eye
    else:
        name, spread = _DRAWN[family]
        chart = layers.make_mixer(name, streams)
        raw = torch.randn(count, chart.n_coefficients, generator=generator, dtype=torch.float64)
        found = chart(spread * raw)
    return found.expand(depth, streams, streams).contiguous()


def gates(depth: int, seed: int = 1, streams: int = STREAMS) -> tuple[Tensor, Tensor]:
    """Return reads of sum 1 and writes of sum n, each (L, n), softmaxes of normal numbers."""
    generator = torch.Generator().manual_seed(seed)
    raw = torch.randn(2, depth, streams, generator=generator, dtype=torch.float64)
    return raw[0].softmax(-1), streams * raw[1].softmax(-1)
