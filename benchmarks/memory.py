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
    return allocated_mib(lambda: torch.autograd.grad(function(x), x, cotangent))


def allocated_mib(call: Callable[[], object]) -> float:
    """Return the most MiB of tensors allocated at once on the CPU, beyond what was there before, by a call.

    It does not depend on what else the process holds or held, as its resident memory does.

    Parameters
    ----------
    call : Callable
        Called once.
    """
    from torch.profiler import ProfilerActivity, profile

    with _quiet(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        call()
    waiting = record.profiler.kineto_results.experimental_event_tree()[::-1]
    changes = []
    while waiting:
        event = waiting.pop()
        waiting.extend(event.children[::-1])
        if event.name == "[memory]":
            changes.append((event.start_time_ns, len(changes), event.extra_fields.ptr, event.extra_fields.alloc_size))
    alive: dict[int, int] = {}
    highest = total = 0
    for _, _, address, size in sorted(changes):
        # A freed block that this call did not allocate is one of before. The profiler reports it where an earlier
        # profile saw a block at the same address and not its end, with the size of that one.
        if size > 0:
            alive[address] = size
            total += size
        else:
            total -= alive.pop(address, 0)
        highest = max(highest, total)
    return highest / 2**20


@contextmanager
def _quiet() -> Iterator[None]:
    """Drop what goes to standard error inside: the profiler announces itself, and every older tensor that is freed."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


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
