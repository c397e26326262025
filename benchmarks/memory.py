"""What a function keeps for its backward, and what it and its backward hold at once."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

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


@contextmanager
def pinned_allocator() -> Iterator[None]:
    """Let glibc keep the memory it was given back, inside.

    By default it takes blocks over 32 MiB from the system anew and touches all their pages again, which is up to half
    of the time of a layer that makes many such tensors: the benchmark would compare numbers of tensors. Elsewhere than
    on Linux with glibc it does nothing.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        yield
        return
    trim_threshold, mmap_max = -1, -4  # names of malloc.h
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, 2**31 - 1)
    try:
        yield
    finally:
        mallopt(mmap_max, 65536)  # the defaults of glibc
        mallopt(trim_threshold, 128 * 1024)
