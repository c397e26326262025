"""Sinkhorn scaling on a GPU: everything between the logits and the result happens in registers."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from jpmhc.kernels.bodies import body
from jpmhc.kernels.cuda.blocks import DTYPES, column, launch, places, row
from jpmhc.kernels.shapes import small, small_repeated
from jpmhc.kernels.sinkhorn import FIRST_SWEEPS


def _uniform(
    logits: Tensor, row_marginals: Tensor | None, column_marginals: Tensor | None, *_options: object
) -> str | None:
    if row_marginals is not None or column_marginals is not None:
        return "no body for marginals of one's own"
    return small(logits)


@body(DTYPES, _uniform)
def sinkhorn_forward(logits: Tensor, _rows: None, _columns: None, tol: float, max_steps: int) -> Tensor:
    """Run `_forward` over all tokens."""
    finfo = torch.finfo(logits.dtype)
    return launch(_forward, [logits], max_steps, float(tol), finfo.eps, finfo.tiny**0.5, FIRST_SWEEPS)


@body(DTYPES, _uniform)
def sinkhorn_sweeps(logits: Tensor, _rows: None, _columns: None, iterations: int) -> Tensor:
    """Run `_sweeps` over all tokens."""
    return launch(_sweeps, [logits], iterations)


@body(DTYPES, small)
def sinkhorn_adjoint(matrix: Tensor, cotangent: Tensor) -> Tensor:
    """Run `_potentials` over all tokens, for ``P * (G - W)``."""
    return launch(_potentials, [matrix, cotangent], torch.finfo(matrix.dtype).eps, True, 1)


@body(DTYPES, small)
def sinkhorn_potentials(matrix: Tensor, imbalance: Tensor) -> Tensor:
    """Run `_potentials` over all tokens, for W."""
    return launch(_potentials, [matrix, imbalance], torch.finfo(matrix.dtype).eps, False, 0)


@body(DTYPES, small_repeated)
def sinkhorn_balanced(matrix: Tensor, imbalance: Tensor, times: int) -> Tensor:
    """Run `_potentials` over all tokens, for ``H - P * W``."""
    return launch(_potentials, [matrix, imbalance], torch.finfo(matrix.dtype).eps, False, times)


@triton.jit
def _logarithm(x, inside, i, j, N: tl.constexpr, M: tl.constexpr):
    """Return the logits minus the logarithm of the sum of their row; minus infinity outside."""
    x = tl.where(inside, x, float("-inf"))
    top = tl.where(i < N, tl.max(x, axis=2, keep_dims=True), 0.0)
    total = tl.sum(tl.where(j < M, tl.exp(x - top), 0.0), axis=2, keep_dims=True)
    return x - top - tl.log(tl.where(i < N, total, 1.0))


@triton.jit
def _normalised(exponents, i, j, N: tl.constexpr, M: tl.constexpr):
    """Return exponents whose largest in a column is 0, and their matrix with exact column sums."""
    top = tl.where(j < M, tl.max(exponents, axis=1, keep_dims=True), 0.0)
    exponents = exponents - top
    value = tl.where(i < N, tl.exp(exponents), 0.0)
    total = tl.where(j < M, tl.sum(value, axis=1, keep_dims=True), 1.0)
    return exponents, value * ((N / M) / total)


@triton.jit
def _solve(weights, u, ties, i, k, N: tl.constexpr):
    """Solve the Laplacian system with these weights (tokens, N, N), right side and ties to the ground (tokens, N, 1).

    Like the reference it subtracts nothing from a weight; the last number of the solution is zero.
    """
    weights = tl.where((i < N - 1) & (k < N), weights, 0.0) + tl.where((k == N - 1) & (i < N - 1), ties, 0.0)
    u = tl.where(i < N - 1, u, 0.0)
    for node in range(N - 1):
        pivot_row = row(weights, i, node)
        pivot = tl.sum(tl.where(k > node, pivot_row, 0.0), axis=2, keep_dims=True)
        pivot_row = tl.where(k > node, pivot_row / pivot, 0.0)
        solved = row(u, i, node) / pivot
        factor = column(weights, k, node)
        here = i == node
        weights = tl.where(here, pivot_row, weights + factor * pivot_row)
        u = tl.where(here, solved, u + factor * solved)
    return u


@triton.jit(do_not_specialize=["tokens", "iterations"])
def _sweeps(
    logits, result, tokens, iterations,
    N: tl.constexpr, M: tl.constexpr, N2: tl.constexpr, M2: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    offsets, inside, i, j = places(tokens, N, M, N2, M2, BLOCK)
    exponents = _logarithm(tl.load(logits + offsets, mask=inside, other=0.0), inside, i, j, N, M)
    _, p = _normalised(exponents, i, j, N, M)
    for _ in range(iterations - 1):
        p = p / tl.where(i < N, tl.sum(p, axis=2, keep_dims=True), 1.0)
        p = p * ((N / M) / tl.where(j < M, tl.sum(p, axis=1, keep_dims=True), 1.0))
    tl.store(result + offsets, p, mask=inside)


@triton.jit(do_not_specialize=["tokens", "max_steps"])
def _forward(
    logits, result, tokens, max_steps, tol: tl.float64,
    ridge: tl.constexpr, far_from_underflow: tl.constexpr, FIRST: tl.constexpr,
    N: tl.constexpr, M: tl.constexpr, N2: tl.constexpr, M2: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Sweep and step as the reference does, on the exponents, until the last matrix of the block is finished."""
    offsets, inside, i, j = places(tokens, N, M, N2, M2, BLOCK)
    k = tl.arange(0, N2)[None, None, :]
    exponents = _logarithm(tl.load(logits + offsets, mask=inside, other=0.0), inside, i, j, N, M)
    exponents, p = _normalised(exponents, i, j, N, M)
    for _ in range(FIRST - 1):
        total = tl.sum(p, axis=2, keep_dims=True)
        usable = (total > far_from_underflow) & (i < N)
        exponents = exponents - tl.where(usable, tl.log(tl.where(usable, total, 1.0)), 0.0)
        exponents, p = _normalised(exponents, i, j, N, M)
    active = tl.max(tl.where(inside, 1, 0), axis=2, keep_dims=True)
    active = tl.max(active, axis=1, keep_dims=True)
    step = 0
    while (step < max_steps) & (tl.max(active) > 0):
        imbalance = tl.where(i < N, 1.0 - tl.sum(p, axis=2, keep_dims=True), 0.0)
        error = tl.max(tl.abs(imbalance), axis=1, keep_dims=True)
        weights = tl.zeros([BLOCK, N2, N2], p.dtype)
        for c in range(M):
            entries = column(p, j, c)
            weights += entries * tl.trans(entries, 0, 2, 1) * (M / N)
        u = _solve(weights, imbalance, tl.zeros_like(imbalance) + ridge, i, k, N)
        span = tl.max(u, axis=1, keep_dims=True) - tl.min(u, axis=1, keep_dims=True)
        near = 1.0 - span * (0.5 - span * (0.3333333333333333 - span * 0.25))
        length = tl.where(span < 1e-2, near, tl.log(1.0 + span) / tl.where(span < 1e-2, 1.0, span))
        moved, stepped = _normalised(exponents + tl.where(i < N, u * length, 0.0), i, j, N, M)
        exponents, p = tl.where(active > 0, moved, exponents), tl.where(active > 0, stepped, p)
        # A step of span M < 1 leaves at most M times the error.
        active = tl.where((active > 0) & (tl.minimum(span, 1.0) * error > tol), 1, 0)
        step += 1
    tl.store(result + offsets, p, mask=inside)


