"""Cayley transform of a skew matrix, ``Q = (I - B)^-1 (I + B)``, with its adjoint.

Everywhere ``W = raw - raw^T`` and ``B = step W / 2``; all functions work on any batch of n x n matrices.
"""

import torch
from torch import Tensor

from jpmhc.kernels.batches import solve
from jpmhc.kernels.layout import tokens_first, tokens_last
from jpmhc.kernels.primitive import primitive


@primitive("cayley_forward")
def cayley_forward(raw: Tensor, step: float) -> Tensor:
    """Compute the rotation, orthogonal to round-off.

    Parameters
    ----------
    raw : Tensor, shape (..., n, n)
        float32 or float64, any real matrices.
    step : float
        Scale of the skew matrix.

    Returns
    -------
    Tensor, shape (..., n, n)
        Contiguous.

    Notes
    -----
    For n <= 4 a closed form (`_closed_form`) and from n = 3 on one Newton-Schulz step ``Q (3 I - Q^T Q) / 2``, without
    which float32 is orthogonal to 2e-6 only where entries of B are of mixed size. Otherwise one LU factorisation in
    float64: a skew matrix may be singular, of odd size it always is, and what ``|B| eps`` loses of Q no number of steps
    brings back from 1e6 on in float32. Float64 takes one step, enough for entries up to 1e7. On "mps", which has
    no float64, float32 is treated alike, enough up to 1e3.
    """
    n = raw.shape[-1]
    if n <= 4:
        rotation = _closed_form(tokens_last(raw), step)
        return tokens_first(_polished(rotation) if n > 2 else rotation, raw.shape)
    wide = raw if raw.device.type == "mps" else raw.double()
    skew = (wide - wide.mT) * (step / 2)
    identity = torch.eye(n, dtype=wide.dtype, device=raw.device)
    q = solve(identity - skew, identity + skew)
    if wide.dtype == raw.dtype:
        q = q @ (1.5 * identity - 0.5 * (q.mT @ q))
    return q.to(raw.dtype)


@primitive("cayley_iterated")
def cayley_iterated(raw: Tensor, step: float, iterations: int) -> Tensor:
    """Approximate the rotation by ``Y <- I + B (I + Y)`` from ``Y = I + 2 B`` (Li, Fuxin and Todorovic, 2020).

    Parameters
    ----------
    raw, step
        As for `cayley_forward`.
    iterations : int
        Number of updates, at least 0.

    Returns
    -------
    Tensor, shape (..., n, n)
        Within ``2 b^(iterations + 2) / sqrt(1 + b^2)`` of the rotation in the spectral norm, ``b = ||B||``.
    """
    skew = (raw - raw.mT) * (step / 2)
    identity = torch.eye(raw.shape[-1], dtype=raw.dtype, device=raw.device)
    result = identity + 2 * skew
    for _ in range(iterations):
        result = identity + skew + skew @ result
    return result


@primitive("cayley_adjoint")
def cayley_adjoint(rotation: Tensor, cotangent: Tensor, step: float) -> Tensor:
    """Pull a gradient with respect to the rotation back to `raw`, from the rotation alone.

    Parameters
    ----------
    rotation, cotangent : Tensor, shape (..., n, n)
        Q and G.
    step : float
        Scale of the skew matrix.

    Returns
    -------
    Tensor, shape (..., n, n)
        ``H - H^T`` with ``H = step (Q + I)^T G (Q + I)^T / 4``: two products and no solve.
    """
    if rotation.shape[-1] <= 8:
        e = _transposed_plus_identity(tokens_last(rotation))
        h = _product(_product(e, tokens_last(cotangent)), e).mul_(step / 4)
        return tokens_first(h - h.transpose(0, 1), rotation.shape)
    e = rotation.mT + torch.eye(rotation.shape[-1], dtype=rotation.dtype, device=rotation.device)
    h = (e @ cotangent @ e).mul_(step / 4)
    return h - h.mT


def _closed_form(raw: Tensor, step: float) -> Tensor:
    """Q for n <= 4 with the tokens last.

    With s the sum of squares above the diagonal, pf the Pfaffian and D the dual of B (``B D = -pf I``), the
    characteristic polynomial gives ``(I - B)^-1 = ((1 + s) I + B + B^2 + pf D) / (1 + s + pf^2)``; below n = 4, pf = 0.
    """
    n = raw.shape[0]
    b = (raw - raw.transpose(0, 1)).mul_(step / 2)
    s = (b * b).sum((0, 1)).div_(2)
    result = _product(b, b).add_(b)
    denominator = 1 + s
    _diagonal(result).add_(denominator)
    if n == 4:
        pfaffian = b[0, 1] * b[2, 3] - b[0, 2] * b[1, 3] + b[0, 3] * b[1, 2]
        denominator = torch.addcmul(denominator, pfaffian, pfaffian)
        for i, j, k, l in ((0, 1, 2, 3), (0, 2, 3, 1), (0, 3, 1, 2), (1, 2, 0, 3), (1, 3, 2, 0), (2, 3, 0, 1)):
            dual = pfaffian * b[k, l]
            result[i, j] += dual
            result[j, i] -= dual
    result.mul_(2 / denominator)
    _diagonal(result).sub_(1)
    return result


def _polished(rotation: Tensor) -> Tensor:
    """``Q (3 I - Q^T Q) / 2`` with the tokens last."""
    correction = _product(rotation.transpose(0, 1), rotation).mul_(-0.5)
    _diagonal(correction).add_(1.5)
    return _product(rotation, correction)


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Matrix product with the tokens last."""
    result = left[:, 0, None] * right[None, 0]
    for k in range(1, left.shape[1]):
        result.addcmul_(left[:, k, None], right[None, k])
    return result.contiguous()


def _diagonal(matrix: Tensor) -> Tensor:
    """View of the diagonal, shape (n, tokens); a slice, since ONNX knows no writing to a ``diagonal``."""
    n = matrix.shape[0]
    return matrix.view(n * n, -1)[:: n + 1]


def _transposed_plus_identity(matrix: Tensor) -> Tensor:
    result = matrix.transpose(0, 1).contiguous()
    _diagonal(result).add_(1)
    return result
