"""Problems on manifolds whose optimum is known from dense algebra, and ways to run an optimiser on them."""

from dataclasses import dataclass

import torch
from torch.optim.lr_scheduler import LambdaLR

from jpmhc import manifolds
from jpmhc.manifolds.peer import geoopt


@dataclass
class Problem:
    """A loss on a manifold; ``error`` is the largest distance of an entry from the optimum, 0 there alone."""

    manifold: geoopt.Manifold
    shape: tuple
    loss: callable
    error: callable

    def starts(self, count=3, seed=0):
        generator = torch.Generator().manual_seed(seed)
        x = self.manifold.random(count, *self.shape, dtype=torch.float64, generator=generator)
        return manifolds.Parameter(x.as_subclass(torch.Tensor), self.manifold)


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def symmetric(values, seed=0):
    """A symmetric matrix with these eigenvalues, and its eigenvectors."""
    vectors = torch.linalg.qr(randn(len(values), len(values), seed=seed)).Q
    return vectors * values @ vectors.mT, vectors


def dominant_subspace(manifold=None):
    matrix, vectors = symmetric(torch.linspace(-1, 2, 12, dtype=torch.float64))
    projector = vectors[:, -3:] @ vectors[:, -3:].mT
    return Problem(
        manifold or manifolds.Grassmann(),
        (12, 3),
        lambda x: -(x * (matrix @ x)).sum(),
        lambda x: (x @ x.mT - projector).abs().max(),
    )


def procrustes(manifold=None):
    target = randn(8, 3)
    left, _, right = torch.linalg.svd(target, full_matrices=False)
    return Problem(
        manifold or manifolds.Stiefel(),
        (8, 3),
        lambda x: (x - target).square().sum(),
        lambda x: (x - left @ right).abs().max(),
    )


def brockett(manifold=None):
    matrix, vectors = symmetric(torch.linspace(1, 3, 8, dtype=torch.float64))
    weights = torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64)
    return Problem(
        manifold or manifolds.Stiefel(metric="euclidean"),
        (8, 3),
        lambda x: (x * (matrix @ x) * weights).sum(),
        lambda x: ((x.mT @ vectors[:, :3]).abs() - torch.eye(3, dtype=x.dtype)).abs().max(),
    )


def rotation_averaging(manifold=None):
    noise = randn(20, 3, 3, seed=1)
    center = torch.linalg.matrix_exp(randn(3, 3) - randn(3, 3).mT)
    rotations = center @ torch.linalg.matrix_exp(0.3 * (noise - noise.mT))
    left, _, right = torch.linalg.svd(rotations.sum(0))
    sign = torch.tensor([1.0, 1.0, float(torch.linalg.det(left @ right))], dtype=torch.float64)
    return Problem(
        manifold or manifolds.SpecialOrthogonal(),
        (3, 3),
        lambda x: (x.unsqueeze(-3) - rotations).square().sum() / len(rotations),
        lambda x: (x - left * sign @ right).abs().max(),
    )


def nearest_doubly_stochastic(manifold=None):
    target = randn(5, 5).exp()
    scaled = target
    for _ in range(2000):
        scaled = scaled / scaled.sum(-1, keepdim=True)
        scaled = scaled / scaled.sum(-2, keepdim=True)
    return Problem(
        manifold or manifolds.Birkhoff(),
        (5, 5),
        lambda x: (x * (x / target).log()).sum(),
        lambda x: (x - scaled).abs().max(),
    )


ALL = {
    make.__name__: make
    for make in (dominant_subspace, procrustes, brockett, rotation_averaging, nearest_doubly_stochastic)
}


def descend(optimizer, x, loss, steps, last=1.0):
    """Take gradient steps and return the point; in their second half the rate falls to ``last`` times its start."""
    schedule = LambdaLR(optimizer, lambda step: last ** max(0.0, 2 * step / steps - 1))
    for _ in range(steps):
        optimizer.zero_grad()
        loss(x).backward()
        optimizer.step()
        schedule.step()
    return x.detach()


def closure_of(optimizer, x, loss):
    def closure():
        optimizer.zero_grad()
        value = loss(x)
        value.backward()
        return value

    return closure
