"""The identity mixer: streams that are read and written, never mixed."""

import torch
from torch import Tensor

from jpmhc.layers.mixer import Mixer, register_mixer


@register_mixer("identity", set="{I}", coefficients="0", exact=True)
class Identity(Mixer):
    """``M = I``, no raw numbers: the gates alone do the work.

    The control that every claim about a mixer needs. A layer does not multiply by it.

    Examples
    --------
    >>> import torch
    >>> Identity(2)(torch.empty(3, 0)).shape
    torch.Size([3, 2, 2])
    """

    n_coefficients = 0
    mixes = False

    def forward(self, raw: Tensor) -> Tensor:
        """Return I for every batch entry of raw (..., 0), as a view without storage of its own per entry."""
        raw = self._coefficients(raw)
        eye = torch.eye(self.streams, dtype=raw.dtype, device=raw.device)
        return eye.expand(*raw.shape[:-1], self.streams, self.streams)

    def start(self) -> Tensor:
        """No raw numbers."""
        return torch.zeros(0, dtype=torch.float64)

    def residual(self, matrix: Tensor) -> Tensor:
        """Largest entry of ``|M - I|``."""
        eye = torch.eye(self.streams, dtype=matrix.dtype, device=matrix.device)
        return (matrix - eye).abs().amax((-2, -1))
