"""The permutation mixer: doubly stochastic matrices as weighted means of permutations, and the search for good ones."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from jpmhc.layers.charts.birkhoff import START_DIAGONAL, birkhoff_defect
from jpmhc.layers.mixer import Mixer, register_mixer

Permutation = tuple[int, ...]


@register_mixer("permutations", set="Birkhoff", coefficients="n! or K", exact=True, streams=(1, 4))
class Permutations(Mixer):
    """Convex mean ``M = sum_k softmax(raw)_k P_k`` of permutation matrices: doubly stochastic without iterating.

    With all n! of them every doubly stochastic matrix is within reach (Birkhoff and von Neumann; mHC-lite, arXiv
    2601.05732), with fewer a polytope inside.

    Parameters
    ----------
    streams : int
        Number of streams n.
    permutations : sequence of tuple of int, optional
        The chosen ones, the identity among them and none twice: stream i of the result is stream ``p[i]``. All n! by
        default, for n up to 4; beyond that they must be chosen. :data:`JPMHC_PERMUTATIONS` are JPmHC's six for n = 4,
        :func:`search_permutations` finds others.

    Notes
    -----
    The start has a mean diagonal of 0.9 and equal weights on all but the identity; with all n! permutations all
    off-diagonal entries are equal.

    Examples
    --------
    >>> import torch
    >>> mixer = Permutations(3)
    >>> mixer(mixer.start()).round(decimals=4)
    tensor([[0.9000, 0.0500, 0.0500],
            [0.0500, 0.9000, 0.0500],
            [0.0500, 0.0500, 0.9000]], dtype=torch.float64)
    """

    matrices: Tensor

    def __init__(self, streams: int, permutations: Sequence[Sequence[int]] | None = None) -> None:
        super().__init__(streams)
        identity = tuple(range(streams))
        if permutations is None:
            if streams > 4:
                raise ValueError(
                    f"permutations: all {math.factorial(streams)} of {streams} streams are too many; choose some, "
                    "search_permutations helps"
                )
            permutations = list(itertools.permutations(identity))
        else:
            self.chosen = tuple(tuple(p) for p in permutations)
        chosen = [tuple(p) for p in permutations]
        for p in chosen:
            if tuple(sorted(p)) != identity:
                raise ValueError(f"permutations: expected permutations of {identity}, got {p}")
        if identity not in chosen or len(set(chosen)) < len(chosen):
            raise ValueError(f"permutations: expected the identity among them and none twice, got {chosen}")
        self.permutations = chosen
        self.n_coefficients = len(chosen)
        self.register_constant("matrices", partial(_matrices, chosen))

    def forward(self, raw: Tensor) -> Tensor:
        """Map raw (..., K) to doubly stochastic (..., n, n)."""
        weights = self._coefficients(raw).softmax(-1)
        matrices = self.constant("matrices", weights.device).to(weights.dtype)
        return (weights @ matrices.flatten(1)).unflatten(-1, (self.streams, self.streams))

    def start(self) -> Tensor:
        """Logits of a mean diagonal of 0.9."""
        return self.start_at(START_DIAGONAL)

    def start_at(self, diagonal: float) -> Tensor:
        """Logits of the matrix with that mean diagonal and equal weights on all but the identity."""
        raw = torch.zeros(self.n_coefficients, dtype=torch.float64)
        if self.n_coefficients > 1:
            place = self.permutations.index(tuple(range(self.streams)))
            fixed = sum(i == j for p in self.permutations for i, j in enumerate(p)) / self.streams
            others = (fixed - 1) / (self.n_coefficients - 1)
            weight = (diagonal - others) / (1 - others)
            raw[place] = math.log(weight * (self.n_coefficients - 1) / (1 - weight))
        return raw

    def residual(self, matrix: Tensor) -> Tensor:
        """Largest deviation of a row or column sum from one, or most negative entry."""
        return birkhoff_defect(matrix)


JPMHC_PERMUTATIONS: tuple[Permutation, ...] = (
    (0, 1, 2, 3),
    (1, 0, 2, 3),
    (0, 2, 1, 3),
    (0, 1, 3, 2),
    (1, 2, 3, 0),
    (2, 3, 0, 1),
)
"""JPmHC's six permutations of four streams (arXiv 2602.18308): identity, adjacent transpositions, cyclic shifts."""


def _matrices(permutations: Sequence[Permutation]) -> Tensor:
    eye = torch.eye(len(permutations[0]), dtype=torch.float64)
    return torch.stack([eye[list(p)] for p in permutations])


def spectral_gap(permutations: Sequence[Permutation]) -> float:
    """Return ``1 - sigma_2`` of the equal mean of permutations: how fast it forgets the differences of streams.

    Examples
    --------
    >>> round(spectral_gap(JPMHC_PERMUTATIONS), 4)
    0.5311
    """
    return 1.0 - torch.linalg.svdvals(_matrices(permutations).mean(0))[1].item()


def search_permutations(streams: int, count: int, batch: int = 4096) -> tuple[tuple[Permutation, ...], float]:
    """Find the set of permutations, the identity among them, whose equal mean has the largest spectral gap.

    Exhaustive (JPmHC, arXiv 2602.18308, Table 8, searches sets without the condition on the identity): ``binom(n! - 1,
    count - 1)`` singular value decompositions.

    Parameters
    ----------
    streams : int
        Number of streams n, 2 to 5.
    count : int
        Permutations in the set, 2 to n!.
    batch : int
        Sets examined at a time.

    Returns
    -------
    permutations : tuple of tuple of int
        The first best set in lexicographic order.
    gap : float
        Its gap ``1 - sigma_2``.

    Raises
    ------
    ValueError
        For sizes out of range, or more than ten million sets.

    Examples
    --------
    >>> search_permutations(3, 3)
    (((0, 1, 2), (1, 2, 0), (2, 0, 1)), 1.0)
    """
    if not 2 <= streams <= 5:
        raise ValueError(f"streams: expected 2 to 5, got {streams}")
    everything = list(itertools.permutations(range(streams)))
    if not 2 <= count <= len(everything):
        raise ValueError(f"count: expected 2 to {len(everything)}, got {count}")
    sets = math.comb(len(everything) - 1, count - 1)
    if sets > 10_000_000:
        raise ValueError(f"count: {sets} sets of {count} permutations are too many to search")
    matrices = _matrices(everything)
    best: tuple[int, ...] = (0,)
    best_gap = -math.inf
    candidates = itertools.combinations(range(1, len(everything)), count - 1)
    while chunk := list(itertools.islice(candidates, batch)):
        means = (matrices[0] + matrices[torch.tensor(chunk)].sum(1)) / count
        gaps = 1 - torch.linalg.svdvals(means)[:, 1]
        # Ties are decided by order, not by the last bits.
        place = int((gaps > gaps.max() - 1e-12).nonzero()[0])
        if gaps[place].item() > best_gap + 1e-12:
            best, best_gap = (0, *chunk[place]), gaps[place].item()
    return tuple(everything[i] for i in best), best_gap
