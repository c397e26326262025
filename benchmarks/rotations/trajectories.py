"""The sequences of the rotation tasks, and what can be known about them without training.

Tasks and numbers follow arXiv 2605.06729 and its published code: predict the next vector of a trajectory from those
before it. Sequences are inputs and targets, each (N, T, dim) in float32, the targets one step ahead.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def plane_rotation(dim: int, angle: float | Tensor, first: int, second: int) -> Tensor:
    """Return the matrix (dim, dim), float64, that turns the plane of two axes by an angle."""
    matrix = torch.eye(dim, dtype=torch.float64)
    cos, sin = math.cos(angle), math.sin(angle)
    matrix[first, first] = matrix[second, second] = cos
    matrix[first, second], matrix[second, first] = -sin, sin
    return matrix


def planes_rotation(dim: int, angle: float) -> Tensor:
    """Return the matrix (dim, dim), float64, that turns the planes (0, 1), (2, 3), ... by the same angle."""
    matrix = torch.eye(dim, dtype=torch.float64)
    for first in range(0, dim - 1, 2):
        matrix = matrix @ plane_rotation(dim, angle, first, first + 1)
    return matrix


def gyroscope(
    count: int, length: int, dim: int, angles: tuple[float, float], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return unit vectors, each turned again and again in a plane of two axes by an angle, both drawn for it."""
    rotations = []
    for _ in range(count):
        first = int(torch.randint(dim - 1, (), generator=generator))
        second = first + 1 + int(torch.randint(dim - 1 - first, (), generator=generator))
        low, high = angles
        angle = low + (high - low) * float(torch.rand((), generator=generator, dtype=torch.float64))
        rotations.append(plane_rotation(dim, angle, first, second))
    return _turn(torch.stack(rotations), _unit(count, dim, generator), length)


def constant(count: int, length: int, rotation: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return unit vectors turned again and again by one matrix (dim, dim), the same for every sequence."""
    start = _unit(count, rotation.shape[-1], generator)
    return _turn(rotation.expand(count, -1, -1), start, length)


def echo(count: int, length: int, dim: int, noise: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return one unit vector a sequence, seen again and again under noise of that standard deviation an entry."""
    key = _unit(count, dim, generator).unsqueeze(1)
    seen = key + noise * torch.randn(count, length + 1, dim, generator=generator, dtype=torch.float64)
    return seen[:, :-1].float(), seen[:, 1:].float()


def gyroscope_floor(dim: int, length: int, angles: tuple[float, float]) -> float:
    """Return the least mean squared error on `gyroscope` of any predictor that sees the past alone.

    The plane and the angle show in the first step; from then on the next vector is certain. In the first step the best
    guess is the mean rotation, applied: ``(1 - ||E R||_F^2 / dim) / dim`` of error, spread over the length.
    """
    low, high = angles
    cos = (math.sin(high) - math.sin(low)) / (high - low)
    sin = (math.cos(low) - math.cos(high)) / (high - low)
    mean = torch.zeros(dim, dim, dtype=torch.float64)
    for first in range(dim - 1):
        for second in range(first + 1, dim):
            # The first axis is drawn before the second, so planes are not equally likely.
            chance = 1 / (dim - 1) / (dim - 1 - first)
            rotation = torch.eye(dim, dtype=torch.float64)
            rotation[first, first] = rotation[second, second] = cos
            rotation[first, second], rotation[second, first] = -sin, sin
            mean += chance * rotation
    return float((1 - mean.square().sum() / dim) / dim / length)


def echo_floor(length: int, noise: float) -> float:
    """Return the least mean squared error on `echo`: predict the mean of what was seen, ``noise^2 (1 + 1/t)``."""
    return noise**2 * sum(1 + 1 / t for t in range(1, length + 1)) / length


def _unit(count: int, dim: int, generator: torch.Generator) -> Tensor:
    vectors = torch.randn(count, dim, generator=generator, dtype=torch.float64)
    return vectors / vectors.norm(dim=-1, keepdim=True)


def _turn(rotations: Tensor, vector: Tensor, length: int) -> tuple[Tensor, Tensor]:
    steps = [vector]
    for _ in range(length):
        steps.append((rotations @ steps[-1].unsqueeze(-1)).squeeze(-1))
    path = torch.stack(steps, 1).float()
    return path[:, :-1], path[:, 1:]
