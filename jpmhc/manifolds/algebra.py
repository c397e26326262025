"""Functions of small matrices that the manifolds share: smooth everywhere, no factorisation, no look at the data."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from jpmhc.kernels.reading import can_read
from jpmhc.kernels.transforms import wants_derivative

_EXPONENTIAL_DEGREE = 22  # round-off in float64 for a norm up to 2
_EXPONENTIAL_DOUBLINGS = 6
_TRIGONOMETRIC_DEGREE = 12  # round-off in float64 for an angle up to 2
_TRIGONOMETRIC_DOUBLINGS = 6
_ARC_DEGREE = 23  # the coefficients fall by 5.8 each


def common_shape(x: Tensor, u: Tensor) -> torch.Size:
    """Shape that both broadcast to; equal ones, the rule, need none of the 22 us that torch takes."""
    return x.shape if x.shape == u.shape else torch.broadcast_shapes(x.shape, u.shape)


def symmetric(matrix: Tensor) -> Tensor:
    """Symmetric part."""
    return (matrix + matrix.mT) / 2


def skew(matrix: Tensor) -> Tensor:
    """Skew part."""
    return (matrix - matrix.mT) / 2


def identity(like: Tensor) -> Tensor:
    """Identity matrix with as many columns as `like`."""
    return torch.eye(like.shape[-1], dtype=like.dtype, device=like.device)


def sum_of_products(a: Tensor, b: Tensor, c: Tensor, d: Tensor, start: Tensor | None = None) -> Tensor:
    """Return ``a b + c d``, and `start` where there is one, without passes over the data for the sums."""
    given = [a, b, c, d] if start is None else [a, b, c, d, start]
    batch = torch.broadcast_shapes(*(value.shape[:-2] for value in given))
    count = math.prod(batch)
    a, b, c, d, *first = (value.expand(*batch, -1, -1).reshape(count, *value.shape[-2:]) for value in given)
    total = torch.baddbmm(first[0], a, b) if first else torch.bmm(a, b)
    return torch.baddbmm(total, c, d).reshape(*batch, *total.shape[-2:])


def frobenius(x: Tensor, u: Tensor, v: Tensor, *, keepdim: bool) -> Tensor:
    """Return ``sum(u * v)``, one number a point of the batch that all three broadcast to."""
    result = (u * v).sum((-2, -1), keepdim=keepdim)
    if x.shape == u.shape:
        return result
    core = (1, 1) if keepdim else ()
    return result.expand((*torch.broadcast_shapes(x.shape[:-2], result.shape[: result.ndim - len(core)]), *core))


def polish(matrix: Tensor) -> Tensor:
    """Newton-Schulz step ``Q (3 I - Q^T Q) / 2``: squares the distance of the columns from orthonormal.

    Without it the round-off of retractions adds up: 10,000 Cayley steps in float32 end 4e-5 away.
    """
    return matrix @ (1.5 * identity(matrix) - 0.5 * (matrix.mT @ matrix))


def root(square: Tensor) -> Tensor:
    """Square root whose derivative at zero is zero, so that norms and distances have finite gradients there.

    Round-off below zero gives zero, NaN gives NaN.
    """
    none = square <= 0
    return torch.where(none, 0.0, torch.where(none, 1.0, square).sqrt())


def norm(vector: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Euclidean norm with the derivative of `root`; the dimensions are kept."""
    return root((vector * vector).sum(dims, keepdim=True))


def polynomial(coefficients: Sequence[float], matrix: Tensor) -> Tensor:
    """Evaluate ``sum_k c_k X^k`` in about ``2 sqrt(degree)`` products (Paterson and Stockmeyer, 1973)."""
    block = max(1, math.isqrt(len(coefficients)))
    powers = [identity(matrix), matrix]
    while len(powers) <= block:
        powers.append(powers[-1] @ matrix)
    result: Tensor | None = None
    for start in reversed(range(0, len(coefficients), block)):
        first, *others = coefficients[start : start + block]
        term = first * powers[0] if result is None else first * powers[0] + powers[block] @ result
        for c, power in zip(others, powers[1:], strict=False):
            term = torch.add(term, power, alpha=c)
        result = term
    assert result is not None
    return result if result.shape == matrix.shape else result.expand_as(matrix)


def divided_exponential(matrix: Tensor) -> Tensor:
    """``phi(M) = (e^M - I) / M`` by scaling and doubling, in products alone.

    Parameters
    ----------
    matrix : Tensor, shape (..., n, n)
        Any, singular or not, of Frobenius norm up to 128.

    Returns
    -------
    Tensor, shape (..., n, n)
        NaN where the norm is larger.

    Notes
    -----
    ``phi(2 M) = phi(M) + phi(M) M phi(M) / 2``. Every order of derivative follows from the polynomial, and nothing
    waits for the device, as ``torch.linalg.matrix_exp`` does to sort its batch by norm.
    """
    coefficients = [1 / math.factorial(k + 1) for k in range(_EXPONENTIAL_DEGREE + 1)]
    terms = _enough_terms(matrix)
    if terms is not None:
        return polynomial(coefficients[:terms], matrix)
    halvings = _halvings(matrix, 2.0, _EXPONENTIAL_DOUBLINGS)
    m = matrix * torch.exp2(-halvings)
    result = polynomial(coefficients, m)
    for k in range(_most(halvings, _EXPONENTIAL_DOUBLINGS)):
        double = halvings > k
        result = torch.where(double, result + result @ m @ result / 2, result)
        m = torch.where(double, 2 * m, m)
    return _where_in_range(halvings, _EXPONENTIAL_DOUBLINGS, result)


