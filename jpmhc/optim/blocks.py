"""All parameters of a problem as one point of a product manifold: geometry on lists of stacked tensors."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from jpmhc.manifolds import Manifold
from jpmhc.manifolds.peer import geoopt
from jpmhc.optim.batch import Batch

Vector = list[Tensor]
"""A point or a vector: one tensor of shape (k, *shape) for every block."""


class Blocks:
    """Batches, each on its manifold, as one point; the metric of the product is the sum over all of them.

    Parameters
    ----------
    batches : list of Batch
        Of the parameters that the loss depends on.
    """

    def __init__(self, batches: list[Batch]) -> None:
        self.batches = batches
        self.manifolds = [batch.manifold for batch in batches]

    @property
    def parameters(self) -> list[Tensor]:
        """The parameters, block after block."""
        return [parameter for batch in self.batches for parameter in batch.parameters]

    @property
    def size(self) -> int:
        """How many numbers a point has."""
        return sum(parameter.numel() for parameter in self.parameters)

    @property
    def precision(self) -> float:
        """Spacing of the coarsest floating-point numbers in use."""
        return max(torch.finfo(parameter.dtype).eps for parameter in self.parameters)

    def point(self) -> Vector:
        """Return a copy of the parameters."""
        return [batch.points().clone() for batch in self.batches]

    def write(self, x: Vector) -> None:
        """Copy a point into the parameters."""
        for batch, points in zip(self.batches, x, strict=True):
            batch.write(points)

    def gather(self, tensors: list[Tensor]) -> Vector:
        """Stack one tensor a parameter, in the order of :attr:`parameters`."""
        rest = iter(tensors)
        return [torch.stack([next(rest) for _ in batch.parameters]) for batch in self.batches]

    def scatter(self, u: Vector) -> list[Tensor]:
        """Return one tensor a parameter, the inverse of :meth:`gather`."""
        return [piece for tensor in u for piece in tensor.unbind()]

    def gradient(self, x: Vector, egrad: Vector) -> Vector:
        """Return the Riemannian gradient."""
        # A copy, because geoopt's Lorentz writes to what it is given.
        return [m.egrad2rgrad(p, g.clone()) for m, p, g in zip(self.manifolds, x, egrad, strict=True)]

    def tangent(self, x: Vector, u: Vector) -> Vector:
        """Return what of u is tangent."""
        return [m.proju(p, a) for m, p, a in zip(self.manifolds, x, u, strict=True)]

    def hessian(self, x: Vector, egrad: Vector, ehess: Vector, u: Vector) -> Vector:
        """Return the Riemannian Hessian along u, from the Euclidean gradient and Hessian along u.

        Manifolds without ``ehess2rhess`` (geoopt's) give the projected derivative of the Riemannian gradient: the
        Hessian itself under the metric of the surrounding space, under others only where the gradient is zero.
        """
        result = []
        for manifold, point, slope, change, along in zip(self.manifolds, x, egrad, ehess, u, strict=True):
            if hasattr(manifold, "ehess2rhess"):
                result.append(manifold.ehess2rhess(point, slope, change, along))
                continue
            derivative = torch.func.jvp(manifold.egrad2rgrad, (point, slope), (along, change))[1]
            result.append(manifold.proju(point, derivative))
        return result

    def inner(self, x: Vector, u: Vector, v: Vector) -> float:
        """Return the inner product of two tangent vectors."""
        parts = zip(self.manifolds, x, u, v, strict=True)
        # Kept dimensions: geoopt's hyperbolic classes give a batch the wrong shape without them.
        return sum(float(m.inner(p, a, b, keepdim=True).sum()) for m, p, a, b in parts)

    def norm(self, x: Vector, u: Vector) -> float:
        """Return the length of a tangent vector."""
        return max(self.inner(x, u, u), 0.0) ** 0.5

    def retract(self, x: Vector, u: Vector) -> Vector:
        """Return the point reached from x along u."""
        return [m.retr(p, a) for m, p, a in zip(self.manifolds, x, u, strict=True)]

    def curve(self, x: Vector, u: Vector, t: float) -> tuple[Vector, Callable[[Vector], float]]:
        """Return the point reached along ``t u``, and what a Euclidean gradient there says of the velocity.

        The velocity is the exact derivative of the retraction: whatever a manifold calls its gradient or its transport,
        this is the slope of a loss along the curve. The function returned can be called once.
        """
        parts = [_curve(m, p, along, t) for m, p, along in zip(self.manifolds, x, u, strict=True)]

        def slope(egrad: Vector) -> float:
            return sum(float(pairing(g)) for (_, pairing), g in zip(parts, egrad, strict=True))

        return [end for end, _ in parts], slope

    def transport(self, x: Vector, u: Vector, *vectors: Vector) -> list[Vector]:
        """Return tangent vectors at x, each moved to the point reached along u."""
        moved = []
        for manifold, point, along, *tangents in zip(self.manifolds, x, u, *vectors, strict=True):
            together = torch.stack(tangents)
            point, along = point.expand_as(together), along.expand_as(together)
            moved.append(manifold.transp_follow_retr(point, along, together).unbind())
        return [list(vector) for vector in zip(*moved, strict=True)]


def _curve(
    manifold: geoopt.Manifold, point: Tensor, along: Tensor, t: float
) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    time = torch.full((), t, dtype=point.dtype, device=point.device)
    if isinstance(manifold, Manifold | geoopt.Euclidean):
        # Reverse mode costs a fifth of forward mode.
        with torch.enable_grad():
            end = manifold.retr(point, time.requires_grad_() * along)
        return end.detach(), lambda covector: torch.autograd.grad(end, time, covector)[0]
    # geoopt's QR retraction writes in place, which reverse mode refuses.
    end, velocity = torch.func.jvp(lambda s: manifold.retr(point, s * along), (time,), (torch.ones_like(time),))[:2]
    return end, lambda covector: (covector * velocity).sum()


def pair(covector: Vector, vector: Vector) -> float:
    """Return the sum of the products of all entries: what a Euclidean gradient says of a velocity."""
    return sum(float((a * b).sum()) for a, b in zip(covector, vector, strict=True))


def combine(a: float, u: Vector, b: float, v: Vector) -> Vector:
    """Return ``a u + b v``."""
    return [p * a + q * b for p, q in zip(u, v, strict=True)]


def scale(a: float, u: Vector) -> Vector:
    """Return ``a u``."""
    return [p * a for p in u]
