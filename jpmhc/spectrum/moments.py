"""Moments of the part of a predicted law that is solved for, by quadrature over its quantiles."""

from __future__ import annotations

import functools
import itertools
import math
import warnings
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from jpmhc.spectrum.bulk import Bulk

_NODES = 64
# Share of a law down to which its distribution function is known to a relative 1e-4, and below which it is a power.
_LOWEST = 1e-4
# A gap has no more than this between its ends, which lie farther apart than that.
_STILL, _WIDE = 1e-5, 0.02
# The rest of the exponent, over the power: as the moment goes like its reciprocal, an error of the power shows.
_NEAR = 0.1


def bulk_moment(bulk: Bulk, k: float, power: float, exact: bool) -> Tensor:
    """Return ``E[s^k]`` of a law without its atoms, of total mass one.

    Parameters
    ----------
    bulk : Bulk
        The law.
    k : float
        Exponent.
    power : float
        With which the distribution function starts at zero, larger than ``-k``; infinite for a law off zero.
    exact : bool
        Whether that power is a number that it must be, or only what the solve shows.
    """
    mass = bulk.mass
    levels = [0.0, *_gap_levels(bulk), mass]
    tail = torch.zeros((), dtype=torch.float64)
    nodes: list[Tensor] = []
    weights: list[Tensor] = []
    for a, b in itertools.pairwise(levels):
        low, middle = a, (a + b) / 2
        if a == 0 and k < 0:
            low = max(_LOWEST * mass, 2 * float(bulk.grid.cdf[0]))
            if math.isfinite(power):
                tail = low * bulk.quantile(torch.tensor([low], dtype=torch.float64))[0].pow(k) / (1 + k / power)
            else:
                # Below a millionth of the law no density is resolved that derivatives could be divided by.
                _add(nodes, weights, *_towards(low, 0.0, least=0.2))
            _add(nodes, weights, *_geometric(low, middle))
        else:
            _add(nodes, weights, *_towards(middle, a))
        _add(nodes, weights, *_towards(middle, b))
    if not exact and 1 + k / power < _NEAR:
        warnings.warn(
            f"k: the moment of order {k:g} is about to diverge, as the law starts at zero like s^{power:.3g}; it is "
            "known to some percent",
            UserWarning,
            stacklevel=3,
        )
    values = bulk.quantile(torch.cat(nodes))
    # Beyond the edges a level is round-off of the solve.
    values = values + (values.clamp(*bulk.edges) - values).detach()
    return (tail + (torch.cat(weights) * values.pow(k)).sum()) / mass


def exact_power(power: float) -> tuple[float, bool]:
    """Return the power ``2 / (j + 1)`` of a product of j factors with a density at zero, if it is one of these."""
    if not 0 < power < math.inf:
        return power, True
    near = 2 / max(round(2 / power), 1)
    return (near, True) if abs(power / near - 1) < 5e-3 else (power, False)


def _gap_levels(bulk: Bulk) -> list[float]:
    x, cdf = bulk.grid.x, bulk.grid.cdf
    inner = (cdf[:-1] > _LOWEST) & (cdf[1:] < bulk.mass - _LOWEST)
    gaps = ((cdf.diff() < _STILL) & (x.log().diff() > _WIDE) & inner).nonzero()[:, 0].tolist()
    levels: list[float] = []
    for i in gaps:
        level = float(cdf[i] + cdf[i + 1]) / 2
        if not levels or level > levels[-1] + _LOWEST:
            levels.append(level)
    return levels


def _add(nodes: list[Tensor], weights: list[Tensor], more: Tensor, their: Tensor) -> None:
    nodes.append(more)
    weights.append(their)


def _towards(start: float, end: float, least: float = 0.01) -> tuple[Tensor, Tensor]:
    """Nodes that crowd at an end of a band, in a variable in which quantiles at a square root's edge are smooth."""
    t, w = _gauss()
    # A millionth from the end there is hardly any weight, and beyond it hardly a density to divide derivatives by.
    return end + (start - end) * t.clamp_min(least) ** 3, abs(start - end) * 3 * t**2 * w


def _geometric(low: float, high: float) -> tuple[Tensor, Tensor]:
    t, w = _gauss()
    nodes = low * (high / low) ** t
    return nodes, nodes * math.log(high / low) * w


@functools.cache
def _gauss() -> tuple[Tensor, Tensor]:
    nodes, weights = map(torch.from_numpy, np.polynomial.legendre.leggauss(_NODES))
    return (nodes + 1) / 2, weights / 2
