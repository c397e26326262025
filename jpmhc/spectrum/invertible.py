"""Whether a product of layers has an inverse as its width grows: if not, its law reaches down to zero."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from jpmhc.spectrum.chain import Chain

# Mixers below it, over their largest singular value, are singular; criteria as near as that to equality count as met.
_ROUND_OFF = 1e-9
# Of an S-transform at -1: more is infinite.
_INFINITE = 1e8


def is_invertible(chain: Chain) -> bool:
    """Return whether every layer of a chain whose law has no atom at zero has a bounded inverse.

    Notes
    -----
    A product of operators in a finite von Neumann algebra has an inverse where each of them has one. With
    z = p^T M^-1 q the layer ``M (x) I + q p^T (x) X`` has none where -1 / z is in the spectrum of X, a ring of squared
    radii v / S(-1) and v (Haagerup and Larsen 2000); one with circular noise of energy v where
    ``tr |M|^-2 / n >= 1 / v``.
    """
    M, energy = chain.mixers.detach(), chain.energy.detach()
    values = torch.linalg.svdvals(M)
    thin = values[:, -1] <= _ROUND_OFF * values[:, 0]
    safe = torch.where(thin[:, None, None], torch.eye(M.shape[-1], dtype=M.dtype), M)
    if chain.read is None or chain.write is None:
        inner, seen = math.inf, (1 / torch.linalg.svdvals(safe).square()).mean(-1)
    else:
        inner, seen = _inner(chain), _through(safe, chain.read.detach(), chain.write.detach()).square()
    ratio = torch.where(thin, math.inf, energy * seen)
    return not ((ratio >= 1 - _ROUND_OFF) & (ratio <= inner * (1 + _ROUND_OFF))).any()


def _through(M: Tensor, read: Tensor, write: Tensor) -> Tensor:
    """``p^T M^-1 q`` (L,)."""
    return (read * torch.linalg.solve(M, write)).sum(-1)


def _inner(chain: Chain) -> float:
    """``S(-1)`` of the branch, infinite where its eigenvalues reach zero."""
    S = float(chain.branch._real_s(torch.tensor(-1 + 1e-12, dtype=torch.float64)))
    return S if S < _INFINITE else math.inf
