"""Sinkhorn scaling: the matrix ``diag(u) exp(logits) diag(v)`` with given row and column sums, with its adjoint.

All functions work on any batch of n x m matrices. Marginals are given for every matrix or for none; without them rows
sum to 1 and columns to n / m.
"""

import math
from functools import partial

import torch
from torch import Tensor

from jpmhc.kernels.laplacian import dense_potentials, grounded
from jpmhc.kernels.layout import tokens_first, tokens_last
from jpmhc.kernels.primitive import primitive
from jpmhc.kernels.reading import can_read

FIRST_SWEEPS = 5  # more cost time at small logits, fewer at large ones (measured at n = 4 and 16)
_ELIMINATED = 16  # beyond this size LAPACK is faster than elimination with the tokens last (measured)
_SWEEPS_OF_VECTORS = 16


@primitive("sinkhorn_forward")
def sinkhorn_forward(
    logits: Tensor,
    row_marginals: Tensor | None,
    column_marginals: Tensor | None,
    tol: float,
    max_steps: int,
) -> Tensor:
    """Scale ``exp(logits)`` to the marginals by a few sweeps and damped Newton steps.

    Parameters
    ----------
    logits : Tensor, shape (..., n, m)
        float32 or float64. ``-inf`` forbids an entry.
    row_marginals, column_marginals : Tensor, shape (..., n) and (..., m), or None
        Positive, of equal totals, with the batch shape of `logits`; both or neither.
    tol : float
        A matrix is finished when its row sums are within ``tol`` of their marginals, relative to them. Column sums
        are exact to round-off at all times.
    max_steps : int
        Largest number of Newton steps.

    Returns
    -------
    Tensor, shape (..., n, m)
        Contiguous. The last iterate where `max_steps` did not suffice; NaN where the logits hold NaN or +inf.

    Notes
    -----
    Newton's method for the row potentials f on the convex semi-dual ``phi(f) = sum_j c_j log sum_i exp(logits_ij +
    f_i) - sum_i r_i f_i``, whose Hessian is a weighted graph Laplacian. Along a direction d the third derivative of
    phi is at most ``M = max d - min d`` times the second (it is a sum of third central moments of variables of that
    range), so the step length ``log(1 + M) / M`` always descends and tends to 1: no line search. Where two groups of
    rows are almost disconnected, M is their imbalance over their coupling and ``log(1 + M)`` the very shift that
    balances them: logits of +-50 take about 50 steps, standard normal ones 1 to 3.

    On a CPU the loop stops when all matrices are finished, and goes on with the unfinished ones alone when they are
    fewer than half. On other devices, where looking would synchronise, it runs all `max_steps` and holds finished
    matrices fixed. There, and where an entry comes near to underflow, the iterate is kept as a logarithm.
    """
    n, m = logits.shape[-2:]
    rows = _marginal(row_marginals, 1.0)
    columns = _marginal(column_marginals, n / m)
    reads = can_read(logits)
    if reads and n > _ELIMINATED:
        swept = _swept_by_vectors(logits, row_marginals, column_marginals, tol)
        if swept is not None:
            return swept
    start = torch.log_softmax(tokens_last(logits), 1).add_(_along_rows(_log(rows)))
    matrix = torch.softmax(start, 0).mul_(columns)
    log_matrix = None
    far_from_underflow = torch.finfo(matrix.dtype).tiny ** 0.5
    if reads and matrix.amin().item() > far_from_underflow:
        _sweep(matrix, rows, columns, FIRST_SWEEPS - 1)
    else:
        log_matrix = torch.log_softmax(start, 0).add_(_log(columns))
    return tokens_first(_newton(matrix, log_matrix, rows, columns, tol, max_steps, reads), logits.shape)


@primitive("sinkhorn_scaled")
def sinkhorn_scaled(matrix: Tensor, least: float, tol: float, max_steps: int) -> Tensor:
    """`sinkhorn_forward` of the logarithm of a positive matrix, without logarithms where there is a body for it.

    Parameters
    ----------
    matrix : Tensor, shape (..., n, m)
        float32 or float64.
    least : float
        Positive; smaller numbers are raised to it, before and after.
    tol : float
        Largest error of a row sum, as for `sinkhorn_forward`.
    max_steps : int
        Largest number of Newton steps.

    Returns
    -------
    Tensor, shape (..., n, m)
        Contiguous, with row sums 1 and column sums n / m.
    """
    return sinkhorn_forward(matrix.clamp_min(least).log(), None, None, tol, max_steps).clamp_min_(least)


