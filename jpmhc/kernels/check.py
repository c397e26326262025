"""Which bodies compile here and agree with the reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from jpmhc.kernels.bodies import backend
from jpmhc.kernels.boundary import Boundary, Pullback, boundary_forward
from jpmhc.kernels.cayley import cayley_forward
from jpmhc.kernels.gates import Gates, GatesPullback, gates_forward
from jpmhc.kernels.orthogonal import tangent_part
from jpmhc.kernels.primitive import choice
from jpmhc.kernels.sinkhorn import sinkhorn_sweeps


class Checked(NamedTuple):
    """How a body did."""

    operation: str
    backend: str
    error: float | None
    """Largest difference from the reference in float64, in units of the largest number of the result where that exceeds
    1; None where the body does not run here."""
    reason: str


def check_bodies(name: str, device: str = "cpu") -> list[Checked]:
    """Compile the bodies for small matrices in float32, and compare them with the reference in float64.

    Where a body is one of many matrices it is given 256 of them and then three.

    Parameters
    ----------
    name : str
        ``numba`` or ``triton``.
    device : str
        Where to run.

    Returns
    -------
    list of Checked
        One a body of this name; an error above 1e-5 is a fault.
    """
    found = []
    for operation, args in _calls(device).items():
        with backend(name):
            chosen = choice(operation, *args)
            if chosen.backend != name:
                if chosen.reason != f"no {name} body":
                    found.append(Checked(operation, name, None, chosen.reason))
                continue
        error = max(_deviation(name, operation, some) for some in (args, _few(args)) if some is not None)
        found.append(Checked(operation, name, error, chosen.reason))
    return found


def _deviation(name: str, operation: str, args: Any) -> float:
    """Return the largest difference of a body's results from those of the reference in float64."""
    with backend(name):
        results = _called(operation, args)
    wide = [value.double() if isinstance(value, Tensor) else value for value in args]
    with backend("reference"):
        truths = _called(operation, wide)
    return max(map(_error, results, truths))


def _few(args: Any) -> tuple[Any, ...] | None:
    """Return the same call with three matrices, for which a body may go another way; None if it is not of batches."""
    tensors = [value for value in args if isinstance(value, Tensor)]
    named = isinstance(args, Boundary | Pullback | Gates | GatesPullback)
    if named or any(t.ndim != 3 or len(t) != len(tensors[0]) for t in tensors):
        return None
    return tuple(value[:3] if isinstance(value, Tensor) else value for value in args)


def _calls(device: str) -> dict[str, tuple[Any, ...]]:
    """Return arguments for every operation that has a body."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device)

    x, g = normal(256, 4, 4), normal(256, 4, 4)
    with backend("reference"):
        matrix, rotation = sinkhorn_sweeps(x, None, None, 50), cayley_forward(x, 1.0)
        tangent = tangent_part(rotation, g, 0.0, 0.5, -0.5)
    near, large = rotation + 0.1 * g, torch.eye(20, device=device) + 0.05 * normal(8, 20, 20)
    pair = x.view(-1, 2, 4)
    return {
        "sinkhorn_forward": (x, None, None, 2e-6, 64),
        "sinkhorn_sweeps": (x, None, None, 20),
        "sinkhorn_adjoint": (matrix, g),
        "sinkhorn_potentials": (matrix, matrix * g),
        "sinkhorn_balanced": (matrix, matrix * g, 2),
        "sinkhorn_scaled": ((normal(160, 160) / 4).exp(), 1e-30, 4e-6, 64),
        "birkhoff_retraction": (matrix, 0.1 * matrix * g, True, 1e-30, 2e-6, 64),
        "cayley_forward": (x, 1.0),
        "cayley_adjoint": (rotation, g, 1.0),
        "cayley_retraction": (rotation, tangent),
        "cayley_transport": (rotation, tangent, tangent.flip(0)),
        "tangent_part": (rotation, g, 1.0, -0.5, -0.5),
        "polar_forward": (near,),
        "newton_polar": (large,),
        "orthonormalise": (near,),
        "inverse": (large,),
        "quaternion_forward": (pair,),
        "quaternion_adjoint": (pair, torch.cat([g, g])),
        **_boundary(normal, x),
        **_gates(normal),
        **_chain(normal),
    }


def _boundary(normal: Callable[..., Tensor], x: Tensor) -> dict[str, tuple[Any, ...]]:
    streams, post, y, weight = normal(256, 4, 48), normal(256, 4), normal(256, 48), 0.05 * normal(14, 192)
    boundary = Boundary(streams, x, post, y, weight, normal(4), normal(1), "softmax", True, 1e-6, -1.0)
    with backend("reference"):
        after, u, z, pre, rms, _ = boundary_forward(boundary)
    pullback = Pullback(after, u, z, *boundary[:5], boundary.scale, after, z, pre, rms, None, "softmax")
    return {"boundary_forward": boundary, "boundary_backward": pullback}


def _gates(normal: Callable[..., Tensor]) -> dict[str, tuple[Any, ...]]:
    gates = Gates(normal(256, 14), normal(10), normal(2), "softmax", 4, True)
    with backend("reference"):
        post, raw = gates_forward(gates)
    pullback = GatesPullback(post.flip(0), raw.flip(0), gates.z, post, gates.scale, "softmax", True)
    return {"gates_forward": gates, "gates_backward": pullback}


def _chain(normal: Callable[..., Tensor]) -> dict[str, tuple[Any, ...]]:
    mixers = torch.eye(4, device=normal().device) + 0.3 * normal(3, 4, 4)
    above, below = normal(5, 3, 2).abs(), normal(5, 3, 2).abs() * -0.2
    points = (mixers, normal(3, 4), normal(3, 4), above[:, 0] + 0.5, below, below.flip(0))
    real = tuple(value.double() for value in points)
    return {"chain_sweeps": real, "noisy_chain_sweeps": (real[0], *real[3:])}


def _called(operation: str, args: Any) -> tuple[Tensor, ...]:
    results = getattr(torch.ops.jpmhc, operation)(*args)
    return (results,) if isinstance(results, Tensor) else results


def _error(result: Tensor, truth: Tensor) -> float:
    if not truth.numel():
        return 0.0
    return ((result - truth).abs().max() / truth.abs().max().clamp_min(1)).item()
