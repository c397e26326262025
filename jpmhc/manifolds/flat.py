"""Space without a constraint, as a part of a product."""

import math
from typing import Any

import torch
from torch import Tensor

from jpmhc.manifolds.algebra import common_shape, norm
from jpmhc.manifolds.base import Manifold


class Flat(Manifold):
    """Arrays of `ndim` dimensions, any of them; what `Product` takes for geoopt's ``Euclidean``, which lacks maps.

    Parameters
    ----------
    ndim : int
        Number of trailing dimensions of a point, at least 1.

    Notes
    -----
    Metric: Euclidean. `random` is standard normal, `origin` zero.
    """

    name = "Flat"
    retraction_order = 2
    isometric_transport = True
    reversible = True

    def __init__(self, ndim: int = 1) -> None:
        super().__init__()
        self.ndim = ndim
        self.shape_pattern = f"(..., {ndim} dimensions)"

    def accepts(self, shape: tuple[int, ...]) -> bool:
        """Whether there are enough dimensions."""
        return len(shape) >= self.ndim

    def point_error(self, x: Tensor) -> Tensor:
        """Zero."""
        return x.new_zeros(x.shape[: -self.ndim])

    def tangent_error(self, x: Tensor, u: Tensor) -> Tensor:
        """Zero."""
        return u.new_zeros(u.shape[: -self.ndim])

    def dim(self, shape: tuple[int, ...]) -> int:
        """How many numbers there are."""
        return math.prod(shape[-self.ndim :])

    def projx(self, x: Tensor) -> Tensor:
        """`x`."""
        return x

    def proju(self, x: Tensor, u: Tensor) -> Tensor:
        """`u`."""
        return u.expand(common_shape(x, u))

    def egrad2rgrad(self, x: Tensor, u: Tensor) -> Tensor:
        """`u`."""
        return u.expand(common_shape(x, u))

    def ehess2rhess(self, x: Tensor, egrad: Tensor, ehess: Tensor, u: Tensor) -> Tensor:
        """`ehess`."""
        return ehess

    def inner(self, x: Tensor, u: Tensor, v: Tensor | None = None, *, keepdim: bool = False) -> Tensor:
        """``sum(u * v)``, one number a point."""
        return (u.expand(common_shape(x, u)) * (u if v is None else v)).sum(self._dims, keepdim=keepdim)

    def retr(self, x: Tensor, u: Tensor) -> Tensor:
        """``x + u``."""
        return x + u

    def retr_transp(self, x: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """``x + u`` and `v`."""
        return x + u, v

    def expmap(self, x: Tensor, u: Tensor) -> Tensor:
        """``x + u``."""
        return x + u

    def logmap(self, x: Tensor, y: Tensor) -> Tensor:
        """``y - x``."""
        return y - x

    def dist(self, x: Tensor, y: Tensor, *, keepdim: bool = False) -> Tensor:
        """``|y - x|``."""
        result = norm(y - x, self._dims)
        return result if keepdim else result.squeeze(self._dims)

    def transp(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """`v`."""
        return v.expand(torch.broadcast_shapes(x.shape, y.shape, v.shape))

    @property
    def _dims(self) -> tuple[int, ...]:
        return tuple(range(-self.ndim, 0))

    def _random(self, shape: tuple[int, ...], generator: torch.Generator | None, like: dict[str, Any]) -> Tensor:
        return torch.randn(shape, generator=generator, **like)

    def _origin(self, shape: tuple[int, ...], like: dict[str, Any]) -> Tensor:
        return torch.zeros(shape, **like)

    def _settings(self) -> tuple[Any, ...]:
        return (self.ndim,)