@primitive("sinkhorn_sweeps")
def sinkhorn_sweeps(
    logits: Tensor, row_marginals: Tensor | None, column_marginals: Tensor | None, iterations: int
) -> Tensor:
    """Scale ``exp(logits)`` by exactly `iterations` sweeps, each rows first and columns last.

    Parameters
    ----------
    logits, row_marginals, column_marginals
        As for `sinkhorn_forward`.
    iterations : int
        At least 1.

    Returns
    -------
    Tensor, shape (..., n, m)
        Contiguous; column sums are exact to round-off, row sums as good as the sweeps made them.

    Notes
    -----
    The first sweep runs in the log domain, after which every row and every column holds an entry that is not small,
    so that the others need no logarithm.
    """
    n, m = logits.shape[-2:]
    rows = _marginal(row_marginals, 1.0)
    columns = _marginal(column_marginals, n / m)
    start = torch.log_softmax(tokens_last(logits), 1).add_(_along_rows(_log(rows)))
    matrix = torch.softmax(start, 0).mul_(columns)
    _sweep(matrix, rows, columns, iterations - 1)
    return tokens_first(matrix, logits.shape)


@primitive("sinkhorn_adjoint")
def sinkhorn_adjoint(matrix: Tensor, cotangent: Tensor) -> Tensor:
    """Apply the derivative ``dP / dlogits``, a symmetric map: the pullback and the pushforward at once.

    Parameters
    ----------
    matrix : Tensor, shape (..., n, m)
        The scaled matrix P, converged or not: its own row and column sums are held fixed.
    cotangent : Tensor, shape (..., n, m)
        G, a gradient with respect to P (or a tangent of the logits).

    Returns
    -------
    Tensor, shape (..., n, m)
        ``P * (G - u 1^T - 1 v^T)``, whose rows and columns sum to zero.
    """
    if matrix.shape[-2] > _ELIMINATED:
        weighted = matrix * cotangent
        return weighted.sub_(dense_potentials(matrix)(weighted).mul_(matrix))
    p, weighted = tokens_last(matrix), tokens_last(cotangent)
    weighted.mul_(p)
    potentials = _potentials(p, weighted)
    return tokens_first(weighted.sub_(potentials.mul_(p)), matrix.shape)


@primitive("sinkhorn_potentials")
def sinkhorn_potentials(matrix: Tensor, imbalance: Tensor) -> Tensor:
    """Solve for the sum of potentials ``W = u 1^T + 1 v^T`` such that ``P * W`` has the marginals of another matrix.

    Parameters
    ----------
    matrix : Tensor, shape (..., n, m)
        The scaled matrix P.
    imbalance : Tensor, shape (..., n, m)
        Any matrix H; only its row and column sums matter.

    Returns
    -------
    Tensor, shape (..., n, m)
        W, with the row and column sums of ``P * W`` equal to those of H. ``sinkhorn_adjoint(P, G)`` is
        ``H - P * W`` for ``H = P * G``.

    Notes
    -----
    The system ``[[diag P1, P], [P^T, diag P^T 1]] [u; v] = [H 1; H^T 1]`` is singular along (1, -1) for every
    positive P, which W does not see. Eliminating v leaves a weighted graph Laplacian of size n, whose weights are
    sums of products of entries of P. It is eliminated without a subtraction (Grassmann, Taksar and Heyman, 1985), the
    last node grounded and every other node tied to the ground by one machine epsilon of its row sum, so that
    disconnected groups of rows get a finite answer.
    """
    if matrix.shape[-2] > _ELIMINATED:
        return dense_potentials(matrix)(imbalance)
    return tokens_first(_potentials(tokens_last(matrix), tokens_last(imbalance)), matrix.shape)


@primitive("sinkhorn_balanced")
def sinkhorn_balanced(matrix: Tensor, imbalance: Tensor, times: int) -> Tensor:
    """Take ``P * W`` off a matrix H, with the W of `sinkhorn_potentials`, so that its rows and columns sum to zero.

    Parameters
    ----------
    matrix, imbalance : Tensor, shape (..., n, m)
        The scaled matrix P, and H.
    times : int
        How often, at least once: the second time takes off the sums of the round-off of the first.

    Returns
    -------
    Tensor, shape (..., n, m)
        Contiguous.
    """
    if times < 1:
        raise ValueError(f"times: expected at least 1, got {times}")
    dense = matrix.shape[-2] > _ELIMINATED
    potentials = dense_potentials(matrix) if dense else partial(sinkhorn_potentials, matrix)
    result = imbalance.contiguous()
    for _ in range(times):
        result = result - matrix * potentials(result)
    return result


