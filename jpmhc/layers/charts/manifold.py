"""Mixers whose chart is a retraction: tangent vectors at a base point, for any manifold and for the Grassmannian."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from jpmhc.layers.charts.base_point import BasePointMixer, parameter_dtype
from jpmhc.layers.charts.birkhoff import START_DIAGONAL
from jpmhc.layers.charts.cayley import orthogonality_defect
from jpmhc.layers.charts.contrasts import contrasts
from jpmhc.layers.mixer import register_mixer

if TYPE_CHECKING:
    from jpmhc import manifolds


@register_mixer("grassmann", set="rank-p projectors", coefficients="n p", exact=True)
class Grassmann(BasePointMixer):
    """Projector ``M = U U^T`` onto a subspace of the streams (JPmHC, arXiv 2602.18308, section on Grassmann mixers).

    ``U = retr(U_0, raw)``: raw is read row by row as an n x p matrix and projected to a tangent vector of the
    Grassmannian at U_0. A projector erases n - p directions of the streams in every layer; the reflector
    ``2 U U^T - I`` erases none. ``stored=True`` does without raw numbers: U itself is a
    :class:`jpmhc.manifolds.Parameter` that a Riemannian optimiser moves, as the publication's appendix J has it.

    Parameters
    ----------
    streams : int
        Number of streams n.
    rank : int, optional
        Dimension p of the subspace, 1 to n; half of n by default.
    reflector : bool
        Whether M is the reflector.
    stored : bool
        Whether U is a parameter, the same for all tokens.

    Notes
    -----
    The start has the all-ones direction inside its subspace, with the first p - 1 contrasts beside it: rows of M sum
    to one.

    Examples
    --------
    >>> mixer = Grassmann(4, rank=2)
    >>> matrix = mixer(mixer.start())
    >>> round(matrix.diagonal().sum().item(), 6), bool(mixer.residual(matrix) < 1e-14)
    (2.0, True)
    """

    base: Tensor

    def __init__(self, streams: int, rank: int | None = None, reflector: bool = False, stored: bool = False) -> None:
        super().__init__(streams)
        from jpmhc import manifolds

        self.rank = max(1, streams // 2) if rank is None else rank
        if not 1 <= self.rank <= streams:
            raise ValueError(f"rank: expected 1 to {streams}, got {rank}")
        self.reflector = reflector
        self.n_coefficients = 0 if stored else streams * self.rank
        self.manifold = manifolds.Grassmann()
        if stored:
            self.stored = True
            with torch.device("cpu"):
                start = _subspace(streams, self.rank).to(parameter_dtype())
            self.set_base(start, self.manifold)
        else:
            self.register_constant("base", partial(_subspace, streams, self.rank))

    def forward(self, raw: Tensor) -> Tensor:
        """Map raw (..., n p), or (..., 0) where U is stored, to projectors or reflectors (..., n, n)."""
        raw = self._coefficients(raw)
        base = self.base if hasattr(self, "stored") else self.constant("base", raw.device)
        frame = base.to(raw).expand(*raw.shape[:-1], *base.shape)
        if self.n_coefficients:
            tangent = raw.unflatten(-1, (self.streams, self.rank))
            frame = self.manifold.retr(frame, self.manifold.proju(frame, tangent))
        projector = frame @ frame.mT
        if not self.reflector:
            return projector
        return 2 * projector - torch.eye(self.streams, dtype=raw.dtype, device=raw.device)

    def start(self) -> Tensor:
        """Zero tangent vector."""
        return torch.zeros(self.n_coefficients, dtype=torch.float64)

    def residual(self, matrix: Tensor) -> Tensor:
        """Largest entry of ``|M M - M|``, of ``|M^T M - I|`` for a reflector, or of ``|M - M^T|``."""
        defect = orthogonality_defect(matrix) if self.reflector else (matrix @ matrix - matrix).abs().amax((-2, -1))
        return torch.maximum(defect, (matrix - matrix.mT).abs().amax((-2, -1)))


@register_mixer("manifold", set="any manifold", coefficients="0, or a point's", exact=True)
class Manifold(BasePointMixer):
    """A point of a manifold that an optimiser moves: a static mixer without a chart of its own.

    The base point is a :class:`jpmhc.manifolds.Parameter`, so the Riemannian optimisers of ``jpmhc.optim`` (and
    geoopt's) keep it on its manifold; with any other optimiser it leaves it. It stays in float32 in a model of lower
    precision. ``tangent=True`` adds raw numbers, read as a tangent vector at the base point, that move M away from it
    token by token.

    Parameters
    ----------
    streams : int
        Number of streams n.
    manifold : manifolds.Manifold, optional
        Of n x n matrices, or the Grassmannian, whose projector is M. ``SpecialOrthogonal()`` by default.
    base : Tensor, optional
        Where to start, a point of the manifold. By default I where that is one, otherwise near I (Birkhoff), a
        subspace with the all-ones direction (Grassmann), or the manifold's origin.
    rank : int, optional
        Columns of a point of the Grassmannian; half of n by default.
    tangent : bool
        Whether raw numbers, as many as a point has entries, move M through the manifold's retraction.

    Examples
    --------
    >>> from jpmhc import layers, optim
    >>> hc = layers.HyperConnection(8, torch.nn.Linear(8, 8), mixer="manifold")
    >>> optimiser = optim.RiemannianAdam(optim.parameter_groups(hc, lr=1e-2))
    >>> hc(torch.randn(5, 4, 8)).sum().backward()
    >>> optimiser.step()
    >>> bool(hc.mixer.residual(hc.mixer.base) < 1e-6)
    True
    """

    def __init__(
        self,
        streams: int,
        manifold: manifolds.Manifold | None = None,
        base: Tensor | None = None,
        rank: int | None = None,
        tangent: bool = False,
    ) -> None:
        super().__init__(streams)
        from jpmhc import manifolds

        self.manifold = manifolds.SpecialOrthogonal() if manifold is None else manifold
        if base is None:
            with torch.device("cpu"):
                base = _start_point(self.manifold, streams, rank).to(parameter_dtype())
        self.set_base(base, self.manifold)
        if tuple(self.manifold.embed(self.base).shape) != (streams, streams):
            raise ValueError(
                f"base: expected a point that is, or projects to, a matrix of shape ({streams}, {streams}), "
                f"got {tuple(self.base.shape)} on {self.manifold}"
            )
        self.tangent = tangent
        self.n_coefficients = self.base.numel() if tangent else 0

    def forward(self, raw: Tensor) -> Tensor:
        """Move the base point by raw (..., 0) or (..., entries of a point), and return matrices (..., n, n)."""
        raw = self._coefficients(raw)
        base = self.base.to(raw.dtype).expand(*raw.shape[:-1], *self.base.shape)
        if self.n_coefficients:
            tangent = self.manifold.proju(base, raw.unflatten(-1, self.base.shape))
            base = self.manifold.retr(base, tangent)
        return self.manifold.embed(base)

    def start(self) -> Tensor:
        """Zero tangent vector: M is the base point."""
        return torch.zeros(self.n_coefficients, dtype=torch.float64)

    def describe(self) -> str:
        """Return the choices, the manifold among them."""
        return f"{super().describe()} on {' '.join(repr(self.manifold).split())}"

    def residual(self, matrix: Tensor) -> Tensor:
        """Largest violation of the manifold's constraint; for the Grassmannian of the projector's ``M M = M``."""
        if self.base.shape[-2:] != matrix.shape[-2:]:
            return (matrix @ matrix - matrix).abs().amax((-2, -1))
        return self.manifold.point_error(matrix)


def _subspace(streams: int, rank: int) -> Tensor:
    """Orthonormal columns (n, p), float64: the all-ones direction, then contrasts."""
    ones = torch.full((streams, 1), streams**-0.5, dtype=torch.float64)
    return torch.cat([ones, contrasts(streams)[:, : rank - 1]], 1)


def _start_point(manifold: manifolds.Manifold, streams: int, rank: int | None) -> Tensor:
    from jpmhc import manifolds

    if isinstance(manifold, manifolds.Grassmann):
        return _subspace(streams, max(1, streams // 2) if rank is None else rank)
    eye = torch.eye(streams, dtype=torch.float64)
    share = (1 - START_DIAGONAL) / max(1, streams - 1)
    near = share + (START_DIAGONAL - share) * eye if streams > 1 else eye
    for candidate in (eye, near):
        if manifold.accepts(candidate.shape) and manifold.check_point_on_manifold(candidate):
            return candidate
    return manifold.origin(streams, streams, dtype=torch.float64)
