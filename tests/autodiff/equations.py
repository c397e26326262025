"""A fixed-point equation with every kind of dependence and its solution by brute force, for these tests."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from jpmhc import autodiff

EXACT = autodiff.Anderson(tol=1e-13, max_steps=200)


def layer(z: Tensor, weight: Tensor, x: Tensor, bias: Tensor) -> Tensor:
    """Nonlinear in the state and in every argument; contracts for the weights of `arguments`."""
    return torch.tanh(z @ weight.T * (1 + 0.1 * z) + x + bias)


def arguments(size: int = 4, batch: int = 3, seed: int = 0, scale: float = 0.6) -> tuple[Tensor, Tensor, Tensor]:
    """``(weight, x, bias)`` of `layer` in float64."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(size, size, generator=generator, dtype=torch.float64)
    weight = weight * (scale / torch.linalg.matrix_norm(weight, 2))
    x = torch.randn(batch, size, generator=generator, dtype=torch.float64)
    bias = torch.randn(size, generator=generator, dtype=torch.float64)
    return weight, x, bias


def unrolled(weight: Tensor, x: Tensor, bias: Tensor, steps: int = 120) -> Tensor:
    """The solution and, through autograd, its derivatives: so many steps that nothing is left to converge."""
    z = torch.zeros_like(x)
    for _ in range(steps):
        z = layer(z, weight, x, bias)
    return z


def loss(z: Tensor) -> Tensor:
    """A scalar with second derivatives between samples."""
    return (z**3).sum() + z.sin().sum() ** 2


def error(found: object, expected: object) -> float:
    """Largest relative difference between two trees of tensors."""
    pairs = zip(torch.utils._pytree.tree_leaves(found), torch.utils._pytree.tree_leaves(expected), strict=True)
    return max(((a - b).abs().max() / b.abs().max()).item() for a, b in pairs)


def gradients(fn: Callable[..., Tensor], inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Gradients of ``fn(*inputs)`` by backward."""
    inputs = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    return torch.autograd.grad(fn(*inputs), inputs)


def given(weight: Tensor, x: Tensor, bias: Tensor, **options: Any) -> Tensor:
    """The solution with every dependence passed as an argument."""
    return autodiff.fixed_point(layer, torch.zeros_like(x), weight, x, bias, **{"solver": EXACT, **options}).value


def captured(weight: Tensor, x: Tensor, bias: Tensor, **options: Any) -> Tensor:
    """The same with every dependence captured in a closure."""
    z0 = torch.zeros(x.shape, dtype=x.dtype)
    return autodiff.fixed_point(lambda z: layer(z, weight, x, bias), z0, **{"solver": EXACT, **options}).value
