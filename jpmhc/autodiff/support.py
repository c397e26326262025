"""Whether a matrix with given marginals and a given pattern of forbidden entries exists."""

import math
import sys

import torch
from torch import Tensor

_TOLERANCE = 1e-10  # of a linear programme, the least that HiGHS takes
_POSITIVE = 1e-8  # smallest entry, relative to the smallest marginal, that is told from zero


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
    Looks at tensors in CPU memory only, and at none that is traced. One reduction where all logits are finite;
    otherwise one small linear programme for each different pattern, and for each different pair of marginals where the
    matrices do not share them. Marginals are taken to be known to a few units of round-off, or as well as their totals
    agree: a pattern is refused if no marginals as close as that fit.
    """
    plain = type(logits).__torch_dispatch__ is Tensor.__torch_dispatch__  # not a fake or a distributed tensor
    if logits.device.type != "cpu" or not plain or _traced() or logits.numel() == 0:
        return
    if rows is not None and columns is not None:
        _check_marginals(rows, columns)
    if bool(logits.amin() == -math.inf):
        _check_patterns(logits.detach(), rows, columns)


def _traced() -> bool:
    """Whether ``make_fx``, ``linearize`` or ``jit.trace`` is at work, in whose graphs no value is to be branched on."""
    if torch._C._is_tracing():
        return True
    tracer = sys.modules.get("torch.fx.experimental.proxy_tensor")  # seconds to import, and absent where none traces
    return tracer is not None and tracer.get_proxy_mode() is not None


def _check_marginals(rows: Tensor, columns: Tensor) -> None:
    for name, value in (("row_marginals", rows), ("column_marginals", columns)):
        if not bool((value > 0).all()):
            raise ValueError(f"{name}: expected positive numbers, got {float(value.min())}")
    totals = rows.sum(-1), columns.sum(-1)
    if not torch.allclose(*totals, rtol=1e-4, atol=0.0):
        worst = (totals[0] / totals[1]).log().abs().argmax()
        first, second = (float(total.flatten()[worst]) for total in totals)
        raise ValueError(f"row_marginals: expected the total of column_marginals, {second:g}, got {first:g}")


def _check_patterns(logits: Tensor, rows: Tensor | None, columns: Tensor | None) -> None:
    n, m = logits.shape[-2:]
    patterns = (logits != -math.inf).reshape(-1, n * m)
    if rows is None or columns is None:
        sums = logits.new_tensor([[1.0] * n + [n / m] * m], dtype=torch.float64).expand(len(patterns), n + m)
    else:
        sums = torch.cat([rows.detach().reshape(-1, n), columns.detach().reshape(-1, m)], 1)
    shared = bool((sums == sums[0]).all())
    problems = patterns if shared else torch.cat([patterns.to(sums.dtype), sums], 1)
    distinct, origin = torch.unique(problems, dim=0, return_inverse=True)
    places = torch.arange(len(origin), device=origin.device)
    samples = torch.empty_like(places[: len(distinct)]).scatter_reduce_(0, origin, places, "amin", include_self=False)
    for sample in samples.tolist():
        pattern = patterns[sample].view(n, m)
        if not bool(pattern.all()) and not _fits(pattern, *sums[sample].split([n, m])):
            raise ValueError(
                f"logits: no matrix with these marginals is positive exactly where matrix {sample} of the batch is "
                f"finite ({n * m - int(pattern.sum())} of its {n * m} entries are -inf); allow more entries, or forbid "
                "those that every such matrix has at zero"
            )


def _fits(pattern: Tensor, rows: Tensor, columns: Tensor) -> bool:
    """Maximise the smallest allowed entry over the matrices with these marginals, and see whether it is positive.

    The unknowns are that entry in units of the smallest marginal and, for every allowed entry, what it has on top, in
    units of the smaller of its two marginals. Every row or column is asked to sum to its marginal in units of it, so
    that small ones count as much as large ones.
    """
    import numpy as np
    from scipy.optimize import linprog

    row_sums, column_sums = rows.double(), columns.double()
    mismatch = abs(float(row_sums.sum() / column_sums.sum()) - 1)
    slack = 4 * max(torch.finfo(rows.dtype).eps, mismatch)
    r, c = (row_sums / row_sums.sum()).numpy(), (column_sums / column_sums.sum()).numpy()
    i, j = pattern.numpy().nonzero()
    units = np.minimum(r[i], c[j])
    entries = np.arange(len(i))
    sums = np.zeros((len(r) + len(c), len(i) + 1))
    sums[i, entries] = units / r[i]
    sums[len(r) + j, entries] = units / c[j]
    smallest = min(r.min(), c.min())
    counts = np.concatenate([np.bincount(i, minlength=len(r)), np.bincount(j, minlength=len(c))])
    sums[:, -1] = counts * smallest / np.concatenate([r, c])
    objective = np.zeros(len(i) + 1)
    objective[-1] = -1
    ones = np.ones(len(sums))
    solution = linprog(
        objective,
        A_ub=np.concatenate([sums, -sums]),
        b_ub=np.concatenate([ones * (1 + slack), ones * (slack - 1)]),
        method="highs",
        options={"primal_feasibility_tolerance": _TOLERANCE},
    )
    # The slack of all rows or all columns together may pass through a single entry.
    return bool(solution.success and -solution.fun > max(_POSITIVE, 2 * slack * max(pattern.shape)))
