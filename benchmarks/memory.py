"""What a function keeps for its backward."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def saved_mib(function: Callable[[Tensor], Tensor], x: Tensor, *others: Tensor) -> float:
    """Return the size in MiB of the storages kept for backward, each counted once.

    Parameters
    ----------
    function : Callable
        Called once with x.
    x : Tensor
        The input; its storage does not count.
    *others : Tensor
        Parameters, say, whose storages do not count either.
    """
    known = {tensor.untyped_storage().data_ptr() for tensor in (x, *others)}
    storages: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = function(x)
    del result
    return sum(storages.values()) / 2**20
