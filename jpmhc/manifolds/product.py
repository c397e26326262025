"""Products of manifolds, whose points are packed into one vector."""

import math
from typing import Any

import torch
from torch import Tensor

from jpmhc.manifolds.algebra import root
from jpmhc.manifolds.base import Manifold
from jpmhc.manifolds.flat import Flat
from jpmhc.manifolds.peer import geoopt


class Product(Manifold):
    """Points of several manifolds side by side, flattened into the last dimension.

    Parameters
    ----------
    *parts : tuple of (Manifold, int or tuple of int)
        Each manifold, or geoopt's ``Euclidean``, with the shape of its points, as for ``geoopt.ProductManifold``. A
        power of one manifold needs no product: use a batch dimension.

    Notes
    -----
    Metric: the sum of the metrics. `random` draws the parts independently, each as its manifold does; `origin` joins
    their origins. Every map is that of the parts; `unpack_tensor` gives the parts of a point,
    `pack_point` the point of its parts. A map that one part lacks, the product lacks.

    Examples
    --------
    >>> from jpmhc import manifolds
    >>> motions = manifolds.Product((manifolds.SpecialOrthogonal(), (3, 3)), (manifolds.Euclidean(1), 3))
    >>> point = motions.random(5, 12)
    >>> [tuple(part.shape) for part in motions.unpack_tensor(point)]
    [(5, 3, 3), (5, 3)]
    """

    name = "Product"
    ndim = 1

    def __init__(self, *parts: tuple[geoopt.Manifold, int | tuple[int, ...]]) -> None:
        super().__init__()
        if not parts:
            raise ValueError("parts: expected at least one (manifold, shape)")
        self.parts: list[tuple[Manifold, tuple[int, ...]]] = []
        for part in parts:
            manifold, shape = _part(part)
            if len(shape) != manifold.ndim or not manifold.accepts(shape):
                raise ValueError(f"parts: expected shape {manifold.shape_pattern} without batch, got {shape}")
            self.parts.append((manifold, shape))
        self.sizes = [math.prod(shape) for _, shape in self.parts]
        self.shape_pattern = f"(..., {sum(self.sizes)})"
        self.retraction_order = min(manifold.retraction_order for manifold, _ in self.parts)
        self.isometric_transport = all(manifold.isometric_transport for manifold, _ in self.parts)
        self.reversible = all(manifold.reversible for manifold, _ in self.parts)

    def unpack_tensor(self, tensor: Tensor) -> tuple[Tensor, ...]:
        """Split the last dimension into the parts, each in its shape."""
        pieces = tensor.split(self.sizes, -1)
        return tuple(piece.unflatten(-1, shape) for piece, (_, shape) in zip(pieces, self.parts, strict=True))

    def pack_point(self, *tensors: Tensor) -> Tensor:
        """Flatten and join the parts."""
        flat = [part.flatten(-len(shape)) for part, (_, shape) in zip(tensors, self.parts, strict=True)]
        batch = torch.broadcast_shapes(*(part.shape[:-1] for part in flat))
        return torch.cat([part.expand(*batch, part.shape[-1]) for part in flat], -1)

    def accepts(self, shape: tuple[int, ...]) -> bool:
        """Whether the last dimension is the number of entries of all parts."""
        return len(shape) >= 1 and shape[-1] == sum(self.sizes)

    def point_error(self, x: Tensor) -> Tensor:
        """Largest error of a part."""
        return self._each("point_error", x)

    def tangent_error(self, x: Tensor, u: Tensor) -> Tensor:
        """Largest error of a part."""
        return self._each("tangent_error", x, u)

    def dim(self, shape: tuple[int, ...]) -> int:
        """Sum of the dimensions."""
        return sum(manifold.dim(part) for manifold, part in self.parts)

    def embed(self, x: Tensor) -> Tensor:
        """Embedded parts, joined."""
        embedded = self._call("embed", x)
        return torch.cat([e.flatten(-len(s)) for e, (_, s) in zip(embedded, self.parts, strict=True)], -1)

    def projx(self, x: Tensor) -> Tensor:
        """Projections of the parts."""
        return self.pack_point(*self._call("projx", x))

    def proju(self, x: Tensor, u: Tensor) -> Tensor:
        """Projections of the parts."""
        return self.pack_point(*self._call("proju", x, u))

    def egrad2rgrad(self, x: Tensor, u: Tensor) -> Tensor:
        """Gradients of the parts."""
        return self.pack_point(*self._call("egrad2rgrad", x, u))

    def ehess2rhess(self, x: Tensor, egrad: Tensor, ehess: Tensor, u: Tensor) -> Tensor:
        """Hessians of the parts."""
        return self.pack_point(*self._call("ehess2rhess", x, egrad, ehess, u))

    def inner(self, x: Tensor, u: Tensor, v: Tensor | None = None, *, keepdim: bool = False) -> Tensor:
        """Sum of the inner products."""
        result = torch.stack(torch.broadcast_tensors(*self._call("inner", x, u, u if v is None else v))).sum(0)
        return result.unsqueeze(-1) if keepdim else result

    def component_inner(self, x: Tensor, u: Tensor, v: Tensor | None = None) -> Tensor:
        """Inner product of each part, repeated over its entries: what an adaptive optimiser scales by."""
        inners = self._call("inner", x, u, u if v is None else v)
        batch = torch.broadcast_shapes(*(value.shape for value in inners))
        return torch.cat(
            [value.unsqueeze(-1).expand(*batch, size) for value, size in zip(inners, self.sizes, strict=True)], -1
        )

    def retr(self, x: Tensor, u: Tensor) -> Tensor:
        """Retractions of the parts."""
        return self.pack_point(*self._call("retr", x, u))

    def retr_transp(self, x: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Retractions and transports of the parts."""
        points, vectors = zip(*self._call("retr_transp", x, u, v), strict=True)
        return self.pack_point(*points), self.pack_point(*vectors)

    def expmap(self, x: Tensor, u: Tensor) -> Tensor:
        """Exponential maps of the parts."""
        return self.pack_point(*self._call("expmap", x, u))

    def expmap_transp(self, x: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Exponential maps and transports of the parts."""
        points, vectors = zip(*self._call("expmap_transp", x, u, v), strict=True)
        return self.pack_point(*points), self.pack_point(*vectors)

    def logmap(self, x: Tensor, y: Tensor) -> Tensor:
        """Logarithms of the parts."""
        return self.pack_point(*self._call("logmap", x, y))

    def dist(self, x: Tensor, y: Tensor, *, keepdim: bool = False) -> Tensor:
        """Root of the sum of the squared distances."""
        return root(self.dist2(x, y, keepdim=keepdim))

    def dist2(self, x: Tensor, y: Tensor, *, keepdim: bool = False) -> Tensor:
        """Sum of the squared distances."""
        result = torch.stack(torch.broadcast_tensors(*self._call("dist2", x, y))).sum(0)
        return result.unsqueeze(-1) if keepdim else result

    def transp(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """Transports of the parts."""
        return self.pack_point(*self._call("transp", x, y, v))

    def _call(self, name: str, *tensors: Tensor) -> list[Any]:
        columns = zip(*(self.unpack_tensor(tensor) for tensor in tensors), strict=True)
        return [getattr(m, name)(*column) for (m, _), column in zip(self.parts, columns, strict=True)]

    def _each(self, name: str, *tensors: Tensor) -> Tensor:
        return torch.stack(torch.broadcast_tensors(*self._call(name, *tensors))).amax(0)

    def _random(self, shape: tuple[int, ...], generator: torch.Generator | None, like: dict[str, Any]) -> Tensor:
        return self.pack_point(*(m.random(*shape[:-1], *s, generator=generator, **like) for m, s in self.parts))

    def _origin(self, shape: tuple[int, ...], like: dict[str, Any]) -> Tensor:
        return self.pack_point(*(m.origin(*shape[:-1], *s, **like) for m, s in self.parts))

    def _settings(self) -> tuple[Any, ...]:
        return tuple(self.parts)

    def extra_repr(self) -> str:
        """List the parts with their shapes."""
        return ", ".join(f"({manifold.name}, {shape})" for manifold, shape in self.parts)


def _part(given: Any) -> tuple[Manifold, tuple[int, ...]]:
    if not isinstance(given, tuple | list) or len(given) != 2:
        raise TypeError(f"parts: expected pairs (manifold, shape), got {given!r}")
    manifold, size = given
    shape = (size,) if isinstance(size, int) else size
    if not isinstance(shape, tuple | list) or not all(isinstance(n, int) for n in shape):
        raise TypeError(f"parts: expected a shape, an integer or a tuple of them, got {size!r}")
    if isinstance(manifold, geoopt.Euclidean) and manifold.ndim in (0, len(shape)):
        manifold = Flat(len(shape))
    if not isinstance(manifold, Manifold):
        raise TypeError(
            f"parts: expected a jpmhc manifold, or Euclidean of as many dimensions as its shape, got {manifold!r}"
        )
    return manifold, tuple(shape)
