"""The Cayley mixer: rotations by the exact Cayley transform."""

import torch
from torch import Tensor

from jpmhc import autodiff
from jpmhc.layers.mixer import Mixer, register_mixer


@register_mixer("cayley", set="SO(n)", coefficients="n(n-1)/2", exact=True)
class Cayley(Mixer):
    """Rotation ``M = (I - step W/2)^-1 (I + step W/2)``, the mixer of JPmHC (arXiv 2602.18308, eq. 38), exact.

    ``raw`` packs the skew matrix W row by row: ``W[i, j] = raw_k`` for ``i < j``. JPmHC takes n^2 numbers and
    ``W = raw - raw^T``; these n(n-1)/2 reach the same matrices.

    Parameters
    ----------
    streams : int
        Number of streams n.
    step : float
        Scale of W: 1 here, 0.1 in JPmHC. With 0.1 the same raw numbers turn the streams a tenth as far.

    Notes
    -----
    ``M = I`` and ``dM/draw_k = step (E_ij - E_ji)`` at raw = 0, the start. Rotations with an eigenvalue -1 and
    reflections are out of reach.

    Examples
    --------
    >>> import torch
    >>> matrix = Cayley(2)(torch.tensor([2.0]))  # tan(angle / 2) = raw / 2
    >>> torch.allclose(matrix, torch.tensor([[0.0, 1.0], [-1.0, 0.0]]), atol=1e-6)
    True
    """

    place: Tensor

    def __init__(self, streams: int, step: float = 1.0) -> None:
        super().__init__(streams)
        self.n_coefficients = streams * (streams - 1) // 2
        self.step = step
        upper = torch.triu_indices(streams, streams, 1)
        # Entry (i, j) of the strict upper triangle takes coefficient k; every other entry takes the zero behind them.
        place = torch.full((streams, streams), self.n_coefficients)
        place[upper[0], upper[1]] = torch.arange(self.n_coefficients)
        self.register_buffer("place", place.flatten(), persistent=False)

    def forward(self, raw: Tensor) -> Tensor:
        """Map raw (..., n(n-1)/2) to rotations (..., n, n)."""
        raw = self._coefficients(raw)
        padded = torch.nn.functional.pad(raw, (0, 1))
        upper = padded[..., self.place].unflatten(-1, (self.streams, self.streams))
        return autodiff.cayley(upper, step=self.step)

    def start(self) -> Tensor:
        """W = 0, so M = I."""
        return torch.zeros(self.n_coefficients, dtype=torch.float64)

    def residual(self, matrix: Tensor) -> Tensor:
        """Largest entry of ``|M^T M - I|``."""
        eye = torch.eye(self.streams, dtype=matrix.dtype, device=matrix.device)
        return (matrix.mT @ matrix - eye).abs().amax((-2, -1))
