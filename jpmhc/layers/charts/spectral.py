"""The spectral mixer: signed matrices with unit spectral norm whose rows and columns sum to one."""

import math
from functools import partial

import torch
from torch import Tensor

from jpmhc import autodiff
from jpmhc.layers.charts.birkhoff import START_DIAGONAL
from jpmhc.layers.charts.contrasts import contrasts, on_contrasts
from jpmhc.layers.charts.skew import UpperTriangle
from jpmhc.layers.mixer import Mixer, register_mixer


@register_mixer("spectral", set="norm 1, sums 1", coefficients="(n-1)^2", exact=True)
class Spectral(Mixer):
    """``M = 1 1^T / n + U (Q_a diag(tanh s) Q_b^T) U^T``: the mean kept, the contrasts contracted (sHC, 2603.20896).

    U is an orthonormal basis of the contrasts (Helmert's), Q_a and Q_b are Cayley transforms of size n - 1. ``raw``
    holds the packed skew matrices of Q_a and of Q_b, then s. Unlike a doubly stochastic matrix M may have negative
    entries, and its singular values are free in [0, 1]. With s at infinity it is ``cayley-mean``.

    Parameters
    ----------
    streams : int
        Number of streams n.

    Notes
    -----
    I is on the border, at infinite s, so the start is near it: Q_a = Q_b = I and ``tanh s = 0.9``, where ``dM/ds`` is
    0.19 (sHC starts at ``tanh 4 = 0.9993``, with a slope of 0.0013).

    Examples
    --------
    >>> mixer = Spectral(4)
    >>> matrix = mixer(mixer.start())
    >>> [round(s, 6) for s in torch.linalg.svdvals(matrix).tolist()]
    [1.0, 0.9, 0.9, 0.9]
    """

    basis: Tensor

    def __init__(self, streams: int) -> None:
        super().__init__(streams)
        self.unpack = UpperTriangle(streams - 1)
        self.sizes = [self.unpack.count, self.unpack.count, streams - 1]
        self.n_coefficients = sum(self.sizes)
        self.register_constant("basis", partial(contrasts, streams))

    def forward(self, raw: Tensor) -> Tensor:
        """Map raw (..., (n-1)^2) to matrices (..., n, n)."""
        left, right, strength = self._coefficients(raw).split(self.sizes, -1)
        if self.streams == 1:
            return strength.new_ones(*strength.shape[:-1], 1, 1)
        left, right = autodiff.cayley(self.unpack(left)), autodiff.cayley(self.unpack(right))
        basis = self.constant("basis", strength.device)
        return on_contrasts(left * strength.tanh().unsqueeze(-2) @ right.mT, basis)

    def start(self) -> Tensor:
        """Singular values 0.9 on the contrasts, no rotation."""
        raw = torch.zeros(self.n_coefficients, dtype=torch.float64)
        raw[self.n_coefficients - (self.streams - 1) :] = math.atanh(START_DIAGONAL)
        return raw

    def residual(self, matrix: Tensor) -> Tensor:
        """Largest deviation of a row or column sum from one, or excess of the spectral norm over one."""
        rows = (matrix.sum(-1) - 1).abs().amax(-1)
        columns = (matrix.sum(-2) - 1).abs().amax(-1)
        return torch.maximum(torch.maximum(rows, columns), torch.linalg.matrix_norm(matrix, 2) - 1)
