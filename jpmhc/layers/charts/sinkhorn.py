"""The Sinkhorn mixer: doubly stochastic matrices by entropic projection."""

import math

import torch
from torch import Tensor

from jpmhc import autodiff
from jpmhc.layers.mixer import Mixer, register_mixer

# M_ii at the start; the rest of a row, 0.1, is shared equally.
_START_DIAGONAL = 0.9


@register_mixer("sinkhorn", set="Birkhoff", coefficients="n^2", exact=True)
class Sinkhorn(Mixer):
    """Doubly stochastic ``M = diag(a) exp(raw) diag(b)``, the mixer of mHC (arXiv 2512.24880), converged.

    ``raw`` is read row by row as an n x n matrix of logits. Adding a constant to a row or a column of it changes
    nothing, so (n-1)^2 of the n^2 numbers act. Products of such matrices forget the differences of the streams:
    a factor ``sigma_2(M) < 1`` a layer.

    Notes
    -----
    I is a vertex of the Birkhoff polytope, reached only by infinite logits, where every derivative vanishes. The
    start is therefore near I: diagonal 0.9, off-diagonal entries ``0.1 / (n - 1)``. There the singular values of
    ``dM/draw`` are, for n = 4, 0.12 (once, the strength of the diagonal), 0.0643 (three times), 0.0333 (five times)
    and 0 (seven times, the row and column constants); for n = 2 the one that is not zero is 0.18.

    Examples
    --------
    >>> mixer = Sinkhorn(4)
    >>> matrix = mixer(mixer.start())
    >>> round(matrix[0, 0].item(), 6), round(matrix.sum(0)[0].item(), 6)
    (0.9, 1.0)
    """

    def __init__(self, streams: int) -> None:
        super().__init__(streams)
        self.n_coefficients = streams * streams

    def forward(self, raw: Tensor) -> Tensor:
        """Project logits raw (..., n^2), row-major, to doubly stochastic (..., n, n)."""
        raw = self._coefficients(raw)
        return autodiff.sinkhorn(raw.unflatten(-1, (self.streams, self.streams)))

    def start(self) -> Tensor:
        """Logits of the matrix with diagonal 0.9 and equal off-diagonal entries."""
        n = self.streams
        if n == 1:
            return torch.zeros(1, dtype=torch.float64)
        logit = math.log(_START_DIAGONAL * (n - 1) / (1 - _START_DIAGONAL))
        return logit * torch.eye(n, dtype=torch.float64).flatten()

    def residual(self, matrix: Tensor) -> Tensor:
        """Largest deviation of a row or column sum from one, or largest negative entry."""
        rows = (matrix.sum(-1) - 1).abs().amax(-1)
        columns = (matrix.sum(-2) - 1).abs().amax(-1)
        return torch.maximum(torch.maximum(rows, columns), (-matrix).amax((-2, -1)))
