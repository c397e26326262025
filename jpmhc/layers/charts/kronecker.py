"""The Kronecker mixer: doubly stochastic matrices as Kronecker products of small ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor, nn

from jpmhc.layers.charts.birkhoff import START_DIAGONAL, birkhoff_defect
from jpmhc.layers.charts.permutations import Permutations
from jpmhc.layers.charts.sinkhorn import Sinkhorn
from jpmhc.layers.mixer import Mixer, register_mixer


@register_mixer("kronecker", set="Birkhoff, Kronecker products", coefficients="sum of i! over factors", exact=True)
class Kronecker(Mixer):
    """Kronecker product of doubly stochastic factors (KromHC, arXiv 2601.21579).

    Few numbers for many streams: 2 k for n = 2^k. A factor of size i up to 4 is a mean of its i! permutations, a larger
    one is scaled by Sinkhorn and takes i^2 numbers.

    Parameters
    ----------
    streams : int
        Number of streams n.
    factors : sequence of int, optional
        Sizes of the factors, at least 2 each, of product n; the prime factors of n by default.

    Notes
    -----
    The start has diagonal 0.9: each of k factors has ``0.9^(1/k)``. Off-diagonal entries are not all equal.

    Examples
    --------
    >>> mixer = Kronecker(8)
    >>> mixer.factors, mixer.n_coefficients
    ((2, 2, 2), 6)
    """

    def __init__(self, streams: int, factors: Sequence[int] | None = None) -> None:
        super().__init__(streams)
        chosen = _prime_factors(streams) if factors is None else tuple(factors)
        if math.prod(chosen) != streams or any(f < 2 for f in chosen):
            raise ValueError(f"factors: expected sizes of at least 2 and product {streams}, got {chosen}")
        self.factors = chosen
        charts: list[Permutations | Sinkhorn] = [Permutations(f) if f <= 4 else Sinkhorn(f) for f in chosen]
        self.charts = nn.ModuleList(charts)
        self.sizes = [chart.n_coefficients for chart in charts]
        self.n_coefficients = sum(self.sizes)

    def forward(self, raw: Tensor) -> Tensor:
        """Map raw (..., n_coefficients) to doubly stochastic (..., n, n)."""
        raw = self._coefficients(raw)
        parts = [chart(part) for chart, part in zip(self.charts, raw.split(self.sizes, -1), strict=True)]
        return reduce(_kronecker, parts, raw.new_ones(*raw.shape[:-1], 1, 1))

    def start(self) -> Tensor:
        """Diagonal 0.9."""
        diagonal = START_DIAGONAL ** (1 / max(1, len(self.factors)))
        starts = [chart.start_at(diagonal) for chart in self.charts]  # type: ignore[operator]
        return torch.cat([torch.zeros(0, dtype=torch.float64), *starts])

    def residual(self, matrix: Tensor) -> Tensor:
        """Largest deviation of a row or column sum from one, or most negative entry."""
        return birkhoff_defect(matrix)


def _kronecker(left: Tensor, right: Tensor) -> Tensor:
    product = left[..., :, None, :, None] * right[..., None, :, None, :]
    return product.flatten(-4, -3).flatten(-2, -1)


def _prime_factors(number: int) -> tuple[int, ...]:
    factors, divisor = [], 2
    while number > 1:
        while number % divisor == 0:
            factors.append(divisor)
            number //= divisor
        divisor += 1
    return tuple(factors)
