"""The quaternion mixer: rotations of four streams as a product of two unit quaternions."""

import torch
from torch import Tensor

from jpmhc import autodiff
from jpmhc.layers.charts.cayley import orthogonality_defect
from jpmhc.layers.mixer import Mixer, register_mixer


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

    def __init__(self, streams: int) -> None:
        super().__init__(streams)
        if streams != 4:
            raise ValueError(f"streams: expected 4 for a quaternion, got {streams}")

    def forward(self, raw: Tensor) -> Tensor:
        """Map raw (..., 8) to rotations (..., 4, 4)."""
        real, imaginary = self._coefficients(raw).unflatten(-1, (2, 4)).split([1, 3], -1)
        # Not written in place: torch.func.linearize folds what an operation writes into a constant without the write.
        return autodiff.quaternion(torch.cat([1 + real, imaginary], -1))

    def start(self) -> Tensor:
        """M = I."""
        return torch.zeros(8, dtype=torch.float64)

    def residual(self, matrix: Tensor) -> Tensor:
        """Largest entry of ``|M^T M - I|``."""
        return orthogonality_defect(matrix)
