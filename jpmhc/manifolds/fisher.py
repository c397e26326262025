"""Positive arrays with prescribed sums under the Fisher information metric."""

import abc

import torch
from torch import Tensor

from jpmhc.manifolds.base import Manifold


class Fisher(Manifold):
    """Base of `Simplex` and `Birkhoff`: positive ``x`` with linear constraints and ``<u, v>_x = sum(u v / x)``.

    In the coordinates ``2 sqrt(x)`` this metric is Euclidean, so that the straight lines there, ``(sqrt(x) + u / (2
    sqrt(x)))^2``, are the geodesics of the positive arrays. A subclass adds the two projections onto its constraints:
    `scaled`, of logarithms, and `proju`.

    Entries below ``eps^2`` (1e-14 in float32, 5e-32 in float64) are raised to that: the manifold ends there.
    """

    name: str

    @abc.abstractmethod
    def scaled(self, logits: Tensor) -> Tensor:
        """Point whose logarithm is `logits` plus what is normal to the manifold."""

    def point_error(self, x: Tensor) -> Tensor:
        """Largest error of a sum, or 1 and more where an entry is not positive."""
        dims = tuple(range(-self.ndim, 0))
        errors = torch.stack([(x.sum(dim, keepdim=True) - 1).abs().amax(dims) for dim in dims]).amax(0)
        low = x.amin(dims)
        return torch.where(low > 0, errors, 1 - low)

    def tangent_error(self, x: Tensor, u: Tensor) -> Tensor:
        """Largest of the sums, which should be zero."""
        dims = tuple(range(-self.ndim, 0))
        return torch.stack([u.sum(dim, keepdim=True).abs().amax(dims) for dim in dims]).amax(0)

    def projx(self, x: Tensor) -> Tensor:
        """Point of least Kullback-Leibler divergence from `x`, whose entries are first made positive."""
        return self.scaled(torch.log(x.clamp_min(least(x))))

    def egrad2rgrad(self, x: Tensor, u: Tensor) -> Tensor:
        """Tangent part of ``x * u``: the gradient, since ``sum(x u v / x) = sum(u v)``."""
        return self.proju(x, x * u)

    def ehess2rhess(self, x: Tensor, egrad: Tensor, ehess: Tensor, u: Tensor) -> Tensor:
        """Tangent part of ``x * ehess + u * rgrad / (2 x)``.

        The derivative of ``rgrad = x * (egrad - normal)`` along u is ``u * rgrad / x + x * ehess`` up to normal
        vectors, and the connection of the positive arrays takes off ``u * rgrad / (2 x)``.
        """
        return self.proju(x, x * ehess + u * self.egrad2rgrad(x, egrad) / (2 * x))

    def inner(self, x: Tensor, u: Tensor, v: Tensor | None = None, *, keepdim: bool = False) -> Tensor:
        """``sum(u * v / x)``, one number a point."""
        return (u * ((u if v is None else v) / x)).sum(tuple(range(-self.ndim, 0)), keepdim=keepdim)

    def transp(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """Tangent part at `y` of ``sqrt(y / x) * v``, which is `v` in the coordinates ``2 sqrt(x)``; never longer."""
        return self.proju(y, (y / x).sqrt() * v)


def least(x: Tensor) -> float:
    """Smallest entry of a point, ``eps^2``."""
    return torch.finfo(x.dtype).eps ** 2
