"""Sinkhorn scaling on a CPU: everything between the logits and the result happens in a tile."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from jpmhc.kernels import pool
from jpmhc.kernels.bodies import body
from jpmhc.kernels.cpu.compile import compiled
from jpmhc.kernels.cpu.scaling import balance, solve, sweep
from jpmhc.kernels.cpu.single import one_by_one
from jpmhc.kernels.cpu.single import scaling as single
from jpmhc.kernels.cpu.sweeps import swept
from jpmhc.kernels.cpu.tiles import DTYPES, GRAIN, LANES, extent, few, load, numbers, store
from jpmhc.kernels.shapes import LARGEST, small, small_repeated
from jpmhc.kernels.sinkhorn import FIRST_SWEEPS
from jpmhc.kernels.sinkhorn import sinkhorn_forward as primitive_forward
from jpmhc.kernels.sinkhorn import sinkhorn_scaled as primitive_scaled


def _uniform(
    logits: Tensor, row_marginals: Tensor | None, column_marginals: Tensor | None, *_options: object
) -> str | None:
    if row_marginals is not None or column_marginals is not None:
        return "no body for marginals of one's own"
    return small(logits)


def _uniform_of_any_size(
    logits: Tensor, row_marginals: Tensor | None, column_marginals: Tensor | None, *_options: object
) -> str | None:
    if max(logits.shape[-2:]) <= LARGEST or row_marginals is not None or column_marginals is not None:
        return _uniform(logits, row_marginals, column_marginals)
    return _large(logits)


def _large(matrix: Tensor, *_options: object) -> str | None:
    if max(matrix.shape[-2:]) <= LARGEST or 0 in matrix.shape[-2:]:
        return f"no body for {' x '.join(map(str, matrix.shape[-2:]))}, where logarithms are no price"
    return None


def few_numbers(matrix: Tensor, *_options: object) -> str | None:
    """Tell why larger matrices are not worth compiling for."""
    if max(matrix.shape[-2:]) <= LARGEST:
        return None
    return "fewer than 16384 numbers" if matrix.numel() < 16384 else None


@body(DTYPES, _uniform_of_any_size, few_numbers)
def sinkhorn_forward(logits: Tensor, _rows: None, _columns: None, tol: float, max_steps: int) -> Tensor:
    """Run `_forward`, the loop for few tokens or, over larger matrices, `swept`.

    The reference finishes what needs logarithms or more steps.
    """
    *_, n, m = logits.shape
    if few(logits) and max(n, m) <= LARGEST:
        result, again = one_by_one(single.forward, (logits,), float(tol), max_steps)
    elif max(n, m) > LARGEST:
        kernel = (logits.detach() - logits.detach().amax(-1, keepdim=True)).exp_()
        result, finished = _swept(kernel, 0.0, tol)
        finished &= kernel.amin((-2, -1)).view(-1) > torch.finfo(kernel.dtype).tiny ** 0.5
        again = (~finished).numpy()
    else:
        result = logits.new_empty(logits.shape)
        source, target = numbers(logits, n * m), numbers(result, n * m)
        again = np.empty(len(source), np.bool_)
        pool.run(_forward, pool.split(len(source), GRAIN), source, target, again, extent(n), extent(m), tol, max_steps)
    if np.count_nonzero(again):
        chosen = torch.from_numpy(again.nonzero()[0])
        some = logits.detach().reshape(-1, n, m)[chosen]
        reference = primitive_forward.__wrapped__  # type: ignore[attr-defined]
        # Alone, none depends on its neighbours: the reference stops larger matrices together, and chooses logarithms.
        apart = some.split(1) if max(n, m) > LARGEST or few(logits) else (some,)
        result.view(-1, n, m)[chosen] = torch.cat([reference(one, None, None, tol, max_steps) for one in apart])
    return result


@body(DTYPES, _large, few_numbers)
def sinkhorn_scaled(matrix: Tensor, least: float, tol: float, max_steps: int) -> Tensor:
    """Run `swept` over all tokens, and the reference over those that it did not finish."""
    *_, n, m = matrix.shape
    result, finished = _swept(matrix, least, tol)
    if not finished.all():
        chosen = (~finished).nonzero().squeeze(-1)
        reference = primitive_scaled.__wrapped__  # type: ignore[attr-defined]
        some = matrix.detach().reshape(-1, n, m)[chosen].split(1)
        result.view(-1, n, m)[chosen] = torch.cat([reference(one, least, tol, max_steps) for one in some])
    return result


def _swept(matrix: Tensor, least: float, tol: float) -> tuple[Tensor, Tensor]:
    """Scaled matrices, and which of them are finished."""
    n, m = matrix.shape[-2:]
    result = matrix.new_empty(matrix.shape)
    source, target = (numbers(tensor, n * m).reshape(-1, n, m) for tensor in (matrix, result))
    finished = torch.empty(len(source), dtype=torch.bool, device="cpu")
    dtype = source.dtype.type
    low = dtype(least)
    pool.run(swept, pool.split(len(source)), source, target, finished.numpy(), low, low, dtype(tol))
    return result, finished


@body(DTYPES, _uniform)
def sinkhorn_sweeps(logits: Tensor, _rows: None, _columns: None, iterations: int) -> Tensor:
    """Run `_sweeps` over all tokens, or the loop for few."""
    if few(logits):
        return one_by_one(single.sweeps, (logits,), iterations)[0]
    *_, n, m = logits.shape
    result = logits.new_empty(logits.shape)
    source, target = numbers(logits, n * m), numbers(result, n * m)
    pool.run(_sweeps, pool.split(len(source), GRAIN), source, target, extent(n), extent(m), iterations)
    return result


@body(DTYPES, small)
def sinkhorn_adjoint(matrix: Tensor, cotangent: Tensor) -> Tensor:
    """Run `_potentials` over all tokens, for ``P * (G - W)``."""
    return _solved(matrix, cotangent, True, 1)


@body(DTYPES, small)
def sinkhorn_potentials(matrix: Tensor, imbalance: Tensor) -> Tensor:
    """Run `_potentials` over all tokens, for W."""
    return _solved(matrix, imbalance, False, 0)


@body(DTYPES, small_repeated)
def sinkhorn_balanced(matrix: Tensor, imbalance: Tensor, times: int) -> Tensor:
    """Run `_potentials` over all tokens, for ``H - P * W``."""
    return _solved(matrix, imbalance, False, times)


def _solved(matrix: Tensor, other: Tensor, weighted: bool, times: int) -> Tensor:
    if few(matrix):
        return one_by_one(single.potentials, (matrix, other), weighted, times)[0]
    n, m = matrix.shape[-2:]
    result = matrix.new_empty(matrix.shape)
    arrays = [numbers(tensor, n * m) for tensor in (matrix, other, result)]
    pool.run(_potentials, pool.split(len(arrays[0]), GRAIN), *arrays, extent(n), extent(m), weighted, times)
    return result


@compiled
def _sweeps(logits, result, rows, columns, iterations, start, stop):  # type: ignore[no-untyped-def]
    p = np.empty((len(rows) * len(columns), LANES), logits.dtype)
    u, v = np.empty((len(rows), LANES), logits.dtype), np.empty((len(columns), LANES), logits.dtype)
    for base in range(start, stop, LANES):
        load(logits, p, base, stop)
        sweep(p, u, v, rows, columns, iterations)
        store(result, p, base, stop)


@compiled
def _forward(logits, result, again, rows, columns, tol, max_steps, start, stop):  # type: ignore[no-untyped-def]
    """Sweep and step as the reference does; `again` marks what came near to underflow and is not finished here."""
    n, m = len(rows), len(columns)
    p = np.empty((n * m, LANES), logits.dtype)
    weights = np.empty((n * n, LANES), logits.dtype)
    u, row = np.empty((n, LANES), logits.dtype), np.empty((n, LANES), logits.dtype)
    v = np.empty((m, LANES), logits.dtype)
    active = np.empty(LANES, logits.dtype)
    far_from_underflow = logits.dtype.type(np.sqrt(np.finfo(logits.dtype).tiny))
    for base in range(start, stop, LANES):
        load(logits, p, base, stop)
        sweep(p, u, v, rows, columns, FIRST_SWEEPS)
        for t in range(LANES):
            low = p[0, t]
            for k in range(1, n * m):
                low = min(low, p[k, t])
            active[t] = low > far_from_underflow
        for t in range(min(LANES, stop - base)):
            again[base + t] = active[t] == 0
        balance(p, weights, u, v, row, active, rows, columns, tol, max_steps)
        store(result, p, base, stop)


@compiled
def _potentials(matrix, other, result, rows, columns, weighted, times, start, stop):  # type: ignore[no-untyped-def]
    """Solve for the potentials W of ``H = P * other`` (`weighted`) or of ``H = other``; see the reference.

    The result is W, or H from which ``P * W`` has been taken so many times, each time with the W of what is left.
    """
    n, m = len(rows), len(columns)
    p = np.empty((n * m, LANES), matrix.dtype)
    h = np.empty((n * m, LANES), matrix.dtype)
    conditional = np.empty((n * m, LANES), matrix.dtype)
    weights = np.empty((n * n, LANES), matrix.dtype)
    u = np.empty((n, LANES), matrix.dtype)
    row = np.empty((n, LANES), matrix.dtype)
    wanted = np.empty((m, LANES), matrix.dtype)
    one = matrix.dtype.type(1)
    for base in range(start, stop, LANES):
        load(matrix, p, base, stop)
        load(other, h, base, stop)
        if weighted:
            for k in range(n * m):
                for t in range(LANES):
                    h[k, t] *= p[k, t]
        for _ in range(max(times, 1)):
            for j in range(m):
                for t in range(LANES):
                    total, column = h[j, t], p[j, t]
                    for i in range(1, n):
                        total += h[i * m + j, t]
                        column += p[i * m + j, t]
                    factor = one / column
                    wanted[j, t] = total * factor
                    for i in range(n):
                        conditional[i * m + j, t] = p[i * m + j, t] * factor
            for i in range(n):
                for t in range(LANES):
                    total, mass = h[i * m, t] - p[i * m, t] * wanted[0, t], p[i * m, t]
                    for j in range(1, m):
                        total += h[i * m + j, t] - p[i * m + j, t] * wanted[j, t]
                        mass += p[i * m + j, t]
                    u[i, t], row[i, t] = total, mass
            for i in range(n - 1):
                for k in range(i + 1, n):
                    for t in range(LANES):
                        total = p[i * m, t] * conditional[k * m, t]
                        for j in range(1, m):
                            total += p[i * m + j, t] * conditional[k * m + j, t]
                        weights[i * n + k, t] = total
            solve(weights, u, row, rows)
            for j in range(m):
                for t in range(LANES):
                    v = wanted[j, t]
                    for i in range(n):
                        v -= conditional[i * m + j, t] * u[i, t]
                    for i in range(n):
                        w = u[i, t] + v
                        h[i * m + j, t] = h[i * m + j, t] - p[i * m + j, t] * w if times else w
        store(result, h, base, stop)
