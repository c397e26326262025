"""How far the result of a map is from the equation that defines it, and whether an iteration is in its range."""

import torch
from torch import Tensor

from jpmhc.autodiff.coefficients import as_coefficients, as_matrices
from jpmhc.kernels.precision import full_precision


def sinkhorn_residual(
    matrix: Tensor,
    *,
    row_marginals: Tensor | None = None,
    column_marginals: Tensor | None = None,
    logits: Tensor | None = None,
) -> Tensor:
    """Largest relative error of a row or column sum, infinite where no solution exists.

    Parameters
    ----------
    matrix : Tensor, shape (..., n, m)
        A result of `sinkhorn`.
    row_marginals, column_marginals : Tensor, shape (..., n) and (..., m), optional
        As given to `sinkhorn`.
    logits : Tensor, shape (..., n, m), optional
        As given to `sinkhorn`, where they may hold ``-inf``. If an entry that they allow is zero in every matrix with
        these marginals and these forbidden entries, no scaling of ``exp(logits)`` has the marginals. The sweeps and
        steps come as near to them as one likes, and the sums alone cannot tell.

    Returns
    -------
    Tensor, shape (...)
        On the device of `matrix`, which is never read; NaN where the matrix holds NaN.

    Raises
    ------
    ValueError
        If `logits` and `matrix` differ in shape.

    Notes
    -----
    A matrix with the right sums is a flow from rows to columns. An entry can be positive exactly if its column leads
    back to its row, along entries that carry flow from columns to rows and along allowed ones from rows to columns.
    One that is zero in every matrix with the marginals is at most about ``n + m`` times the error of the sums, and
    what is that small carries none.

    Examples
    --------
    >>> import torch
    >>> from jpmhc import autodiff
    >>> autodiff.sinkhorn_residual(torch.tensor([[0.5, 0.4], [0.5, 0.6]]))
    tensor(0.1000)
    >>> logits = torch.tensor([[0.0, 0.0], [-torch.inf, 0.0]])  # the identity alone has these sums
    >>> autodiff.sinkhorn_residual(torch.eye(2), logits=logits)
    tensor(inf)
    """
    matrix = as_matrices("matrix", matrix)
    n, m = matrix.shape[-2:]
    if row_marginals is not None:
        row_marginals = as_coefficients("row_marginals", row_marginals)
    if column_marginals is not None:
        column_marginals = as_coefficients("column_marginals", column_marginals)
    rows: Tensor | float = 1.0
    columns: Tensor | float = n / m
    if row_marginals is not None:
        rows = row_marginals
        columns = row_marginals.sum(-1, keepdim=True) / m
    if column_marginals is not None:
        columns = column_marginals
        if row_marginals is None:
            rows = column_marginals.sum(-1, keepdim=True) / n
    row_error = (matrix.sum(-1) / rows - 1).abs().amax(-1)
    column_error = (matrix.sum(-2) / columns - 1).abs().amax(-1)
    error = torch.maximum(row_error, column_error)
    if logits is None:
        return error
    logits = as_matrices("logits", logits)
    if logits.shape != matrix.shape:
        raise ValueError(f"logits: expected the shape of matrix, {tuple(matrix.shape)}, got {tuple(logits.shape)}")
    return torch.where(_vanishes(matrix, logits != -torch.inf, error) & ~error.isnan(), torch.inf, error)


def _vanishes(matrix: Tensor, allowed: Tensor, error: Tensor) -> Tensor:
    """Whether an allowed entry is zero in every matrix with the sums of `matrix`, as `sinkhorn_residual` explains."""
    sums = torch.minimum(matrix.sum(-1, keepdim=True), matrix.sum(-2, keepdim=True))
    negligible = sum(matrix.shape[-2:]) * error.clamp_min(torch.finfo(matrix.dtype).eps)
    carries = matrix > negligible[..., None, None] * sums
    to_row, to_column = carries.mT.float(), allowed.float()
    reach = to_row @ to_column > 0  # from column to column, of one row in between
    for _ in range(matrix.shape[-1].bit_length()):
        steps = reach.float()
        reach = reach | (steps @ steps > 0)
    back = to_row + (reach.float() @ to_row) > 0
    return (allowed & ~back.mT).any(-1).any(-1)


def orthogonality_residual(matrix: Tensor) -> Tensor:
    """Largest entry of ``|Q^T Q - I|``, or of ``|Q Q^T - I|`` where Q has more columns than rows.

    Parameters
    ----------
    matrix : Tensor, shape (..., m, n)
        A result of `cayley` or `polar`.

    Returns
    -------
    Tensor, shape (...)
        On the device of `matrix`.

    Examples
    --------
    >>> import torch
    >>> from jpmhc import autodiff
    >>> raw = torch.tensor([[0.0, 1.0], [0.0, 0.0]])
    >>> autodiff.orthogonality_residual(autodiff.cayley(raw, step=0.1, iterations=2))
    tensor(2.4974e-05)
    """
    matrix = as_matrices("matrix", matrix)
    if matrix.shape[-2] < matrix.shape[-1]:
        matrix = matrix.mT
    with full_precision(matrix.device):
        gram = matrix.mT @ matrix
    return (gram - torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)).abs().amax((-2, -1))


def cayley_contraction(raw: Tensor, *, step: float = 1.0) -> Tensor:
    """Rate ``b = ||step (raw - raw^T) / 2||_2`` at which the iterations of `cayley` converge; below 1 or not at all.

    Parameters
    ----------
    raw : Tensor, shape (..., n, n)
        As given to `cayley`.
    step : float
        As given to `cayley`.

    Returns
    -------
    Tensor, shape (...)
        After s iterations the distance to the rotation is ``2 b^(s+2) / sqrt(1 + b^2)``. A singular value
        decomposition:
        for monitoring, not for a layer's forward.

    Examples
    --------
    >>> import torch
    >>> from jpmhc import autodiff
    >>> autodiff.cayley_contraction(torch.tensor([[0.0, 1.0], [0.0, 0.0]]), step=0.1)
    tensor(0.0500)
    """
    raw = as_matrices("raw", raw)
    return torch.linalg.matrix_norm((raw - raw.mT) * (step / 2), ord=2)
