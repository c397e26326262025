"""Cayley transform on a GPU: closed form or elimination, polish and adjoint in registers."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from jpmhc.kernels.bodies import body
from jpmhc.kernels.cuda.blocks import DTYPES, column, launch, places, product, row
from jpmhc.kernels.shapes import small_square


@body(DTYPES, small_square)
def cayley_forward(raw: Tensor, step: float) -> Tensor:
    """Run `_forward` over all tokens."""
    return launch(_forward, [raw], float(step))


@body(DTYPES, small_square)
def cayley_adjoint(rotation: Tensor, cotangent: Tensor, step: float) -> Tensor:
    """Run `_adjoint` over all tokens."""
    return launch(_adjoint, [rotation, cotangent], float(step))


@triton.jit
def _entry(x, i, j, a: tl.constexpr, b: tl.constexpr):
    return tl.sum(tl.sum(tl.where((i == a) & (j == b), x, 0.0), axis=2, keep_dims=True), axis=1, keep_dims=True)


@triton.jit
def _pair(value, i, j, a: tl.constexpr, b: tl.constexpr):
    """Return the skew matrix with one value at (a, b)."""
    return tl.where((i == a) & (j == b), value, 0.0) - tl.where((i == b) & (j == a), value, 0.0)


@triton.jit
def _polished(q, identity, i, j, N: tl.constexpr):
    return product(q, 1.5 * identity - 0.5 * product(tl.trans(q, 0, 2, 1), q, i, j, N), i, j, N)


@triton.jit(do_not_specialize=["tokens"])
def _forward(
    raw, result, tokens, step: tl.float64,
    N: tl.constexpr, M: tl.constexpr, N2: tl.constexpr, M2: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    offsets, inside, i, j = places(tokens, N, M, N2, M2, BLOCK)
    x = tl.load(raw + offsets, mask=inside, other=0.0)
    b = ((x - tl.trans(x, 0, 2, 1)) * (step * 0.5)).to(x.dtype)
    identity = tl.where(i == j, 1.0, 0.0).to(x.dtype)
    if N <= 4:
        # With the dual D of b and its Pfaffian: (I - B)^-1 = ((1 + s) I + B + B^2 + pf D) / (1 + s + pf^2).
        s = tl.sum(tl.sum(b * b, axis=2, keep_dims=True), axis=1, keep_dims=True) * 0.5
        q = (1.0 + s) * identity + b + product(b, b, i, j, N)
        denominator = 1.0 + s
        if N == 4:
            b01, b02, b03 = _entry(b, i, j, 0, 1), _entry(b, i, j, 0, 2), _entry(b, i, j, 0, 3)
            b12, b13, b23 = _entry(b, i, j, 1, 2), _entry(b, i, j, 1, 3), _entry(b, i, j, 2, 3)
            pf = b01 * b23 - b02 * b13 + b03 * b12
            q += _pair(pf * b23, i, j, 0, 1) - _pair(pf * b13, i, j, 0, 2) + _pair(pf * b12, i, j, 0, 3)
            q += _pair(pf * b03, i, j, 1, 2) - _pair(pf * b02, i, j, 1, 3) + _pair(pf * b01, i, j, 2, 3)
            denominator += pf * pf
        q = q * (2.0 / denominator) - identity
        q = _polished(q, identity, i, j, N)
    else:
        # In float64, for the reason that the reference gives. The symmetric part of I - B is I, so elimination without
        # exchanges never breaks down; but it squares large entries of B, where row pivots lose what the condition
        # costs. Rows are not moved before the end: `order` says which pivot a row has been, -1 one that is free.
        wide = x.to(tl.float64)
        b = (wide - tl.trans(wide, 0, 2, 1)) * (step * 0.5)
        identity = tl.where(i == j, 1.0, 0.0).to(tl.float64)
        left = identity - b
        q = identity + b
        order = tl.zeros([BLOCK, N2, 1], tl.int32) + tl.where(i < N, -1, N2)
        for k in range(N):
            factor = column(left, j, k)
            free = order < 0
            size = tl.where(free, tl.abs(factor), -1.0)
            largest = tl.max(size, axis=1, keep_dims=True)
            # Where nothing is largest, with NaN, no row is chosen, and zero by zero makes the matrix NaN.
            first = tl.min(tl.where(free & (size == largest), i, N2), axis=1, keep_dims=True)
            chosen = i == first
            pivot = row(factor, i, first)
            pivot_left, pivot_q = row(left, i, first) / pivot, row(q, i, first) / pivot
            left = tl.where(chosen, pivot_left, left - factor * pivot_left)
            q = tl.where(chosen, pivot_q, q - factor * pivot_q)
            order = tl.where(chosen, k, order)
        places_of_rows = tl.trans(tl.where(order == j, 1.0, 0.0).to(tl.float64), 0, 2, 1)
        q = product(places_of_rows, q, i, j, N)
        if x.dtype == tl.float64:
            # Twice: entries of 1e8 leave it orthogonal to 1e-8, of which one step makes 4e-15 for n = 15.
            for _ in range(2):
                q = _polished(q, identity, i, j, N)
    tl.store(result + offsets, q.to(x.dtype), mask=inside)


@triton.jit(do_not_specialize=["tokens"])
def _adjoint(
    rotation, cotangent, result, tokens, step: tl.float64,
    N: tl.constexpr, M: tl.constexpr, N2: tl.constexpr, M2: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """``H - H^T`` with ``H = step E G E / 4`` and ``E = Q^T + I``."""
    offsets, inside, i, j = places(tokens, N, M, N2, M2, BLOCK)
    q = tl.load(rotation + offsets, mask=inside, other=0.0)
    g = tl.load(cotangent + offsets, mask=inside, other=0.0)
    e = tl.trans(q, 0, 2, 1) + tl.where(i == j, 1.0, 0.0)
    h = (product(product(e, g, i, j, N), e, i, j, N) * (step * 0.25)).to(q.dtype)
    tl.store(result + offsets, h - tl.trans(h, 0, 2, 1), mask=inside)
