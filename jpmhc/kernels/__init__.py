"""Primitives on batches of small matrices: plain functions with an adjoint, without derivative rules of their own."""

from jpmhc.kernels.bodies import Choice, backend
from jpmhc.kernels.cayley import cayley_adjoint, cayley_forward, cayley_iterated
from jpmhc.kernels.chain import chain_sweeps, noisy_chain_sweeps
from jpmhc.kernels.elimination import inverse
from jpmhc.kernels.orthogonal import (
    cayley_retraction,
    cayley_transport,
    plain_cayley_retraction,
    plain_cayley_transport,
    plain_tangent_part,
    tangent_part,
)
from jpmhc.kernels.orthonormal import orthonormalise, plain_orthonormalise
from jpmhc.kernels.polar import newton_polar, polar_adjoint, polar_forward, polar_newton, sylvester
from jpmhc.kernels.primitive import choice, operations
from jpmhc.kernels.quaternion import plain_quaternion, quaternion_adjoint, quaternion_forward
from jpmhc.kernels.retraction import birkhoff_retraction, moved_logarithm
from jpmhc.kernels.sinkhorn import (
    sinkhorn_adjoint,
    sinkhorn_balanced,
    sinkhorn_forward,
    sinkhorn_inverse,
    sinkhorn_potentials,
    sinkhorn_scaled,
    sinkhorn_sweeps,
)

__all__ = [
    "Choice",
    "backend",
    "birkhoff_retraction",
    "cayley_adjoint",
    "cayley_forward",
    "cayley_iterated",
    "cayley_retraction",
    "cayley_transport",
    "chain_sweeps",
    "choice",
    "inverse",
    "moved_logarithm",
    "newton_polar",
    "noisy_chain_sweeps",
    "operations",
    "orthonormalise",
    "plain_cayley_retraction",
    "plain_cayley_transport",
    "plain_orthonormalise",
    "plain_quaternion",
    "plain_tangent_part",
    "polar_adjoint",
    "polar_forward",
    "polar_newton",
    "quaternion_adjoint",
    "quaternion_forward",
    "sinkhorn_adjoint",
    "sinkhorn_balanced",
    "sinkhorn_forward",
    "sinkhorn_inverse",
    "sinkhorn_potentials",
    "sinkhorn_scaled",
    "sinkhorn_sweeps",
    "sylvester",
    "tangent_part",
]
