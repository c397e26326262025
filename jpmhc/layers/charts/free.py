"""The free mixer: any matrix, the unconstrained skip of Hyper-Connections."""

import torch
from torch import Tensor

from jpmhc.layers.mixer import Mixer, register_mixer


@register_mixer("free", set="all matrices", coefficients="n^2", exact=True)
class Free(Mixer):
    """``M = raw`` read row by row, with the token-dependent part bounded by tanh (HC, arXiv 2409.19606, eq. 10).

    Nothing keeps a product of such matrices from growing or vanishing with depth: with HC the composite gain was
    seen at 3,000 (mHC, arXiv 2512.24880).

    Examples
    --------
    >>> mixer = Free(2)
    >>> mixer(mixer.start()).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """

    # As HC bounds its dynamic part.
    squashes = True

    def __init__(self, streams: int) -> None:
        super().__init__(streams)
        self.n_coefficients = streams * streams

    def forward(self, raw: Tensor) -> Tensor:
        """Reshape raw (..., n^2), row-major, to (..., n, n)."""
        raw = self._coefficients(raw)
        return raw.unflatten(-1, (self.streams, self.streams))

    def start(self) -> Tensor:
        """M = I."""
        return torch.eye(self.streams, dtype=torch.float64).flatten()

    def residual(self, matrix: Tensor) -> Tensor:
        """Zero: every matrix is in the set."""
        return matrix.new_zeros(matrix.shape[:-2])
