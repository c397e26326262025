"""Whether a matrix with given marginals and a given pattern of forbidden entries exists."""

import math

import torch
from torch import Tensor

_POSITIVE = 1e-7  # smallest entry, relative to the mean one, that a linear programme can tell from zero


def check_scalable(logits: Tensor, rows: Tensor | None, columns: Tensor | None) -> None:
    """Refuse marginals and ``-inf`` logits that no matrix fits, where looking at them does not synchronise.

    Parameters
    ----------
    logits : Tensor, shape (..., n, m)
        ``-inf`` forbids an entry.
    rows, columns : Tensor, shape (..., n) and (..., m), or None
        Marginals in the batch shape of the logits.

    Raises
    ------
    ValueError
        If a marginal is not positive, two totals differ, or no matrix with these marginals is positive exactly at
        the finite logits.

    Notes
    -----
    Looks at tensors in CPU memory only. One reduction where all logits are finite; otherwise one small linear
    programme for each different pattern.
    """
    plain = type(logits).__torch_dispatch__ is Tensor.__torch_dispatch__  # not a fake or a distributed tensor
    if logits.device.type != "cpu" or not plain or logits.numel() == 0:
        return
    if rows is not None and columns is not None:
        _check_marginals(rows, columns)
    if bool(logits.amin() == -math.inf):
        _check_pattern(logits.detach(), rows, columns)


def _check_marginals(rows: Tensor, columns: Tensor) -> None:
    for name, value in (("row_marginals", rows), ("column_marginals", columns)):
        if not bool((value > 0).all()):
            raise ValueError(f"{name}: expected positive numbers, got {float(value.min())}")
    totals = rows.sum(-1), columns.sum(-1)
    if not torch.allclose(*totals, rtol=1e-4, atol=0.0):
        worst = (totals[0] / totals[1]).log().abs().argmax()
        first, second = (float(total.flatten()[worst]) for total in totals)
        raise ValueError(f"row_marginals: expected the total of column_marginals, {second:g}, got {first:g}")


def _check_pattern(logits: Tensor, rows: Tensor | None, columns: Tensor | None) -> None:
    n, m = logits.shape[-2:]
    allowed = (logits != -math.inf).reshape(-1, n * m).double()
    if rows is None or columns is None:
        sums = allowed.new_tensor([1.0] * n + [n / m] * m).expand(len(allowed), n + m)
    else:
        sums = torch.cat([rows.detach().reshape(-1, n), columns.detach().reshape(-1, m)], 1).double()
    problems, origin = torch.unique(torch.cat([allowed, sums], 1), dim=0, return_inverse=True)
    for index, problem in enumerate(problems.tolist()):
        pattern = [value > 0 for value in problem[: n * m]]
        if not all(pattern) and not _fits(pattern, problem[n * m : n * m + n], problem[n * m + n :]):
            sample = int((origin == index).nonzero()[0])
            raise ValueError(
                f"logits: no matrix with these marginals is positive exactly where matrix {sample} of the batch is "
                f"finite ({pattern.count(False)} of its {n * m} entries are -inf); allow more entries, or forbid those "
                "that every such matrix has at zero"
            )


def _fits(pattern: list[bool], rows: list[float], columns: list[float]) -> bool:
    """Maximise the smallest allowed entry over the matrices with these marginals, and see whether it is positive."""
    import numpy as np
    from scipy.optimize import linprog

    allowed = np.array(pattern).reshape(len(rows), len(columns))
    i, j = allowed.nonzero()
    sums = np.zeros((len(rows) + len(columns), len(i) + 1))
    sums[i, np.arange(len(i))] = sums[len(rows) + j, np.arange(len(i))] = 1
    sums[:, -1] = sums.sum(1)  # every allowed entry is the last variable and something on top of it
    objective = np.zeros(len(i) + 1)
    objective[-1] = -1
    solution = linprog(objective, A_eq=sums, b_eq=rows + columns, method="highs")
    return bool(solution.success and -solution.fun > _POSITIVE * sum(rows) / allowed.size)
