"""The Sinkhorn mixer: doubly stochastic matrices by entropic projection."""

import math

import torch
from torch import Tensor

from jpmhc import autodiff
from jpmhc.layers.arguments import check_number, check_size
from jpmhc.layers.charts.birkhoff import START_DIAGONAL, birkhoff_defect
from jpmhc.layers.mixer import Mixer, register_mixer


@register_mixer("sinkhorn", set="Birkhoff", coefficients="n^2", exact=True)
class Sinkhorn(Mixer):
    """Doubly stochastic ``M = diag(a) exp(raw) diag(b)``, the mixer of mHC (arXiv 2512.24880), converged.

    ``raw`` is read row by row as an n x n matrix of logits. Adding a constant to a row or a column of it changes
    nothing, so (n-1)^2 of the n^2 numbers act. Products of such matrices forget the differences of the streams:
    a factor ``sigma_2(M) < 1`` a layer.

    Parameters
    ----------
    streams : int
        Number of streams n.
    iterations : int, optional
        Exactly so many sweeps in place of convergence: 20 in mHC. The sums that are not normalised last are then as
        good as the sweeps make them; :meth:`residual` measures it.
    clamp : float, optional
        Bound of the logits' magnitude: 10 in JPmHC's Sinkhorn arm. Beyond it their gradient is zero.
    last : str
        The marginal that is normalised last and holds to round-off: ``"columns"``, as in JPmHC's Sinkhorn arm, or
        ``"rows"``, as in mHC. Exact rows make every new stream a convex combination of the old ones, exact columns
        keep the sum of the streams; the error of too few sweeps is in the other marginal. So is what the
        converged matrix leaves, which is round-off too (2e-6 in float32 at n = 4).

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

    # Of the class too, for mixers that were pickled before there was a choice.
    last: str = "columns"

    def __init__(
        self, streams: int, iterations: int | None = None, clamp: float | None = None, last: str = "columns"
    ) -> None:
        super().__init__(streams)
        self.n_coefficients = streams * streams
        self.iterations = None if iterations is None else check_size("iterations", iterations)
        if clamp is not None:
            self.clamp = check_number("clamp", clamp, least=0.0)
        if last not in ("rows", "columns"):
            raise ValueError(f"last: expected 'rows' or 'columns', got {last!r}")
        self.last = last

    def forward(self, raw: Tensor) -> Tensor:
        """Project logits raw (..., n^2), row-major, to doubly stochastic (..., n, n)."""
        logits = self._coefficients(raw).unflatten(-1, (self.streams, self.streams))
        if hasattr(self, "clamp"):
            logits = logits.clamp(-self.clamp, self.clamp)
        if self.last == "columns":
            return autodiff.sinkhorn(logits, iterations=self.iterations)
        return autodiff.sinkhorn(logits.mT, iterations=self.iterations).mT

    def start(self) -> Tensor:
        """Logits of the matrix with diagonal 0.9 and equal off-diagonal entries."""
        return self.start_at(START_DIAGONAL)

    def start_at(self, diagonal: float) -> Tensor:
        """Logits of the matrix with that diagonal and equal off-diagonal entries."""
        n = self.streams
        if n == 1:
            return torch.zeros(1, dtype=torch.float64)
        logit = math.log(diagonal * (n - 1) / (1 - diagonal))
        return logit * torch.eye(n, dtype=torch.float64).flatten()

    def residual(self, matrix: Tensor) -> Tensor:
        """Largest deviation of a row or column sum from one, or most negative entry."""
        return birkhoff_defect(matrix)

    def extra_repr(self) -> str:
        """Show the number of streams and whatever else was chosen."""
        shown = super().extra_repr()
        # Weights that were written before there was a choice name none, and mean this one.
        return shown if self.last == "columns" else f"{shown}, last={self.last!r}"
