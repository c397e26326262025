"""One matrix at a time, of any size up to 16, in float64: bodies for batches too small for tiles.

Tiles have a compiled version for every size, which a few matrices are not worth waiting for. These loops have one for
all sizes, compiled in a second or less, once on a machine. What they compute is what the tiles do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jpmhc.kernels.cpu.arrays import array_of


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
    shape = matrices[0].shape
    arrays = [array_of(matrix).reshape(-1, *shape[-2:]) for matrix in matrices]
    arrays += [np.empty_like(arrays[0]) for _ in range(results)]
    returned = function(*arrays, torch.finfo(matrices[0].dtype).eps, *options)
    return *(torch.from_numpy(array.reshape(shape)) for array in arrays[-results:]), returned
