"""The share of directions that a product of layers takes to zero: the atom of its law at s = 0."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from jpmhc.spectrum.chain import Chain

_SEED = 0x6B65726E
_RANK_TOLERANCE = 1e-9
_WIDTHS = range(8, 65)
# Of branches of other ranks.
_WIDTH = 24


def kernel_share(chain: Chain) -> float:
    """Return the mass of the law at zero.

    The rank of a product whose branches are free is that of the same product with random branches of any width that
    is not too small. The range of the layers so far is followed through one layer after the other, which decides about
    the singular values of one layer at a time, not about those of the product. O(L (n C)^3), C = 8 where it can be; a
    rank that is no multiple of 1 / C for any C up to 64 lies between two that are.
    """
    M = chain.mixers.detach()
    values = torch.linalg.svdvals(M)
    thin = values[:, -1] <= _RANK_TOLERANCE * values[:, 0]
    if not thin.any():
        # det (M + q p^T X) = det M det (I + (p^T M^-1 q) X), not zero for any random X.
        return 0.0
    rank = chain.branch.rank
    width = next((C for C in _WIDTHS if abs(rank * C - round(rank * C)) < 1e-6), None)
    if width is not None:
        return _share(chain, width, round(rank * width))
    # Piecewise linear in the rank: from two multiples of 1 / C on either side, a bend between which shows.
    k = min(max(int(rank * _WIDTH), 1), _WIDTH - 2)
    shares = [_share(chain, _WIDTH, k + i) for i in (-1, 0, 1, 2)]
    steps = [b - a for a, b in itertools.pairwise(shares)]
    at = rank * _WIDTH - k
    bent = all(abs(b - a) > 1e-9 for a, b in itertools.pairwise(steps))
    left, middle, right = (shares[0] + (1 + at) * steps[0], shares[1] + at * steps[1], shares[2] + (at - 1) * steps[2])
    if not bent:
        return left if at < 0 else right if at > 1 else middle
    bend = (shares[2] - shares[1] - steps[2]) / (steps[0] - steps[2])
    return left if at < bend else right


def _share(chain: Chain, width: int, rank: int) -> float:
    """Mass of the law at zero where branches of that width have that rank."""
    M = chain.mixers.detach()
    generator = torch.Generator().manual_seed(_SEED)
    m = M.shape[-1]
    basis = torch.eye(m * width, dtype=M.dtype)
    for l in range(len(M)):
        image = torch.kron(M[l], torch.eye(width, dtype=M.dtype)) @ basis
        if chain.energy[l] > 0:
            image = image + _branch(chain, l, width, rank, generator) @ basis
        U, found, _ = torch.linalg.svd(image, full_matrices=False)
        basis = U[:, found > _RANK_TOLERANCE * found[:1].clamp_min(_RANK_TOLERANCE)]
        if not basis.shape[1]:
            return 1.0
    return 1 - basis.shape[1] / (m * width)


def _branch(chain: Chain, l: int, width: int, rank: int, generator: torch.Generator) -> Tensor:
    """Random branch of a layer, of that rank and of unit size: only its rank matters."""

    def normal(rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns, generator=generator, dtype=torch.float64) / max(rows, columns) ** 0.5

    if chain.read is None or chain.write is None:
        return normal(chain.mixers.shape[-1] * width, chain.mixers.shape[-1] * width)
    X = normal(width, rank) @ normal(rank, width)
    return torch.kron(torch.outer(chain.write[l].detach(), chain.read[l].detach()), X)
