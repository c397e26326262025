"""The quadratic model of a trust region, minimised by conjugate gradients stopped at its boundary."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from jpmhc.optim.blocks import Blocks, Vector, combine, scale


class ModelStep(NamedTuple):
    """A tangent vector, the Hessian along it, and whether the boundary of the region stopped it."""

    step: Vector
    hessian_step: Vector
    at_boundary: bool


def truncated_cg(
    blocks: Blocks,
    x: Vector,
    gradient: Vector,
    hessian: Callable[[Vector], Vector],
    radius: float,
    *,
    max_inner: int,
    floor: float = 0.0,
    kappa: float = 0.1,
    theta: float = 1.0,
) -> ModelStep:
    """Minimise ``<g, s> + <s, H s> / 2`` over ``|s| <= radius``, roughly (Steihaug, 1983; Absil et al., 2007).

    Ends where the residual is ``min(kappa, |g|^theta)`` of the gradient, which makes the outer iteration converge
    superlinearly, at the boundary, or where the curvature is not positive, at the boundary again.

    Parameters
    ----------
    blocks : Blocks
        Geometry.
    x, gradient : list of Tensor
        Point and Riemannian gradient there, not zero.
    hessian : Callable
        Tangent vector to the Riemannian Hessian along it.
    radius : float
        Of the region.
    max_inner : int
        Products with the Hessian at most.
    floor : float
        Residual that is round-off: below it directions are noise, and so is the sign of their curvature.
    kappa, theta : float
        As above.

    Returns
    -------
    ModelStep
    """
    step, hessian_step = scale(0.0, gradient), scale(0.0, gradient)
    residual, direction = gradient, scale(-1.0, gradient)
    squared = first = blocks.inner(x, gradient, gradient)
    target = max(math.sqrt(first) * min(kappa, math.sqrt(first) ** theta), floor)
    step_squared, step_along, along_squared = 0.0, 0.0, squared
    for _ in range(max_inner):
        hessian_direction = hessian(direction)
        curvature = blocks.inner(x, direction, hessian_direction)
        length = squared / curvature if curvature > 0 else math.inf
        reached = step_squared + 2 * length * step_along + length**2 * along_squared
        if not curvature > 0 or reached >= radius**2:
            inside = step_along**2 + along_squared * (radius**2 - step_squared)
            length = (math.sqrt(max(inside, 0.0)) - step_along) / along_squared
            step = combine(1.0, step, length, direction)
            return ModelStep(step, combine(1.0, hessian_step, length, hessian_direction), True)
        step = combine(1.0, step, length, direction)
        hessian_step = combine(1.0, hessian_step, length, hessian_direction)
        residual = combine(1.0, residual, length, hessian_direction)
        before, squared = squared, blocks.inner(x, residual, residual)
        if not squared > target**2:  # round-off in a badly scaled metric may be negative
            break
        beta = squared / before
        direction = combine(-1.0, residual, beta, direction)
        step_squared, step_along = reached, beta * (step_along + length * along_squared)
        along_squared = squared + beta**2 * along_squared
    return ModelStep(step, hessian_step, False)
