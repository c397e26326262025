"""Mixers made of a Cayley transform: rotations of all streams, of their contrasts, and the published approximation."""

from functools import partial

import torch
from torch import Tensor, nn

from jpmhc import autodiff
from jpmhc.layers.arguments import check_number, check_size
from jpmhc.layers.charts.contrasts import contrasts, on_contrasts
from jpmhc.layers.charts.skew import UpperTriangle
from jpmhc.layers.mixer import Mixer, register_mixer


def orthogonality_defect(matrix: Tensor) -> Tensor:
    """Return the largest entry of ``|M^T M - I|`` of matrices (..., n, n)."""
    eye = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    return (matrix.mT @ matrix - eye).abs().amax((-2, -1))


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
    packed : bool
        False for JPmHC's n^2 raw numbers, read row by row as a matrix R with ``W = R - R^T``.

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

    def __init__(self, streams: int, step: float = 1.0, packed: bool = True) -> None:
        super().__init__(streams)
        self.step, self.packed = check_number("step", step), packed
        self.unpack: nn.Module = UpperTriangle(streams) if packed else nn.Unflatten(-1, (streams, streams))
        self.n_coefficients = streams * (streams - 1) // 2 if packed else streams * streams

    def forward(self, raw: Tensor) -> Tensor:
        """Map raw (..., n(n-1)/2) to rotations (..., n, n)."""
        return autodiff.cayley(self.unpack(self._coefficients(raw)), step=self.step)

    def start(self) -> Tensor:
        """W = 0, so M = I."""
        return torch.zeros(self.n_coefficients, dtype=torch.float64)

    def residual(self, matrix: Tensor) -> Tensor:
        """Largest entry of ``|M^T M - I|``."""
        return orthogonality_defect(matrix)


@register_mixer("cayley-iterated", set="near SO(n)", coefficients="n(n-1)/2", exact=False)
class CayleyIterated(Cayley):
    """The Cayley mixer as JPmHC computes it (arXiv 2602.18308, Algorithm 8): a few steps of a fixed-point iteration.

    ``Y <- I + (step/2) W (I + Y)`` from ``Y = I + step W``. Its gradient is that of the equation at the point reached.

    Parameters
    ----------
    streams : int
        Number of streams n.
    iterations : int
        Steps of the iteration, 2 in JPmHC.
    step : float
        Scale of W, 0.1 in JPmHC.
    packed : bool
        As for ``cayley``.

    Notes
    -----
    Orthogonal to 1e-3 while ``||W||_2 < 0.25 / step`` (2.5 at the published step); beyond that it contracts, and from
    ``||W||_2 = 2 / step`` on the iteration diverges: more steps make it worse. :meth:`residual` measures how far
    off a matrix is, :func:`jpmhc.autodiff.cayley` has the exact formulas.

    Examples
    --------
    >>> import torch
    >>> mixer = CayleyIterated(4)
    >>> bool(mixer.residual(mixer(torch.ones(6))) < 1e-3), bool(mixer.residual(mixer(30 * torch.ones(6))) > 1)
    (True, True)
    """

    promise = 1e-3

    def __init__(self, streams: int, iterations: int = 2, step: float = 0.1, packed: bool = True) -> None:
        super().__init__(streams, step, packed)
        self.iterations = check_size("iterations", iterations)

    def forward(self, raw: Tensor) -> Tensor:
        """Map raw (..., n(n-1)/2) to nearly orthogonal matrices (..., n, n)."""
        return autodiff.cayley(self.unpack(self._coefficients(raw)), step=self.step, iterations=self.iterations)


@register_mixer("cayley-mean", set="SO(n) fixing 1", coefficients="(n-1)(n-2)/2", exact=True)
class CayleyMean(Mixer):
    """Rotation that leaves the mean of the streams alone: ``M = 1 1^T / n + U C U^T``, C in SO(n-1).

    U is an orthonormal basis of the contrasts (Helmert's), C the Cayley transform of a skew matrix of size n - 1
    packed row by row. Nothing passes between the mean of the streams and their differences, in either direction.
    With two streams it is the identity.

    Parameters
    ----------
    streams : int
        Number of streams n.
    step : float
        Scale of the skew matrix.

    Notes
    -----
    The start is M = I.

    Examples
    --------
    >>> import torch
    >>> CayleyMean(4)(torch.tensor([1.0, -2.0, 0.5])).sum(-1).round(decimals=4)
    tensor([1., 1., 1., 1.])
    """

    basis: Tensor

    def __init__(self, streams: int, step: float = 1.0) -> None:
        super().__init__(streams)
        self.step = check_number("step", step)
        self.unpack = UpperTriangle(streams - 1)
        self.n_coefficients = self.unpack.count
        self.register_constant("basis", partial(contrasts, streams))

    def forward(self, raw: Tensor) -> Tensor:
        """Map raw (..., (n-1)(n-2)/2) to rotations (..., n, n) whose rows and columns sum to one."""
        raw = self._coefficients(raw)
        if self.streams == 1:
            return raw.new_ones(*raw.shape[:-1], 1, 1)
        return on_contrasts(autodiff.cayley(self.unpack(raw), step=self.step), self.constant("basis", raw.device))

    def start(self) -> Tensor:
        """M = I."""
        return torch.zeros(self.n_coefficients, dtype=torch.float64)

    def residual(self, matrix: Tensor) -> Tensor:
        """Largest entry of ``|M^T M - I|`` or deviation of a row sum from one."""
        return torch.maximum(orthogonality_defect(matrix), (matrix.sum(-1) - 1).abs().amax(-1))
