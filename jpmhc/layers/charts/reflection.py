"""The reflection mixer: a rotation followed by a partial reflection, which opens the way to determinant -1."""

import math
from functools import partial

import torch
from torch import Tensor

from jpmhc import autodiff
from jpmhc.layers.charts.cayley import orthogonality_defect
from jpmhc.layers.charts.contrasts import contrasts
from jpmhc.layers.charts.skew import UpperTriangle
from jpmhc.layers.mixer import Mixer, register_mixer


@register_mixer(
    "reflection", set="SO(n) to its reflections", coefficients="n(n+1)/2 + 1", exact=False, streams=(2, None)
)
class Reflection(Mixer):
    """``M = Q (I - b v v^T)`` with a rotation Q, a unit vector v and ``b = 2 sigmoid(raw - 4)`` in (0, 2).

    Orthogonal at b = 0 (determinant 1) and b = 2 (determinant -1); in between one singular value is ``|1 - b|`` and
    the others are one, so at b = 1 a direction of the streams is lost: the price of a path between the two halves of
    O(n). After EDelta's gated Householder branch (arXiv 2605.06729), as one factor.

    ``raw`` holds the packed skew matrix of Q (n(n-1)/2 numbers, as in ``cayley``), v (n, normalised) and the gate (1).

    Parameters
    ----------
    streams : int
        Number of streams n, at least 2.

    Notes
    -----
    The start has Q = I, b = 0.036 and v the first contrast ``(1, -1, 0, ...) / sqrt 2``, orthogonal to the all-ones
    vector: rows of M sum to one, and M is within 0.036 of I. A vector of zeros counts as the first contrast.

    Examples
    --------
    >>> import torch
    >>> raw = Reflection(2).start()
    >>> raw[-1] = 40.0  # b = 2
    >>> torch.linalg.det(Reflection(2)(raw)).round(decimals=6).item()
    -1.0
    """

    # Orthogonal at both ends only: it promises a path, not a set.
    promise = math.inf
    direction: Tensor

    def __init__(self, streams: int) -> None:
        super().__init__(streams)
        if streams < 2:
            raise ValueError(f"streams: expected at least 2 for a reflection, got {streams}")
        self.unpack = UpperTriangle(streams)
        self.n_coefficients = self.unpack.count + streams + 1
        self.register_constant("direction", partial(_first_contrast, streams))

    def forward(self, raw: Tensor) -> Tensor:
        """Map raw (..., n(n+1)/2 + 1) to matrices (..., n, n)."""
        packed, vector, gate = self._coefficients(raw).split([self.unpack.count, self.streams, 1], -1)
        rotation = autodiff.cayley(self.unpack(packed))
        square = vector.square().sum(-1, keepdim=True)
        usable = square > torch.finfo(vector.dtype).tiny
        # Both branches stay finite, or the one not taken would send NaN back.
        direction = self.constant("direction", vector.device).to(vector.dtype)
        unit = torch.where(usable, vector, direction) * torch.where(usable, square, 1.0).rsqrt()
        strength = 2 * torch.sigmoid(gate - 4)
        image = (rotation @ unit.unsqueeze(-1)).squeeze(-1)
        return rotation - (strength * image).unsqueeze(-1) * unit.unsqueeze(-2)

    def start(self) -> Tensor:
        """Q = I, v the first contrast, b = 0.036."""
        packed = torch.zeros(self.unpack.count, dtype=torch.float64)
        return torch.cat([packed, _first_contrast(self.streams), torch.zeros(1, dtype=torch.float64)])

    def residual(self, matrix: Tensor) -> Tensor:
        """Largest entry of ``|M^T M - I|``: ``b (2 - b)`` times the largest ``|v_i v_j|``."""
        return orthogonality_defect(matrix)


def _first_contrast(streams: int) -> Tensor:
    return contrasts(streams)[:, 0]