@primitive("sinkhorn_inverse", fake=lambda matrix: matrix.new_empty(*matrix.shape[:-1], matrix.shape[-2]))
def sinkhorn_inverse(matrix: Tensor) -> Tensor:
    """Invert the Laplacian of `sinkhorn_potentials`, for those who apply it many times.

    Parameters
    ----------
    matrix : Tensor, shape (..., n, m)
        The scaled matrix P.

    Returns
    -------
    Tensor, shape (..., n, n)
        The symmetric R with ``u = R (x - P diag(P^T 1)^-1 y)`` for row sums x and column sums y of the imbalance, and
        then ``v = diag(P^T 1)^-1 (y - P^T u)``.
    """
    p = tokens_last(matrix)
    n, _, tokens = p.shape
    identity = torch.eye(n, dtype=p.dtype, device=p.device).unsqueeze(2).expand(n, n, tokens)
    inverse = _solve(p, p / p.sum(0), identity, p.sum(1), torch.finfo(p.dtype).eps)
    return tokens_first(inverse, torch.Size((*matrix.shape[:-1], n)))


def _newton(
    matrix: Tensor,
    log_matrix: Tensor | None,
    rows: Tensor | float,
    columns: Tensor | float,
    tol: float,
    max_steps: int,
    reads: bool,
) -> Tensor:
    """Run Newton's method on the row potentials from a matrix (n, m, N) with exact column sums, in place."""
    result, kept = matrix, None  # kept: the places in the result of the matrices still worked on
    unfinished: Tensor | None = None
    ridge = torch.finfo(matrix.dtype).eps
    for _ in range(max_steps):
        imbalance = rows - matrix.sum(1)
        conditional = matrix if isinstance(columns, float) and columns == 1.0 else matrix / columns
        step = _solve(matrix, conditional, imbalance.unsqueeze(1), rows, ridge).squeeze(1)
        span = step.amax(0).sub_(step.amin(0))
        error = imbalance.div_(rows).abs_().amax(0)
        length = torch.log1p(span).div_(span.clamp_min_(torch.finfo(span.dtype).tiny))
        still = span.clamp_max_(1.0).mul_(error) > tol  # a step of span M < 1 leaves at most M times the error
        if unfinished is not None:
            length.mul_(unfinished)
        step.mul_(length)
        if log_matrix is None:
            matrix.mul_(step.exp_().unsqueeze(1))
            _scale(matrix, 0, columns)
        else:
            log_matrix = torch.log_softmax(log_matrix.add_(step.unsqueeze(1)), 0).add_(_log(columns))
            torch.exp(log_matrix, out=matrix)
        unfinished = still
        if reads:
            count = int(still.sum())
            if count == 0:
                break
            if 2 * count <= still.numel():
                chosen = still.nonzero().squeeze(1)
                if kept is not None:
                    result.index_copy_(2, kept, matrix)
                kept = chosen if kept is None else kept[chosen]
                matrix = matrix.index_select(2, chosen)
                log_matrix = None if log_matrix is None else log_matrix.index_select(2, chosen)
                rows, columns = _take(rows, chosen), _take(columns, chosen)
                unfinished = None
    if kept is not None:
        result.index_copy_(2, kept, matrix)
    return result


def _sweep(matrix: Tensor, rows: Tensor | float, columns: Tensor | float, times: int) -> None:
    for _ in range(times):
        _scale(matrix, 1, rows)
        _scale(matrix, 0, columns)


def _scale(matrix: Tensor, dim: int, wanted: Tensor | float) -> None:
    """Give the sums over a dimension of a matrix (n, m, N) their marginals, in place and in few calls."""
    sums = matrix.sum(dim, keepdim=True)
    if isinstance(wanted, float):
        matrix.div_(sums if wanted == 1.0 else sums.div_(wanted))
    else:
        matrix.mul_(wanted.unsqueeze(dim) / sums)


