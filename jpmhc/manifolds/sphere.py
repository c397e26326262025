"""Unit vectors with the metric of the space around them."""

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from jpmhc.kernels.reading import can_read
from jpmhc.manifolds.algebra import cosine_and_sinc, norm, scalar_angle_over_sine
from jpmhc.manifolds.angles import squared_angle
from jpmhc.manifolds.base import Manifold


class Sphere(Manifold):
    """Vectors of length one, ``|x| = 1``.

    Parameters
    ----------
    retraction : {"projection", "exp"}
        ``(x + u) / |x + u|``, of second order, or the exponential map.

    Notes
    -----
    Metric: Euclidean. Transport: parallel along the shortest geodesic, a reflection, isometric; at antipodal points it
    is the identity. `random` is uniform; `origin` is the first basis vector. All maps cost O(n).

    `dist` is exactly 0 at equal points and accurate at all distances; gradients are finite at equal points and at zero
    tangents. At antipodal points, to a few units of round-off, `logmap` has no value and is NaN, and `dist` is pi.

    Examples
    --------
    >>> import torch
    >>> from jpmhc import manifolds
    >>> sphere = manifolds.Sphere()
    >>> x, y = torch.eye(3, dtype=torch.float64)[:2]
    >>> sphere.dist(x, y), sphere.dist(x, x)
    (tensor(1.5708, dtype=torch.float64), tensor(0., dtype=torch.float64))
    """

    name = "Sphere"
    ndim = 1
    shape_pattern = "(..., n) with n >= 2"
    retraction_order = 2
    isometric_transport = True
    reversible = True
    retractions: ClassVar[tuple[str, ...]] = ("projection", "exp")

    def __init__(self, retraction: str = "projection") -> None:
        super().__init__()
        self.retraction = self._choose("retraction", retraction, self.retractions)

    def accepts(self, shape: tuple[int, ...]) -> bool:
        """Tell whether there are at least two entries."""
        return len(shape) >= 1 and shape[-1] >= 2

    def point_error(self, x: Tensor) -> Tensor:
        """``| |x|^2 - 1 |``."""
        return (_dot(x, x) - 1).abs().squeeze(-1)

    def tangent_error(self, x: Tensor, u: Tensor) -> Tensor:
        """``|x . u|``."""
        return _dot(x, u).abs().squeeze(-1)

    def dim(self, shape: tuple[int, ...]) -> int:
        """``n - 1``."""
        return shape[-1] - 1

    def projx(self, x: Tensor) -> Tensor:
        """``x / |x|``, accurate at all lengths; NaN at 0, which has no nearest point."""
        # |x|^2 overflows from 1e19 in float32 and loses digits below 1e-18.
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        if can_read(length) and _in_range(length):
            return x / length
        # A constant factor changes no derivative, and a power of two, the largest below the largest entry, no digit.
        largest = torch.linalg.vector_norm(x.detach(), math.inf, dim=-1, keepdim=True)
        return _unit(x / (largest / (2 * torch.frexp(largest).mantissa)))

    def proju(self, x: Tensor, u: Tensor) -> Tensor:
        """``u - x (x . u)``."""
        return u - x * _dot(x, u)

    def egrad2rgrad(self, x: Tensor, u: Tensor) -> Tensor:
        """``u - x (x . u)``."""
        return u - x * _dot(x, u)

    def ehess2rhess(self, x: Tensor, egrad: Tensor, ehess: Tensor, u: Tensor) -> Tensor:
        """Tangent part of `ehess`, less ``u (x . egrad)``."""
        return self.proju(x, ehess) - u * _dot(x, egrad)

    def inner(self, x: Tensor, u: Tensor, v: Tensor | None = None, *, keepdim: bool = False) -> Tensor:
        """``u . v``, one number a point."""
        result = _dot(u, u if v is None else v)
        if result.shape[:-1] != x.shape[:-1]:
            result = result.expand(torch.broadcast_shapes((*x.shape[:-1], 1), result.shape))
        return result if keepdim else result.squeeze(-1)

    def retr(self, x: Tensor, u: Tensor) -> Tensor:
        """Move from `x` along `u` by the retraction of this manifold."""
        if self.retraction == "exp":
            return self.expmap(x, u)
        return _unit(x + u)

    def expmap(self, x: Tensor, u: Tensor) -> Tensor:
        """``x cos|u| + u sin|u| / |u|``."""
        cosine, sinc = cosine_and_sinc(_dot(u, u))
        return _unit(x * cosine + u * sinc)

    def logmap(self, x: Tensor, y: Tensor) -> Tensor:
        """Tangent part of `y`, of the length of the angle."""
        middle = x + y
        square = _dot(middle, middle) / 4  # of the cosine of half the angle
        near = square > 0.5
        # Of y, y - x and y + x, which have one tangent part, the shortest loses no digits.
        along = self.proju(x, torch.where(near, y - x, middle))
        least = (2 * torch.finfo(x.dtype).eps) ** 2
        half = torch.where(square > least, square, torch.nan).sqrt()
        return along * (scalar_angle_over_sine(half) / half)

    def dist(self, x: Tensor, y: Tensor, *, keepdim: bool = False) -> Tensor:
        """``2 atan2(|y - x|, |y + x|)``."""
        angle = 2 * torch.atan2(norm(y - x, (-1,)), norm(y + x, (-1,)))
        return angle if keepdim else angle.squeeze(-1)

    def dist2(self, x: Tensor, y: Tensor, *, keepdim: bool = False) -> Tensor:
        """Square of `dist`, smooth at equal points."""
        result = squared_angle(x, y)
        return result if keepdim else result.squeeze(-1)

    def transp(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """Reflection that takes x to y along their great circle."""
        middle = x + y
        return v - middle * (2 * _dot(middle, v) / _dot(middle, middle).clamp_min(torch.finfo(x.dtype).tiny))

    def _random(self, shape: tuple[int, ...], generator: torch.Generator | None, like: dict[str, Any]) -> Tensor:
        return self.projx(torch.randn(shape, generator=generator, **like))

    def _origin(self, shape: tuple[int, ...], like: dict[str, Any]) -> Tensor:
        point = torch.zeros(shape, **like)
        point[..., 0] = 1
        return point

    def _settings(self) -> tuple[Any, ...]:
        return (self.retraction,)

    def extra_repr(self) -> str:
        """Return the constructor arguments."""
        return f"retraction={self.retraction!r}"


def _dot(u: Tensor, v: Tensor) -> Tensor:
    return (u * v).sum(-1, keepdim=True)


def _in_range(length: Tensor) -> bool:
    """Whether squares of lengths are far from both ends of their format; not of NaN."""
    least, most = torch.aminmax(length.detach())
    far = torch.finfo(length.dtype).tiny ** 0.4
    return far < least.item() and most.item() < 1 / far


def _unit(x: Tensor) -> Tensor:
    return x / torch.linalg.vector_norm(x, dim=-1, keepdim=True)
