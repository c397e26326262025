"""Masses of the atoms that only the resolvent shows, as poles of it."""

from __future__ import annotations

import math
from fractions import Fraction

import torch
from torch import Tensor

from jpmhc.spectrum.chain import Chain
from jpmhc.spectrum.dyson import SelfEnergies, point, solve

_TOLERANCE = 1e-8
# Down to the last, as a density beside an atom may grow towards it; none is taken above the first that counts.
_ANGLES = (1e-3, *(4e-4 / 2**k for k in range(9)))
_FIRST = 2e-4
# Places as near as a tenth of that are one: round-off of the mixers may have split it.
_ONE_PLACE = _FIRST / 10
# Less is none, and a mass is known to that.
_LEAST = 1e-3


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
    mass, open_ = torch.zeros_like(places), torch.arange(len(places))
    gaps = torch.nn.functional.pad(places.log().diff(), (1, 1), value=math.inf)
    first = (0.1 * torch.minimum(gaps[:-1], gaps[1:])).clamp_max(_FIRST)
    before, height_before = torch.full_like(places, math.inf), torch.full_like(places, math.inf)
    for angle in _ANGLES:
        w = point(places[open_], angle)
        start = solve(chain, w, start, _TOLERANCE)
        height = -2 * math.tan(angle) * (w * chain.resolvent(w, start.s, start.t).g).imag
        good = start.residual <= _TOLERANCE
        fall = height_before[open_] - height
        limit = height - fall * angle / (before[open_] - angle)
        stays = good & (angle <= first[open_]) & (limit > _LEAST)
        stays &= fall.abs() < _LEAST * (limit + height_before[open_])
        mass[open_[stays]] = limit[stays]
        before[open_[good]], height_before[open_[good]] = angle, height[good]
        left = (~stays & ~(good & (height < _LEAST))).nonzero()[:, 0]
        open_, start = open_[left], start[left]
        if not len(open_):
            break
    return mass


def whole(chain: Chain, mass: Tensor) -> Tensor:
    """Round masses to what they come in: units of a stream, or of what the rank of a branch leaves of one."""
    unit = chain.mixers.shape[-1] * Fraction(chain.branch.rank).limit_denominator(64).denominator
    rounded = (mass * unit).round() / unit
    return torch.where((mass - rounded).abs() < _LEAST, rounded, mass)
