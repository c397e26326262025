"""The share of directions that a product of layers takes to zero: the atom of its law at s = 0."""

from __future__ import annotations

import torch
from torch import Tensor

from jpmhc.spectrum.chain import Chain

_SEED = 0x6B65726E
_RANK_TOLERANCE = 1e-9
_WIDTHS = range(8, 65)


def kernel_share(chain: Chain) -> float:
    """Return the mass of the law at zero.

    The rank of a product whose branches are free is that of the same product with random branches of any width that
    is not too small. The range of the layers so far is followed through one layer after the other, which decides about
    the singular values of one layer at a time, not about those of the product. O(L (n C)^3), C = 8 where it can be.

    A branch whose rank is no multiple of 1 / C for any C up to 64 is left out: 0.
    """
    M = chain.mixers.detach()
    values = torch.linalg.svdvals(M)
    thin = values[:, -1] <= _RANK_TOLERANCE * values[:, 0]
    if not thin.any():
        # det (M + q p^T X) = det M det (I + (p^T M^-1 q) X), not zero for any random X.
        return 0.0
    rank = chain.branch.rank
    width = next((C for C in _WIDTHS if abs(rank * C - round(rank * C)) < 1e-6), None)
    if width is None:
        return 0.0
    generator = torch.Generator().manual_seed(_SEED)
    m = M.shape[-1]
    basis = torch.eye(m * width, dtype=M.dtype)
    for l in range(len(M)):
        image = torch.kron(M[l], torch.eye(width, dtype=M.dtype)) @ basis
        if chain.energy[l] > 0:
            image = image + _branch(chain, l, width, round(rank * width), generator) @ basis
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