def exponential(matrix: Tensor) -> Tensor:
    """Matrix exponential, with the range of `divided_exponential`."""
    return identity(matrix) + matrix @ divided_exponential(matrix)


def sine_and_versine(square: Tensor) -> tuple[Tensor, Tensor]:
    """``sin(sqrt S) / sqrt S`` and ``(1 - cos(sqrt S)) / S``, entire functions of a symmetric positive semidefinite S.

    Parameters
    ----------
    square : Tensor, shape (..., p, p)
        S, whose eigenvalues are squares of angles; Frobenius norm up to 2^14, that is angles up to 128.

    Returns
    -------
    tuple of Tensor, shape (..., p, p)
        NaN where the norm is larger.
    """
    halvings = torch.ceil(_halvings(square, 4.0, 2 * _TRIGONOMETRIC_DOUBLINGS) / 2)
    s = square * torch.exp2(-2 * halvings)
    signs = [(-1) ** k for k in range(_TRIGONOMETRIC_DEGREE + 1)]
    sine = polynomial([sign / math.factorial(2 * k + 1) for k, sign in enumerate(signs)], s)
    versine = polynomial([sign / math.factorial(2 * k + 2) for k, sign in enumerate(signs)], s)
    for k in range(_most(halvings, _TRIGONOMETRIC_DOUBLINGS)):
        double = halvings > k
        sine, versine = (
            torch.where(double, sine - sine @ s @ versine, sine),
            torch.where(double, sine @ sine / 2, versine),
        )
        s = torch.where(double, 4 * s, s)
    most = _TRIGONOMETRIC_DOUBLINGS
    return _where_in_range(halvings, most, sine), _where_in_range(halvings, most, versine)


def angle_over_sine(cosine: Tensor) -> Tensor:
    """``acos(C) / sqrt(1 - C^2)`` for symmetric C with eigenvalues in [0, 1]: analytic there, at 1 too.

    Parameters
    ----------
    cosine : Tensor, shape (..., p, p)
        C.

    Notes
    -----
    The only singularity is at -1, so a polynomial of degree 23 is exact to round-off on [0, 1], and equal
    angles and zero angles need no care, in any derivative.
    """
    return polynomial(_ARC_COEFFICIENTS, 2 * cosine - identity(cosine))


def scalar_angle_over_sine(cosine: Tensor) -> Tensor:
    """`angle_over_sine` of numbers in [0, 1]."""
    z = 2 * cosine - 1
    result = torch.full_like(z, _ARC_COEFFICIENTS[-1])
    for c in reversed(_ARC_COEFFICIENTS[:-1]):
        result = result * z + c
    return result


def cosine_and_sinc(square: Tensor) -> tuple[Tensor, Tensor]:
    """``cos(sqrt t)`` and ``sin(sqrt t) / sqrt t`` of numbers t >= 0, smooth at 0."""
    small = square < 0.25
    t = torch.where(small, square, 0.0)
    cosine_near, sinc_near = torch.zeros_like(t), torch.zeros_like(t)
    for k in reversed(range(9)):
        cosine_near = cosine_near * -t + 1 / math.factorial(2 * k)
        sinc_near = sinc_near * -t + 1 / math.factorial(2 * k + 1)
    angle = torch.where(small, 1.0, square).sqrt()
    return torch.where(small, cosine_near, angle.cos()), torch.where(small, sinc_near, angle.sin() / angle)


def _halvings(matrix: Tensor, radius: float, most: int) -> Tensor:
    """Smallest number of halvings that brings the Frobenius norm to `radius`; one more than `most` is the limit.

    A constant to differentiation, exactly: the result does not depend on it.
    """
    size = matrix.detach().square().sum((-2, -1), keepdim=True).sqrt()
    return torch.ceil(torch.log2((size / radius).clamp_min(1.0))).clamp_max(most + 1)


def _most(halvings: Tensor, limit: int) -> int:
    """How many doublings some matrix needs, or `limit` where looking would wait for a device or is not possible."""
    if not can_read(halvings):
        return limit
    return int(halvings.max().clamp(0, limit).nan_to_num(limit))


def _enough_terms(matrix: Tensor) -> int | None:
    """How many terms of the exponential series reach round-off without halving; None where that is not to be known.

    Products of small powers are not only useless: numbers below the normal range make them thirty times slower. Where a
    derivative may be asked for, its order is not known, and all terms are due.
    """
    if wants_derivative(matrix) or not can_read(matrix):
        return None
    size = matrix.flatten(-2).norm(dim=-1).amax().item()
    if not size <= 2.0:
        return None
    terms, term = 1, size / 2
    while terms <= _EXPONENTIAL_DEGREE and not term < torch.finfo(matrix.dtype).eps / 4:
        terms += 1
        term *= size / (terms + 1)
    return terms


def _where_in_range(halvings: Tensor, most: int, result: Tensor) -> Tensor:
    return torch.where(halvings <= most, result, math.nan)


def _arc_coefficients() -> tuple[float, ...]:
    """Interpolate ``acos(c) / sqrt(1 - c^2)`` at Chebyshev points of [0, 1], in powers of ``2 c - 1``.

    In extended precision, where the machine has it: in float64 the sum over the points loses a digit and a half.
    """
    count = _ARC_DEGREE + 1
    points = (2 * np.arange(count, dtype=np.longdouble) + 1) * (2 * np.arctan(np.longdouble(1)) / count)
    angle = 2 * np.arcsin(np.sqrt((1 - np.cos(points)) / 4))
    series = np.cos(np.outer(np.arange(count), points)) @ (angle / np.sin(angle)) * 2 / count
    series[0] /= 2
    return tuple(float(c) for c in np.polynomial.chebyshev.cheb2poly(series))


_ARC_COEFFICIENTS = _arc_coefficients()
