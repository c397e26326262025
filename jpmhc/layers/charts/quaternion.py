"""The quaternion mixer: rotations of four streams as a product of two unit quaternions."""

from functools import partial

import torch
from torch import Tensor

from jpmhc.layers.charts.cayley import orthogonality_defect
from jpmhc.layers.mixer import Mixer, register_mixer

# Entry (i, j) of the matrix of a product with q: which component of q stands there, and with which sign.
_COMPONENT = ((0, 1, 2, 3), (1, 0, 3, 2), (2, 3, 0, 1), (3, 2, 1, 0))
_LEFT = ((1, -1, -1, -1), (1, 1, -1, 1), (1, 1, 1, -1), (1, -1, 1, 1))
_RIGHT = ((1, -1, -1, -1), (1, 1, 1, -1), (1, -1, 1, 1), (1, 1, -1, 1))


@register_mixer("quaternion", set="SO(4)", coefficients="8", exact=True, streams=(4, 4))
class Quaternion(Mixer):
    """Rotation ``M x = p x q`` of four streams, read as a quaternion, by two unit quaternions (oHC, arXiv 2609.02672).

    ``raw`` holds four numbers for p and four for q; each makes the unit quaternion along ``(1 + raw_0, raw_1, raw_2,
    raw_3)``. Every rotation of four dimensions is reached, those with an eigenvalue -1 included.

    Parameters
    ----------
    streams : int
        4.

    Notes
    -----
    ``M = I`` at raw = 0, the start. The chart has one singular point, ``raw = (-1, 0, 0, 0)`` for p or q, near which
    gradients grow like the inverse distance; at the point itself the quaternion counts as 1.

    Examples
    --------
    >>> import torch
    >>> torch.equal(Quaternion(4)(torch.zeros(8)), torch.eye(4))
    True
    """

    n_coefficients = 8
    component: Tensor
    left: Tensor
    right: Tensor
    one: Tensor

    def __init__(self, streams: int) -> None:
        super().__init__(streams)
        if streams != 4:
            raise ValueError(f"streams: expected 4 for a quaternion, got {streams}")
        self.register_constant("component", partial(torch.tensor, _COMPONENT))
        for name, values in (("left", _LEFT), ("right", _RIGHT), ("one", (1, 0, 0, 0))):
            self.register_constant(name, partial(torch.tensor, values, dtype=torch.float64))

    def forward(self, raw: Tensor) -> Tensor:
        """Map raw (..., 8) to rotations (..., 4, 4)."""
        p, q = (self._unit(part) for part in self._coefficients(raw).split(4, -1))
        left, right = p[..., self.component] * self.left.to(p), q[..., self.component] * self.right.to(q)
        return left @ right

    def start(self) -> Tensor:
        """M = I."""
        return torch.zeros(8, dtype=torch.float64)

    def residual(self, matrix: Tensor) -> Tensor:
        """Largest entry of ``|M^T M - I|``."""
        return orthogonality_defect(matrix)

    def _unit(self, raw: Tensor) -> Tensor:
        one = self.one.to(raw)
        quaternion = raw + one
        # The direction does not depend on the scale, and squares of small numbers underflow before the numbers do.
        largest = quaternion.detach().abs().amax(-1, keepdim=True)
        usable = largest > torch.finfo(raw.dtype).tiny
        scaled = torch.where(usable, quaternion / torch.where(usable, largest, 1.0), one)
        return scaled * scaled.square().sum(-1, keepdim=True).rsqrt()
