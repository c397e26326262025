"""What the mixers onto doubly stochastic matrices share: how near to I they start, how far off a matrix is."""

from collections.abc import Callable

import torch
from torch import Tensor

# I is a vertex of the Birkhoff polytope, which no smooth chart reaches with a live gradient.
START_DIAGONAL = 0.9


def birkhoff_defect(matrix: Tensor) -> Tensor:
    """Return the largest deviation of a row or column sum from one, or the most negative entry, of (..., n, n)."""
    rows = (matrix.sum(-1) - 1).abs().amax(-1)
    columns = (matrix.sum(-2) - 1).abs().amax(-1)
    return torch.maximum(torch.maximum(rows, columns), (-matrix).amax((-2, -1)))


def bisect(function: Callable[[float], float], low: float, high: float) -> float:
    """Return the root, to round-off, of a function that changes its sign once between ``low`` and ``high``."""
    rising = function(high) > function(low)
    for _ in range(200):
        middle = (low + high) / 2
        if (function(middle) > 0) == rising:
            high = middle
        else:
            low = middle
    return (low + high) / 2
