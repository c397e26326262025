"""Subspaces, represented by matrices with orthonormal columns that span them."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from jpmhc import autodiff
from jpmhc.kernels.batches import inv
from jpmhc.manifolds import steps
from jpmhc.manifolds.algebra import angle_over_sine, frobenius, identity, norm, polish, sine_and_versine, symmetric
from jpmhc.manifolds.angles import angle_vector
from jpmhc.manifolds.base import Manifold


class Grassmann(Manifold):
    """Subspaces of dimension p in n dimensions, each given by any ``x`` of shape n x p with ``x^T x = I``.

    ``x`` and ``x r`` are the same point for orthogonal r. Tangent vectors are horizontal, ``x^T u = 0``, and
    belong to their representative: ``u`` at ``x`` is ``u r`` at ``x r``.

    Parameters
    ----------
    retraction : {"polar", "qr", "exp"}
        Nearest matrix to ``x + u``, its orthonormalised columns (the same subspace, another representative; both of
        second order), or the geodesic.

    Notes
    -----
    Metric: ``<u, v>``, under which a line turned by t moves by t. `transp` is parallel transport along the shortest
    geodesic, isometric, to the representative asked for. `projector` is the matrix ``x x^T`` that does not depend on
    the representative. `random` is uniform; `origin` is spanned by the first p basis vectors. Cost: O(n p^2).

    Everything is a function of p x p products of the arguments, not of a singular value decomposition, and so has
    derivatives at equal and at zero angles. `dist` is exactly 0 at equal arrays, with a gradient of zero; of two
    representatives of one subspace it is round-off, and its gradient of any direction. `expmap` is NaN for vectors
    longer than 128. `logmap` is NaN where an angle is exactly pi/2, and there is no shortest way; `dist` is right there
    too.

    References
    ----------
    Edelman, Arias and Smith, "The geometry of algorithms with orthogonality constraints", 1998. Bendokat, Zimmermann
    and Absil, "A Grassmann manifold handbook", 2024.

    Examples
    --------
    >>> import torch
    >>> from jpmhc import manifolds
    >>> grassmann = manifolds.Grassmann()
    >>> x = grassmann.origin(3, 1, dtype=torch.float64)
    >>> y = torch.tensor([[0.0], [-1.0], [0.0]], dtype=torch.float64)
    >>> grassmann.dist(x, y), grassmann.principal_angles(x, -x)
    (tensor(1.5708, dtype=torch.float64), tensor([0.], dtype=torch.float64))
    """

    name = "Grassmann"
    shape_pattern = "(..., n, p) with n >= p >= 1"
    retraction_order = 2
    isometric_transport = True
    reversible = True
    retractions: ClassVar[tuple[str, ...]] = ("polar", "qr", "exp")

    def __init__(self, retraction: str = "polar") -> None:
        super().__init__()
        self.retraction = self._choose("retraction", retraction, self.retractions)

    def accepts(self, shape: tuple[int, ...]) -> bool:
        """Whether ``n >= p >= 1``."""
        return len(shape) >= 2 and shape[-2] >= shape[-1] >= 1

    def point_error(self, x: Tensor) -> Tensor:
        """Largest entry of ``|x^T x - I|``."""
        return (x.mT @ x - identity(x)).abs().amax((-2, -1))

    def tangent_error(self, x: Tensor, u: Tensor) -> Tensor:
        """Largest entry of ``|x^T u|``."""
        return (x.mT @ u).abs().amax((-2, -1))

    def dim(self, shape: tuple[int, ...]) -> int:
        """``p (n - p)``."""
        n, p = shape[-2:]
        return p * (n - p)

    def embed(self, x: Tensor) -> Tensor:
        """Orthogonal projector ``x x^T``, equal for all representatives."""
        return x @ x.mT

    def projector(self, x: Tensor) -> Tensor:
        """Orthogonal projector ``x x^T`` onto the subspace, shape (..., n, n)."""
        return x @ x.mT

    def projx(self, x: Tensor) -> Tensor:
        """Nearest matrix with orthonormal columns, which spans the columns of `x`; NaN where they are dependent."""
        return autodiff.polar(x)

    def proju(self, x: Tensor, u: Tensor) -> Tensor:
        """``u - x x^T u``, the horizontal part."""
        return steps.tangent_part(x, u, 1.0, -1.0, 0.0)

    def egrad2rgrad(self, x: Tensor, u: Tensor) -> Tensor:
        """``u - x x^T u``, for a function that is the same for all representatives."""
        return steps.tangent_part(x, u, 1.0, -1.0, 0.0)

    def ehess2rhess(self, x: Tensor, egrad: Tensor, ehess: Tensor, u: Tensor) -> Tensor:
        """Horizontal part of ``ehess - u x^T egrad``."""
        return self.proju(x, ehess - u @ (x.mT @ egrad))

    def inner(self, x: Tensor, u: Tensor, v: Tensor | None = None, *, keepdim: bool = False) -> Tensor:
        """``sum(u * v)``, one number a matrix."""
        return frobenius(x, u, u if v is None else v, keepdim=keepdim)

    def retr(self, x: Tensor, u: Tensor) -> Tensor:
        """Move from `x` along `u` by the retraction of this manifold."""
        if self.retraction == "exp":
            return self.expmap(x, u)
        return autodiff.polar(x + u) if self.retraction == "polar" else steps.orthonormalised(x + u)

    def retr_transp(self, x: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """`retr` and `v` in parallel along the geodesic to it."""
        if self.retraction == "exp":
            return self.expmap_transp(x, u, v)
        y = self.retr(x, u)
        if self.retraction == "polar":
            return y, self.proju(y, _along_geodesic(x, y, v))
        return y, self.transp(x, y, v)

    def expmap(self, x: Tensor, u: Tensor) -> Tensor:
        """``x cos(T) + u sin(T) / T`` with ``T^2 = u^T u``."""
        u = self.proju(x, u)
        square = u.mT @ u
        sine, versine = sine_and_versine(square)
        return polish(x - x @ (square @ versine) + u @ sine)

    def expmap_transp(self, x: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """`expmap` and `v` in parallel along it: ``v - (x sin(T) / T + u (1 - cos T) / T^2) u^T v``."""
        u = self.proju(x, u)
        square = u.mT @ u
        sine, versine = sine_and_versine(square)
        y = polish(x - x @ (square @ versine) + u @ sine)
        return y, self.proju(y, v - (x @ sine + u @ versine) @ (u.mT @ v))

    def logmap(self, x: Tensor, y: Tensor) -> Tensor:
        """Shortest horizontal vector whose geodesic ends in the subspace of `y`."""
        aligned = y @ autodiff.polar(x.mT @ y).mT
        cosine = symmetric(x.mT @ aligned)
        return _outside(x, aligned) @ angle_over_sine(cosine)

    def dist(self, x: Tensor, y: Tensor, *, keepdim: bool = False) -> Tensor:
        """Root of the sum of squared principal angles."""
        result = norm(_angles(x, y), (-2, -1))
        return result if keepdim else result.squeeze((-2, -1))

    def dist2(self, x: Tensor, y: Tensor, *, keepdim: bool = False) -> Tensor:
        """Square of `dist`, smooth at equal points."""
        angles = _angles(x, y)
        return (angles * angles).sum((-2, -1), keepdim=keepdim)

    def transp(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """Parallel transport along the shortest geodesic, to the representative `y`; NaN at a right angle."""
        turn = autodiff.polar(x.mT @ y)
        return self.proju(y, _along_geodesic(x, y @ turn.mT, v) @ turn)

    def principal_angles(self, x: Tensor, y: Tensor) -> Tensor:
        """Angles between two subspaces, ascending, shape (..., p), accurate from 0 to pi/2.

        For display and diagnosis: singular values, which wait for the device and have a derivative only where the
        angles differ. `dist` is their norm without either.
        """
        sine = torch.linalg.svdvals(_outside(x, y)).flip(-1)
        return torch.atan2(sine, torch.linalg.svdvals(x.mT @ y))

    def _random(self, shape: tuple[int, ...], generator: torch.Generator | None, like: dict[str, Any]) -> Tensor:
        return steps.orthonormalised(torch.randn(shape, generator=generator, **like))

    def _origin(self, shape: tuple[int, ...], like: dict[str, Any]) -> Tensor:
        return torch.eye(*shape[-2:], **like).expand(shape).clone()

    def _settings(self) -> tuple[Any, ...]:
        return (self.retraction,)

    def extra_repr(self) -> str:
        """Return the constructor arguments."""
        return f"retraction={self.retraction!r}"


def _outside(x: Tensor, y: Tensor) -> Tensor:
    """Part of `y` outside the span of `x`, from the difference, which is exact where they are near."""
    return steps.tangent_part(x, y - x, 1.0, -1.0, 0.0)


def _angles(x: Tensor, y: Tensor) -> Tensor:
    return angle_vector(x.mT @ y, _outside(x, y))


def _along_geodesic(x: Tensor, y: Tensor, v: Tensor) -> Tensor:
    """Transport `v` in parallel to `y`, aligned so that ``x^T y`` is symmetric positive semidefinite."""
    return v - (x + y) @ (inv(identity(x) + x.mT @ y) @ (y.mT @ v))
