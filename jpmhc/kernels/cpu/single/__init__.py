"""One matrix at a time, of any size up to 16, in float64: bodies for batches too small for tiles.

Tiles have a compiled version for every size, which a few matrices are not worth waiting for. These loops have one for
all sizes, compiled in two seconds at most, once on a machine. What they compute is what the tiles do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from jpmhc.kernels.cpu.arrays import array_of, memory_of


def one_by_one(
    function: Callable[..., Any], matrices: tuple[Tensor, ...], *options: Any, results: int = 1
) -> tuple[Any, ...]:
    """Call a compiled function on arrays of shape (tokens, n, m).

    Parameters
    ----------
    function : callable
        ``function(*arrays, *results, eps, *options)`` fills the results, arrays like the first; `eps` is the machine
        epsilon of their dtype.
    matrices : tuple of Tensor, shape (..., n, m) each
        float32 or float64, all the same.
    *options
        Whatever else it takes.
    results : int
        Number of results.

    Returns
    -------
    tuple
        The results, tensors of the shape and dtype of the first matrix, and last what the function returned.
    """
    first = matrices[0]
    n, m = first.shape[-2:]
    flat = first.numel() // (n * m), n, m
    made = [first.new_empty(first.shape) for _ in range(results)]  # memory of NumPy's could not be resized
    arrays = [array_of(matrix, flat) for matrix in matrices]
    arrays += [memory_of(result, flat) for result in made]
    return *made, function(*arrays, torch.finfo(first.dtype).eps, *options)
