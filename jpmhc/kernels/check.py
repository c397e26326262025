"""Which bodies compile here and agree with the reference."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from jpmhc.kernels.bodies import backend
from jpmhc.kernels.boundary import Boundary, Pullback, boundary_backward, boundary_forward
from jpmhc.kernels.cayley import cayley_adjoint, cayley_forward
from jpmhc.kernels.primitive import choice
from jpmhc.kernels.quaternion import quaternion_adjoint, quaternion_forward
from jpmhc.kernels.sinkhorn import sinkhorn_adjoint, sinkhorn_forward, sinkhorn_potentials, sinkhorn_sweeps


class Checked(NamedTuple):
    """How a body did."""

    operation: str
    backend: str
    error: float | None
    """Largest difference from the reference in float64, in units of the largest number of the result where that exceeds
    1; None where the body does not run here."""
    reason: str


def check_bodies(name: str, device: str = "cpu") -> list[Checked]:
    """Compile the bodies for n = 4 in float32, and compare them with the reference in float64.

    Parameters
    ----------
    name : str
        ``numba`` or ``triton``.
    device : str
        Where to run.

    Returns
    -------
    list of Checked
        One a body; an error above 1e-5 is a fault.
    """
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device)

    x, g = normal(256, 4, 4), normal(256, 4, 4)
    streams, post, y, weight = normal(256, 4, 48), normal(256, 4), normal(256, 48), 0.05 * normal(14, 192)
    boundary = Boundary(streams, x, post, y, weight, normal(4), normal(1), "softmax", True, 1e-6, -1.0)
    with backend("reference"):
        matrix, rotation = sinkhorn_sweeps(x, None, None, 50), cayley_forward(x, 1.0)
        after, u, z, pre, rms, _ = boundary_forward(boundary)
    inputs = boundary[:5]
    pullback = Pullback(after, u, z, *inputs, boundary.scale, after, z, pre, rms, None, "softmax")
    calls: tuple[tuple[Any, tuple[Any, ...]], ...] = (
        (sinkhorn_forward, (x, None, None, 2e-6, 64)),
        (sinkhorn_sweeps, (x, None, None, 20)),
        (sinkhorn_adjoint, (matrix, g)),
        (sinkhorn_potentials, (matrix, matrix * g)),
        (cayley_forward, (x, 1.0)),
        (cayley_adjoint, (rotation, g, 1.0)),
        (quaternion_forward, (x.view(-1, 2, 4),)),
        (quaternion_adjoint, (x.view(-1, 2, 4), torch.cat([g, g]))),
        (boundary_forward, boundary),
        (boundary_backward, pullback),
    )
    found = []
    for function, args in calls:
        operation = function.__name__
        with backend(name):
            chosen = choice(operation, *args)
            if chosen.backend != name:
                found.append(Checked(operation, name, None, chosen.reason))
                continue
            results = _called(operation, args)
        wide = [value.double() if isinstance(value, Tensor) else value for value in args]
        with backend("reference"):
            truths = _called(operation, wide)
        error = max(map(_error, results, truths))
        found.append(Checked(operation, name, error, chosen.reason))
    return found


def _called(operation: str, args: Any) -> tuple[Tensor, ...]:
    results = getattr(torch.ops.jpmhc, operation)(*args)
    return (results,) if isinstance(results, Tensor) else results


def _error(result: Tensor, truth: Tensor) -> float:
    if not truth.numel():
        return 0.0
    return ((result - truth).abs().max() / truth.abs().max().clamp_min(1)).item()
