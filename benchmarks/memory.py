"""What a function keeps for its backward, and what it and its backward hold at once."""

from __future__ import annotations

import os
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


def peak_mib(function: Callable[[Tensor], Tensor], x: Tensor, cotangent: Tensor) -> float:
    """Return the most MiB allocated at once, beyond what was there before, by a forward and backward on the CPU.

    Parameters
    ----------
    function : Callable
        Called once with x.
    x : Tensor
        The input, a leaf; only its gradient is computed and counted.
    cotangent : Tensor
        Gradient of the result.
    """
    # Unless told not to, the profiler announces itself on standard error at every start.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        torch.autograd.grad(function(x), x, cotangent)
    alive = highest = 0
    for event in record.profiler.kineto_results.events():
        if event.name() == "[memory]":
            alive += event.nbytes()
            highest = max(highest, alive)
    return highest / 2**20