@triton.jit(do_not_specialize=["tokens"])
def _potentials(
    matrix, other, result, tokens, ridge: tl.constexpr, WEIGHTED: tl.constexpr, TIMES: tl.constexpr,
    N: tl.constexpr, M: tl.constexpr, N2: tl.constexpr, M2: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Solve for the potentials W of ``H = P * other`` (weighted) or of ``H = other``.

    The result is W, or H from which ``P * W`` has been taken so many times, each time with the W of what is left.
    """
    offsets, inside, i, j = places(tokens, N, M, N2, M2, BLOCK)
    k = tl.arange(0, N2)[None, None, :]
    p = tl.load(matrix + offsets, mask=inside, other=0.0)
    h = tl.load(other + offsets, mask=inside, other=0.0)
    if WEIGHTED:
        h = h * p
    column_sums = tl.sum(p, axis=1, keep_dims=True)
    column_sums = tl.where(j < M, column_sums, 1.0)
    conditional = p / column_sums
    weights = tl.zeros([BLOCK, N2, N2], p.dtype)
    for c in range(M):
        weights += column(p, j, c) * tl.trans(column(conditional, j, c), 0, 2, 1)
    ties = tl.sum(p, axis=2, keep_dims=True) * ridge
    for _ in tl.static_range(TIMES if TIMES > 0 else 1):
        wanted = tl.sum(h, axis=1, keep_dims=True)
        u = _solve(weights, tl.sum(h - conditional * wanted, axis=2, keep_dims=True), ties, i, k, N)
        potentials = u + wanted / column_sums - tl.sum(conditional * u, axis=1, keep_dims=True)
        h = h - p * potentials if TIMES > 0 else potentials
    tl.store(result + offsets, h, mask=inside)
