"""Manifolds with the shapes they are tested at."""

import torch

from jpmhc import manifolds as m

CASES = [
    (m.Sphere(), (2,)),
    (m.Sphere("exp"), (5,)),
    (m.Simplex(), (2,)),
    (m.Simplex("softmax"), (5,)),
    (m.Simplex("exp"), (4,)),
    (m.Birkhoff(), (2, 2)),
    (m.Birkhoff(), (4, 4)),
    (m.Birkhoff("sinkhorn"), (6, 6)),
    (m.SpecialOrthogonal(), (2, 2)),
    (m.SpecialOrthogonal(), (4, 4)),
    (m.SpecialOrthogonal("exp"), (5, 5)),
    (m.Grassmann(), (6, 3)),
    (m.Grassmann("qr"), (5, 1)),
    (m.Grassmann("exp"), (5, 2)),
    (m.Stiefel(), (6, 3)),
    (m.Stiefel(), (4, 4)),
    (m.Stiefel("canonical", "qr"), (6, 3)),
    (m.Stiefel("canonical", "exp"), (6, 3)),
    (m.Stiefel("euclidean", "cayley"), (6, 3)),
    (m.Stiefel("euclidean", "exp"), (4, 4)),
    (m.Stiefel("euclidean"), (5, 1)),
    (m.Product((m.Stiefel(), (3, 2)), (m.Simplex(), 3), (m.Sphere(), 4)), (13,)),
    (m.Product((m.SpecialOrthogonal(), (3, 3)), (m.Euclidean(1), 3)), (12,)),
]


def name(case):
    manifold, shape = case
    return f"{type(manifold).__name__}-{'-'.join(str(s) for s in manifold._settings() if isinstance(s, str))}-{shape}"


def material(manifold, shape, batch=(3,), seed=0, dtype=torch.float64, length=0.05):
    """A point, two tangent vectors of given length and an ambient array."""
    generator = torch.Generator().manual_seed(seed)
    x = manifold.random(*batch, *shape, dtype=dtype, generator=generator)
    ambient = [torch.randn(*batch, *shape, dtype=dtype, generator=generator) for _ in range(3)]
    u, v = (manifold.egrad2rgrad(x, a) for a in ambient[:2])
    u, v = (length * w / manifold.norm(x, w, keepdim=True) for w in (u, v))
    return x, u, v, ambient[2]


class Scaled(m.Sphere):
    """The sphere under a multiple of its metric, written by the docstring of `Manifold`."""

    def __init__(self, c=1.0):
        super().__init__()
        self.c = c

    def inner(self, x, u, v=None, *, keepdim=False):
        return self.c * super().inner(x, u, v, keepdim=keepdim)

    def egrad2rgrad(self, x, u):
        return super().egrad2rgrad(x, u) / self.c

    def ehess2rhess(self, x, egrad, ehess, u):
        return super().ehess2rhess(x, egrad, ehess, u) / self.c

    def dist(self, x, y, *, keepdim=False):
        return self.c**0.5 * super().dist(x, y, keepdim=keepdim)

    def dist2(self, x, y, *, keepdim=False):
        return self.c * super().dist2(x, y, keepdim=keepdim)
