"""Quantiles of a law from its distribution function."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jpmhc.spectrum.bulk import Bulk

# Steps of a quantile, of which nearly all take three; a steep band in a wide gap is found by halving.
_HALVINGS = 60
_GOLDEN = (math.sqrt(5) - 1) / 2
# A quantile next to places where nothing converges is NaN unless it is known that well.
_CLOSE = 0.03


def invert(bulk: Bulk, share: Tensor) -> Tensor:
    """Return quantiles of a law within its grid: Newton's steps, or halving where they leave the bracket.

    Parameters
    ----------
    bulk : Bulk
        The law.
    share : Tensor, shape (Q,)
        Levels between the first and the last of ``bulk.grid.cdf``.

    Returns
    -------
    Tensor, shape (Q,)
        Places, with derivatives where the chain has them; NaN, with the warning of ``bulk.at``, where nothing converges
        nearby.
    """
    grid = bulk.grid
    x = bulk.interpolated(share)
    right = torch.searchsorted(grid.cdf, share).clamp(1, len(grid.x) - 1)
    low, high = grid.x[right - 1].clone(), grid.x[right].clone()
    left = torch.arange(len(x))
    lost = torch.zeros_like(x, dtype=torch.bool)
    for k in range(_HALVINGS):
        with torch.no_grad():
            found = bulk.at(x[left], attached=False)
        here, off, density = x[left], share[left] - found.cdf, found.density
        lost[left] = off.isnan()
        low[left] = torch.where(off > 0, here, low[left])
        high[left] = torch.where(off < 0, here, high[left])
        going = ~(off.abs() < 1e-7) & (high[left] > (1 + 1e-9) * low[left])
        left, here, off, density = left[going], here[going], off[going], density[going]
        if not len(left):
            break
        newton = here * (off / (here * density).clamp_min(1e-30)).clamp(-1, 1).exp()
        inside = (newton > low[left]) & (newton < high[left])
        # Beside a place that was lost there may be one that is not: wander through the bracket.
        part = torch.where(lost[left], (0.5 + _GOLDEN * k) % 1, 0.5)
        x[left] = torch.where(inside, newton, low[left] * (high[left] / low[left]) ** part)
    # The bracket of what stays lost still holds the quantile.
    x = torch.where(lost, (low * high).sqrt(), x)
    x = torch.where(lost & (high > (1 + _CLOSE) * low), math.nan, x)
    if bulk.chain.differentiated:
        known = (~x.isnan()).nonzero()[:, 0]
        found = bulk.at(x[known])
        # dq = -dF / density.
        x = x.index_add(0, known, -(found.cdf - found.cdf.detach()) / found.density.detach())
    return x
