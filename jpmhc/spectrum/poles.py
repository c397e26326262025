"""Masses of the atoms that only the resolvent shows, as poles of it."""

from __future__ import annotations

import math
from fractions import Fraction

import torch
from torch import Tensor

from jpmhc.spectrum.chain import Chain
from jpmhc.spectrum.dyson import SelfEnergies, point, solve

_TOLERANCE = 1e-8
# The last is as near as the law itself is read: a band that it sees is no atom.
_ANGLES = (1e-3, *(4e-4 / 2**k for k in range(9)))
# None is taken from farther away, where nothing converges nearer.
_FARTHEST = 2e-4
# Places as near as a tenth of that are one: round-off of the mixers may have split it.
_ONE_PLACE = _FARTHEST / 10
# Less is none, and a mass is known to that.
_LEAST = 1e-3
# Where it is known best, to that.
_EQUAL = 1e-6


def merged(places: Tensor) -> Tensor:
    """Return ascending places (k,), the geometric mean of every run of them that counts as one."""
    logs = places.log()
    apart = logs.diff(prepend=logs[:1] - 1) > _ONE_PLACE
    group = apart.cumsum(0) - 1
    return torch.stack([logs[group == k].mean().exp() for k in range(int(apart.sum()))]) if len(places) else places


def pole_masses(chain: Chain, places: Tensor, start: SelfEnergies) -> Tensor:
    """Masses (k,) of a law's atoms at ascending places, 0 where there is none, from solutions nearby.

    Notes
    -----
    Next to an atom ``-w g`` is its mass over twice the angle. The height of a density falls like a power of the angle,
    that of a narrow band as the angle passes its width: what stays is an atom. One place is told from the next at
    angles below a tenth of their distance.
    """
    gaps = torch.nn.functional.pad(places.log().diff(), (1, 1), value=math.inf)
    farthest = (0.1 * torch.minimum(gaps[:-1], gaps[1:])).clamp_max(_FARTHEST)
    # The last two that converged: angle and height.
    before = last = torch.full((2, len(places)), math.inf, dtype=torch.float64)
    open_ = torch.arange(len(places))
    for angle in _ANGLES:
        w = point(places[open_], angle)
        start = solve(chain, w, start, _TOLERANCE)
        height = -2 * math.tan(angle) * (w * chain.resolvent(w, start.s, start.t).g).imag
        good = start.residual <= _TOLERANCE
        before, last = before.clone(), last.clone()
        before[:, open_[good]] = last[:, open_[good]]
        last[:, open_[good]] = torch.stack([torch.full_like(height, angle), height])[:, good]
        # What does not converge any more is as near as it gets.
        ended = torch.where(good, height < _LEAST, last[0, open_] <= _FARTHEST)
        left = (~ended).nonzero()[:, 0]
        open_, start = open_[left], start[left]
    fall = before[1] - last[1]
    mass = last[1] - fall * last[0] / (before[0] - last[0])
    stays = (fall.abs() < _LEAST * (mass + before[1])) & (last[0] <= farthest) & (mass > _LEAST) & before[0].isfinite()
    return torch.where(stays, mass, 0)


def whole(chain: Chain, mass: Tensor) -> Tensor:
    """Round masses to what they come in: streams, whole or less or more what the ranks of some branches are of one.

    Where that rank is a fraction with a small denominator these are few, and the nearest is meant; else there is one
    nearby whatever the mass, and only one that it equals is.
    """
    m, L, rank = chain.mixers.shape[-1], len(chain.mixers), chain.branch.rank
    fraction = Fraction(rank).limit_denominator(64)
    if abs(rank - fraction) < 1e-9:
        unit = m * fraction.denominator
        rounded, close = (mass * unit).round() / unit, _LEAST
    else:
        parts = rank * torch.arange(-2 * L, 2 * L + 1, dtype=torch.float64)
        near = ((m * mass.unsqueeze(-1) - parts).round() + parts) / m
        rounded = near.gather(-1, (near - mass.unsqueeze(-1)).abs().argmin(-1, keepdim=True))[..., 0]
        close = _EQUAL
    return torch.where((mass - rounded).abs() < close, rounded, mass)
