"""Many small parameters, the same numbers in one stacked parameter, and gradients for both."""

import torch

from jpmhc import manifolds


def points(manifold, count, *shape, dtype=torch.float64, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed + 1000)
        sample = getattr(manifold, "random_normal", manifold.random)
        return sample(count, *shape, dtype=dtype).as_subclass(torch.Tensor).detach().clone()


def parameter(value, manifold):
    return manifolds.Parameter(value.clone(), manifold)


def separate(values, manifold):
    return [parameter(value, manifold) for value in values]


def set_gradients(parameters, seed):
    """Give every parameter a gradient; one stacked parameter gets what its parts would get."""
    generator = torch.Generator().manual_seed(seed)
    for p in parameters:
        p.grad = torch.randn(p.shape, dtype=torch.float64, generator=generator).to(p.dtype)


def run(optimizer, parameters, steps, first=0):
    """Take so many steps, each with gradients of its own number."""
    for step in range(first, first + steps):
        set_gradients(parameters, step)
        optimizer.step()


def error(left, right):
    return float((torch.stack([p.detach() for p in left]) - right.detach()).abs().max())
