"""Steps from one doubly stochastic matrix to another: its entries moved along a tangent vector, then scaled."""

import torch
from torch import Tensor

from jpmhc.kernels.primitive import primitive
from jpmhc.kernels.sinkhorn import sinkhorn_forward


def moved_logarithm(x: Tensor, u: Tensor, root: bool, least: float) -> Tensor:
    """Logarithm of positive numbers moved along a vector, in differentiable operations.

    Parameters
    ----------
    x, u : Tensor, any equal shapes
        Positive numbers, and where they go.
    root : bool
        Move on the straight line in ``2 sqrt(x)``, to ``(sqrt(x) + u / (2 sqrt(x)))^2``, bent before it crosses zero;
        or to ``x exp(u / x)``.
    least : float
        Smaller x are raised to it first.

    Returns
    -------
    Tensor
        Of the shape of x.
    """
    start = torch.log(x.clamp_min(least))
    return start + 2 * _log_bent(1 + u / (2 * x)) if root else torch.addcdiv(start, u, x)


def _log_bent(w: Tensor) -> Tensor:
    """Logarithm of a positive function that is ``w`` to third order at 1, and falls like ``1 / (4 |w|)`` below 0.

    The function is the positive root s of ``s (s - w) = q / 4`` with ``q = (w - 1)^4 / (1 + (w - 1)^2)^2``.
    """
    away = (w - 1).square()
    q = (away / (1 + away)).square()
    size = (w * w + q).sqrt()  # at least 0.25
    positive = w > 0
    numerator = torch.where(positive, w + size, q)
    return (numerator / torch.where(positive, 2.0, 2 * (size - w))).log()


@primitive("birkhoff_retraction")
def birkhoff_retraction(x: Tensor, u: Tensor, root: bool, least: float, tol: float, max_steps: int) -> Tensor:
    """Scale a doubly stochastic matrix that was moved along a tangent vector.

    Parameters
    ----------
    x, u : Tensor, shape (..., n, n)
        float32 or float64, x positive.
    root : bool
        As for `moved_logarithm`.
    least : float
        Smaller numbers are raised to it, in x before and in the result.
    tol, max_steps : float, int
        As for `sinkhorn_forward`.

    Returns
    -------
    Tensor, shape (..., n, n)
        Contiguous, with row and column sums 1.

    Notes
    -----
    Here by logarithms; the bodies take none where the moved numbers are far from overflow and underflow.
    """
    logits = moved_logarithm(x, u, root, least)
    return sinkhorn_forward(logits, None, None, tol, max_steps).clamp_min_(least)
