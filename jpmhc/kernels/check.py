"""Which bodies compile here and agree with the reference."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from jpmhc.kernels.bodies import backend
from jpmhc.kernels.cayley import cayley_adjoint, cayley_forward
from jpmhc.kernels.primitive import choice
from jpmhc.kernels.sinkhorn import sinkhorn_adjoint, sinkhorn_forward, sinkhorn_potentials, sinkhorn_sweeps


class Checked(NamedTuple):
    """How a body did."""

    operation: str
    backend: str
    error: float | None
    """Largest difference from the reference in float64; None where the body does not run here."""
    reason: str


def check_bodies(name: str, device: str = "cpu") -> list[Checked]:
    """Compile the bodies of the small maps for n = 4 in float32, and compare them with the reference in float64.

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
    x, g = torch.randn(2, 256, 4, 4, generator=generator).to(device)
    with backend("reference"):
        matrix, rotation = sinkhorn_sweeps(x, None, None, 50), cayley_forward(x, 1.0)
    calls: tuple[tuple[Any, tuple[Any, ...]], ...] = (
        (sinkhorn_forward, (x, None, None, 2e-6, 64)),
        (sinkhorn_sweeps, (x, None, None, 20)),
        (sinkhorn_adjoint, (matrix, g)),
        (sinkhorn_potentials, (matrix, matrix * g)),
        (cayley_forward, (x, 1.0)),
        (cayley_adjoint, (rotation, g, 1.0)),
    )
    found = []
    for function, args in calls:
        operation = function.__name__
        with backend(name):
            chosen = choice(operation, *args)
            if chosen.backend != name:
                found.append(Checked(operation, name, None, chosen.reason))
                continue
            result = function(*args)
        wide = [value.double() if isinstance(value, torch.Tensor) else value for value in args]
        with backend("reference"):
            truth = function(*wide)
        found.append(Checked(operation, name, (result - truth).abs().max().item(), chosen.reason))
    return found
