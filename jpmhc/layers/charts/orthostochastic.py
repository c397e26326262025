"""The orthostochastic mixer: doubly stochastic matrices as squared entries of an orthogonal one."""

import torch
from torch import Tensor

from jpmhc import autodiff
from jpmhc.layers.charts.birkhoff import START_DIAGONAL, birkhoff_defect, bisect
from jpmhc.layers.charts.skew import UpperTriangle
from jpmhc.layers.mixer import Mixer, register_mixer


@register_mixer("orthostochastic", set="Birkhoff", coefficients="sn(sn-1)/2", exact=True)
class Orthostochastic(Mixer):
    """``M_ij = |Q_ij|_F^2 / s`` over the s x s blocks of a rotation Q of size s n (go-mHC, arXiv 2604.02309).

    Q is the exact Cayley transform of a packed skew matrix. With blocks of one entry (s = 1) only the orthostochastic
    part of the Birkhoff polytope is reached; larger blocks reach more.

    Parameters
    ----------
    streams : int
        Number of streams n.
    blocks : int
        Size s of a block; 2 in go-mHC.

    Notes
    -----
    At raw = 0, where M = I, the chart is flat: M is quadratic in raw there. The start has a mean diagonal of 0.9, from
    a skew matrix whose blocks above the diagonal are equal multiples of the s x s identity; its off-diagonal entries
    are not all equal (n = 4: between 0.022 and 0.047).

    Examples
    --------
    >>> mixer = Orthostochastic(4)
    >>> matrix = mixer(mixer.start())
    >>> round(matrix.diagonal().mean().item(), 6), bool(mixer.residual(matrix) < 1e-14)
    (0.9, True)
    """

    def __init__(self, streams: int, blocks: int = 2) -> None:
        super().__init__(streams)
        if blocks < 1:
            raise ValueError(f"blocks: expected at least 1, got {blocks}")
        self.blocks = blocks
        self.unpack = UpperTriangle(streams * blocks)
        self.n_coefficients = self.unpack.count

    def forward(self, raw: Tensor) -> Tensor:
        """Map raw (..., sn(sn-1)/2) to doubly stochastic (..., n, n)."""
        return self._squares(autodiff.cayley(self.unpack(self._coefficients(raw))))

    def _squares(self, rotation: Tensor) -> Tensor:
        blocks = rotation.unflatten(-2, (self.streams, self.blocks)).unflatten(-1, (self.streams, self.blocks))
        return blocks.square().sum((-3, -1)) / self.blocks

    def start(self) -> Tensor:
        """Skew matrix of a mean diagonal of 0.9."""
        above = torch.ones(self.streams, self.streams, dtype=torch.float64).triu(1)
        pattern = torch.kron(above, torch.eye(self.blocks, dtype=torch.float64))
        row, column = torch.triu_indices(len(pattern), len(pattern), 1)
        packed = pattern[row, column]
        if self.streams == 1:
            return 0 * packed

        def excess(scale: float) -> float:
            return self._squares(autodiff.cayley(scale * pattern)).diagonal().mean().item() - START_DIAGONAL

        # The mean diagonal falls from 1 as the angles grow from 0.
        high = 0.1
        while excess(high) > 0:
            high *= 2
        return bisect(excess, 0.0, high) * packed

    def residual(self, matrix: Tensor) -> Tensor:
        """Largest deviation of a row or column sum from one, or most negative entry."""
        return birkhoff_defect(matrix)
