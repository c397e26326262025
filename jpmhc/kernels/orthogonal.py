"""Steps of matrices with orthonormal columns: the Cayley retraction with its transport, and tangent parts.

All functions work on any batch of n x p matrices with n >= p. Derivatives follow from the plain functions
`plain_cayley_retraction` and so on, which are these same maps in differentiable operations.
"""

from __future__ import annotations

import torch
from torch import Tensor

from jpmhc.kernels.batches import inv, solve
from jpmhc.kernels.elimination import inverse
from jpmhc.kernels.primitive import choice, primitive

_STRETCH = 128  # rows of a block; a product of fewer is slower a number


def plain_cayley_retraction(x: Tensor, u: Tensor) -> Tensor:
    """Compute `cayley_retraction` in plain operations."""
    return _polished(_rotated(x, *_split(x, u)) - x)


def plain_cayley_transport(x: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Compute `cayley_transport` in plain operations."""
    a, normal = _split(x, u)
    c, m = _split(x, v)
    z = _rotated(x, a, normal)
    y = _polished(z - x)
    if normal is None or m is None:
        return y, y @ c
    return y, y @ c + m - z @ (normal.mT @ m) / 2


def plain_tangent_part(x: Tensor, e: Tensor, whole: float, straight: float, crossed: float) -> Tensor:
    """Compute `tangent_part` in plain operations."""
    s = x.mT @ e
    part = x @ (straight * s + crossed * s.mT if crossed else straight * s)
    return part if whole == 0 else whole * e + part


def combined(x: Tensor, e: Tensor, whole: float, straight: float, crossed: float) -> Tensor:
    """Compute `tangent_part` of one matrix, or of a batch of one dimension, both of one shape, in the fewest calls.

    Not to be differentiated under ``torch.func``: the rules of these products there hold on to levels that have ended
    (an internal error of torch 2.13).
    """
    multiply, add = (torch.mm, torch.addmm) if x.ndim == 2 else (torch.bmm, torch.baddbmm)
    if x.shape[-2] == x.shape[-1]:
        whole, straight = whole + straight, 0.0  # x x^T e is e
        if not crossed:
            return (whole * e).contiguous()
        left, right, factor = multiply(x, e.mT), x, crossed
    elif not straight:
        left, right, factor = x, multiply(e.mT, x), crossed
    else:
        s = multiply(x.mT, e)
        left, right, factor = x, torch.add(s, s.mT, alpha=crossed / straight) if crossed else s, straight
    return add(e, left, right, beta=whole, alpha=factor)


@primitive("cayley_retraction")
def cayley_retraction(x: Tensor, u: Tensor) -> Tensor:
    """Rotate x along u: ``(I - W/2)^-1 (I + W/2) x`` with the n x n skew W that has ``W x = u`` (Wen and Yin, 2013).

    Parameters
    ----------
    x : Tensor, shape (..., n, p)
        Orthonormal columns.
    u : Tensor, shape (..., n, p)
        Tangent, ``u = x A + N`` with skew A and ``x^T N = 0``; anything else in it is dropped.

    Returns
    -------
    Tensor, shape (..., n, p)
        Orthonormal to round-off.

    Notes
    -----
    ``Z - x`` with ``Z = (2 x + N) (I - A/2 + N^T N / 4)^-1``: one block of the 2p x 2p system of the low-rank form is
    eliminated. The symmetric part of what is left is at least I, so it is never singular. A Newton-Schulz step ends it.
    """
    flat, v = _flat(x), _flat(u)
    return _shaped(_step(flat, v, torch.bmm(flat.mT, v)), x)


@primitive("cayley_transport", fake=lambda x, u, v: (_like(x), _like(x)))
def cayley_transport(x: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """`cayley_retraction` and the same rotation of a tangent vector.

    Parameters
    ----------
    x, u, v : Tensor, shape (..., n, p)
        A point and two tangent vectors there.

    Returns
    -------
    tuple of Tensor, shape (..., n, p)
        y and, for ``v = x C + M``, the vector ``y C + M - Z N^T M / 2``.
    """
    like = x
    x, u, v = _flat(x), _flat(u), _flat(v)
    xu, xv = torch.bmm(x.mT, u), torch.bmm(x.mT, v)
    y = _step(x, u, xu)
    c = torch.sub(xv, xv.mT).div_(2)
    if x.shape[-2] == x.shape[-1]:
        return _shaped(y, like), _shaped(torch.bmm(y, c), like)
    # y C + M - Z N^T M / 2 with Z = x + y and N^T M = u^T v - (x^T u)^T x^T v.
    crossed = torch.baddbmm(torch.bmm(u.mT, v), xu.mT, xv, alpha=-1).div_(2)
    return _shaped(y, like), _shaped(_sum_of_products(y, c - crossed, x, -xv - crossed).add_(v), like)


@primitive("tangent_part")
def tangent_part(x: Tensor, e: Tensor, whole: float, straight: float, crossed: float) -> Tensor:
    """Compute ``whole e + x (straight S + crossed S^T)`` with ``S = x^T e``: every projection and gradient there is.

    Parameters
    ----------
    x, e : Tensor, shape (..., n, p)
        Orthonormal columns and any matrix. Where x is square, ``x x^T = I`` may be taken for granted.
    whole, straight, crossed : float
        The weights.

    Returns
    -------
    Tensor, shape (..., n, p)
    """
    return _shaped(combined(_flat(x), _flat(e), whole, straight, crossed), e)


def _flat(x: Tensor) -> Tensor:
    """Make the batch one dimension: products of three-dimensional tensors have a third of the overhead of others."""
    return x if x.ndim == 3 else x.reshape(-1, *x.shape[-2:])


def _shaped(flat: Tensor, like: Tensor) -> Tensor:
    """Undo `_flat`; a view costs as much as two products of a few small matrices."""
    return flat if like.ndim == 3 else flat.view(like.shape)


def _like(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _split(x: Tensor, u: Tensor) -> tuple[Tensor, Tensor | None]:
    """``u = x A + N``; where x is square there is no N."""
    xu = x.mT @ u
    a = (xu - xu.mT) / 2
    return a, u - x @ xu if x.shape[-2] > x.shape[-1] else None


def _rotated(x: Tensor, a: Tensor, normal: Tensor | None) -> Tensor:
    """Z of `cayley_retraction`."""
    identity = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
    system = identity - a / 2
    start = 2 * x
    if normal is not None:
        system = system + normal.mT @ normal / 4
        start = start + normal
    # Not solve_ex: its jvp lacks a term when forward mode is nested (measured on torch 2.13).
    return start @ inv(system)


def _step(x: Tensor, u: Tensor, xu: Tensor) -> Tensor:
    """`plain_cayley_retraction` of a flat batch in few passes over the data, given ``x^T u``."""
    n, p = x.shape[-2:]
    system = torch.sub(xu.mT, xu)  # four times what is inverted, without a pass for the fourth
    system.diagonal(dim1=-2, dim2=-1).add_(4)
    if n == p:
        if choice("inverse", system).backend == "reference":
            # The transposed system, which LAPACK takes as it lies in memory.
            y = solve(system.mT, x.mT).mT.contiguous().sub_(x, alpha=0.125)
        else:
            y = torch.baddbmm(x, x, inverse(system), beta=-0.125)
        # That was an eighth of it.
        return torch.baddbmm(y, _with_itself(y), y, beta=12, alpha=-256)
    # With N = u - x x^T u: the system gets N^T N / 4, and Z = (2 x + N) / system.
    system.baddbmm_(u.mT, u).baddbmm_(xu.mT, xu, alpha=-1)
    inverted = inverse(system)
    along = torch.baddbmm(inverted, xu, inverted, beta=8, alpha=-4)
    along.diagonal(dim1=-2, dim2=-1).sub_(1)
    y = _sum_of_products(x, along, u, inverted.mul_(4))
    return torch.baddbmm(y, y, torch.bmm(y.mT, y), beta=1.5, alpha=-0.5)


def _with_itself(y: Tensor) -> Tensor:
    """Return ``y y^T``, of large matrices on a CPU in rows of blocks whose mirror images are copied."""
    batch, n = y.shape[:2]
    if y.device.type != "cpu" or n < 4 * _STRETCH:
        return torch.bmm(y, y.mT)
    result = y.new_empty(batch, n, n)
    for matrix, product in zip(y, result, strict=True):
        for i in range(0, n, _STRETCH):
            j = min(i + _STRETCH, n)
            torch.mm(matrix[i:j], matrix[i:].mT, out=product[i:j, i:])
            product[i:j, :i] = product[:i, i:j].mT
    return result


def _sum_of_products(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """Return ``a b + c d`` without a pass for the sum."""
    return torch.bmm(a, b).baddbmm_(c, d)


def _polished(matrix: Tensor) -> Tensor:
    """Newton-Schulz step ``Q (3 I - Q^T Q) / 2``."""
    identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    return matrix @ (1.5 * identity - 0.5 * (matrix.mT @ matrix))
