"""EDelta's mixer, a gated sum of a rotation and a reflection, for comparisons."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softplus

from jpmhc import autodiff, layers


class Edelta(layers.Mixer):
    """``M = g Q + (1 - g) H`` of EDelta-MHC-Geo (arXiv 2605.06729, definitions 2.3, 5.1 and 5.2).

    ``Q = (I + b/2 A)^-1 (I - b/2 A)`` turns one plane, ``A = u v^T - v u^T``; ``H = I - 2 k k^T`` with a unit vector k;
    the gate g is a sigmoid, and ``4 g (1 - g)`` is added to the loss so that it leaves the middle, where M contracts.
    ``raw`` holds u, v, k (n each), the angle (1, through softplus) and the gate (1).

    Parameters
    ----------
    streams : int
        Number of streams n, at least 2.
    bias : float
        Of the gate, 0 as published; -1.5 in the published reflection test.
    weight : float
        Of ``4 g (1 - g)`` in the loss, 0.1 as published; 0.5 in the reflection test.

    Attributes
    ----------
    penalty : Tensor or None
        The weighted mean of ``4 g (1 - g)`` in the last forward, to be added to the loss.

    Notes
    -----
    The paper makes u, v and k with small networks that start at random; here they are linear in the normalised
    streams, as the coefficients of every other mixer, so u = e_0, v = e_1 and k = (e_0 - e_1) / sqrt 2 are added:
    from zeros no gradient would ever reach u and v. The paper applies M to the streams before they are read, here
    the read and the mixing are side by side, as in every other arm.
    """

    def __init__(self, streams: int, bias: float = 0.0, weight: float = 0.1) -> None:
        super().__init__(streams)
        if streams < 2:
            raise ValueError(f"streams: expected at least 2, got {streams}")
        self.bias, self.weight = bias, weight
        self.n_coefficients = 3 * streams + 2
        self.penalty: Tensor | None = None

    def forward(self, raw: Tensor) -> Tensor:
        """Map raw (..., 3n + 2) to matrices (..., n, n)."""
        n = self.streams
        u, v, k, angle, gate = self._coefficients(raw).split([n, n, n, 1, 1], -1)
        rotation = autodiff.cayley(-(softplus(angle) * u).unsqueeze(-1) * v.unsqueeze(-2))
        k = torch.nn.functional.normalize(k, dim=-1)
        reflection = torch.eye(n, dtype=raw.dtype, device=raw.device) - 2 * k.unsqueeze(-1) * k.unsqueeze(-2)
        g = torch.sigmoid(gate + self.bias)
        self.penalty = self.weight * 4 * (g * (1 - g)).mean()
        g = g.unsqueeze(-1)
        return g * rotation + (1 - g) * reflection

    def start(self) -> Tensor:
        """Return the start: u = e_0, v = e_1, k the first contrast, the angle ``2 arctan(log 2 / 2)``."""
        raw = torch.zeros(self.n_coefficients, dtype=torch.float64)
        raw[0] = raw[self.streams + 1] = 1.0
        raw[2 * self.streams : 2 * self.streams + 2] = torch.tensor([1.0, -1.0])
        return raw

    def residual(self, matrix: Tensor) -> Tensor:
        """Largest entry of ``|M^T M - I|``, zero at both ends of the gate only."""
        return (
            (matrix.mT @ matrix - torch.eye(self.streams, dtype=matrix.dtype, device=matrix.device))
            .abs()
            .amax((-2, -1))
        )