def _swept_by_vectors(
    logits: Tensor, row_marginals: Tensor | None, column_marginals: Tensor | None, tol: float
) -> Tensor | None:
    """Scale large matrices by sweeps over two vectors, which touch the matrix in products alone; None if that is slow.

    Large matrices that are not close to a permutation need a few sweeps, each of less work than a step of Newton.
    """
    n, m = logits.shape[-2:]
    kernel = torch.exp(logits - logits.amax(-1, keepdim=True))
    if not kernel.amin().item() > torch.finfo(kernel.dtype).tiny ** 0.5:
        return None
    rows = kernel.new_ones(1) if row_marginals is None else row_marginals
    columns = kernel.new_full((1,), n / m) if column_marginals is None else column_marginals
    right = kernel.new_ones(*logits.shape[:-2], m)
    for _ in range(_SWEEPS_OF_VECTORS):
        left = rows / (kernel @ right.unsqueeze(-1)).squeeze(-1)
        before, right = right, columns / (left.unsqueeze(-2) @ kernel).squeeze(-2)
        # Column sums are right now, and row sums have changed by no more than this.
        if (right / before - 1).abs_().amax().item() <= tol:
            return kernel.mul_(left.unsqueeze(-1)).mul_(right.unsqueeze(-2))
    return None


def _potentials(matrix: Tensor, imbalance: Tensor) -> Tensor:
    """`sinkhorn_potentials` with the tokens last."""
    column_sums = matrix.sum(0)
    conditional = matrix / column_sums
    wanted = imbalance.sum(0)
    right_side = imbalance.sum(1).sub_((conditional * wanted).sum(1))
    u = _solve(matrix, conditional, right_side.unsqueeze(1), matrix.sum(1), torch.finfo(matrix.dtype).eps)
    v = wanted.div_(column_sums).sub_(conditional.mul_(u).sum(0))
    return torch.add(u, v, out=conditional)


def _solve(matrix: Tensor, conditional: Tensor, right_sides: Tensor, rows: Tensor | float, ridge: float) -> Tensor:
    """Solve ``S u = right side``, S the Laplacian of the weights ``matrix conditional^T``, with the last of u zero.

    Shapes (n, m, N), (n, m, N), (n, k, N) to (n, k, N). The system below has a column of weights to each node, the
    last of which collects all that is tied to the ground, and then the right sides. Its diagonal is never read: a
    pivot is the sum of the weights that are left, so nothing is ever subtracted from a weight.
    """
    n, _, tokens = matrix.shape
    if n > _ELIMINATED:
        left, right, wanted = (value.permute(2, 0, 1) for value in (conditional, matrix, right_sides))
        solution = grounded(left @ right.mT, rows if isinstance(rows, float) else rows.t())(wanted)
        return solution.permute(1, 2, 0).contiguous()
    width = n + right_sides.shape[1]
    system = matrix.new_empty(n - 1, width, tokens)
    weights = system[:, :n]
    # Views made by one call each: one by one they would take most of the time of a few matrices.
    left, *lefts = matrix[:-1].unsqueeze(1).unbind(2)
    right, *rights = conditional.unsqueeze(0).unbind(2)
    weights.copy_(left * right)  # torch 2.11 compiles no out= that is not contiguous
    for left, right in zip(lefts, rights, strict=True):
        weights.addcmul_(left, right)
    weights[:, -1].add_(ridge * (rows if isinstance(rows, float) else rows[:-1]))
    system[:, n:].copy_(right_sides[:-1])
    columns, diagonal = system.unsqueeze(2).unbind(1), system.diagonal().unbind(1)
    for k, row in enumerate(system.unbind(0), 1):
        later = row.narrow(0, k, width - k)
        pivot_row = later / later.narrow(0, 0, n - k).sum(0)
        # One operation for all rows: this one is nothing, and gets the pivot row once.
        later.zero_()
        diagonal[k - 1].fill_(1)
        system.narrow(1, k, width - k).addcmul_(columns[k - 1], pivot_row)
    solution = matrix.new_zeros(right_sides.shape)
    solution[:-1] = system[:, n:]
    return solution


def _marginal(marginal: Tensor | None, default: float) -> Tensor | float:
    """(..., n) to (n, N); a number where all marginals are equal."""
    return default if marginal is None else tokens_last(marginal.unsqueeze(-1)).squeeze(1)


def _along_rows(value: Tensor | float) -> Tensor | float:
    return value if isinstance(value, float) else value.unsqueeze(1)


def _log(value: Tensor | float) -> Tensor | float:
    return math.log(value) if isinstance(value, float) else value.log()


def _take(value: Tensor | float, chosen: Tensor) -> Tensor | float:
    return value if isinstance(value, float) else value.index_select(1, chosen)
