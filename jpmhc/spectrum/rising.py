"""Places at which a computed distribution function does not fall."""

from __future__ import annotations

import torch
from torch import Tensor

# By how much more than its error a distribution function may seem to fall, and at how many places it may be too high.
_FALL, _FEW = 1e-3, 3


def rising(cdf: Tensor, error: Tensor) -> Tensor:
    """Return the indices of places in ascending order, without those whose value would lift all to their right.

    What lies above both neighbours to the right is wrong, where that is so of a few places; of many, it is rather those
    to the right that are wrong, and all are kept.

    Parameters
    ----------
    cdf, error : Tensor, shape (G,)
        Values of the distribution function at ascending places, and their errors.

    Returns
    -------
    Tensor of integers
        Ascending.
    """
    index = everything = torch.arange(len(cdf))
    while len(index) > 2:
        least = (cdf - error - _FALL)[index]
        above = (least[:-2] > cdf[index[1:-1]]) & (least[:-2] > cdf[index[2:]])
        if not above.any():
            return index
        index = index[~torch.nn.functional.pad(above, (0, 2))]
        if len(everything) - len(index) > _FEW:
            return everything
    return index
