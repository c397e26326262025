"""Steps of matrices with orthonormal columns, fused where `jpmhc.kernels` has a body, differentiable everywhere."""

from typing import Any

from torch import Tensor

from jpmhc import kernels
from jpmhc.autodiff import fused
from jpmhc.kernels.bodies import asked_for_a_body
from jpmhc.kernels.orthogonal import combined
from jpmhc.kernels.precision import lowered
from jpmhc.kernels.transforms import recorded, wants_derivative

_LITTLE = 512  # numbers


def tangent_part(x: Tensor, e: Tensor, whole: float, straight: float, crossed: float) -> Tensor:
    """``whole e + x (straight S + crossed S^T)`` with ``S = x^T e``."""
    if _is_little(x, e):
        return combined(x, e, whole, straight, crossed)
    result: Tensor = fused(kernels.tangent_part, kernels.plain_tangent_part, (x, e), (whole, straight, crossed))
    return result


def _is_little(x: Tensor, e: Tensor) -> bool:
    """Whether a few products take less than to ask how to make them, and nobody needs their derivative or a trace."""
    if recorded() or x.numel() > _LITTLE or x.shape != e.shape or x.ndim not in (2, 3) or asked_for_a_body():
        return False
    return not (lowered("cpu" if x.is_cpu else x.device.type) or wants_derivative(x, e))


def orthonormalised(matrix: Tensor) -> Tensor:
    """Orthonormalise columns in their order, the factor Q of ``matrix = Q R`` with a positive diagonal of R."""
    result: Tensor = fused(kernels.orthonormalise, kernels.plain_orthonormalise, (matrix,))
    return result


def cayley_retraction(x: Tensor, u: Tensor) -> Tensor:
    """Retract by the Cayley transform (`jpmhc.kernels.cayley_retraction`)."""
    result: Tensor = fused(kernels.cayley_retraction, kernels.plain_cayley_retraction, (x, u))
    return result


def cayley_transport(x: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Retract by the Cayley transform, and the vector v by the same rotation."""
    result: Any = fused(kernels.cayley_transport, kernels.plain_cayley_transport, (x, u, v))
    y, moved = result
    return y, moved
