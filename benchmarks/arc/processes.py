"""The processes of one run: who we are among them, and the few exchanges that a trainer needs.

Everything works without a process group, where there is one process, rank 0 of 1. With one (``torchrun`` or
``accelerate launch`` set the environment, `joined` joins it) every rank holds the model, whole or its `shards`, and a
part of the batch.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

# Rank 0 alone writes; on a slow disk, or while it evaluates, the others wait.
_TIMEOUT = timedelta(hours=2)


def rank() -> int:
    """Return the number of this process, 0 without a group."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """Return the number of processes, 1 without a group."""
    return dist.get_world_size() if dist.is_initialized() else 1


@contextmanager
def joined(device: str) -> Iterator[str]:
    """Join the group that the environment describes, if it does, and yield the device of this process.

    Parameters
    ----------
    device : str
        ``"cuda"`` becomes the GPU of the process's local rank.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield device
        return
    if torch.device(device).type == "cuda":
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        torch.cuda.set_device(device)
    store, number, size = next(iter(dist.rendezvous("env://", timeout=_TIMEOUT)))
    # A launcher that starts the workers anew keeps its store, and the dead ones' addresses in it.
    store = dist.PrefixStore(f"attempt-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    backend = "nccl" if device.startswith("cuda") else "gloo"
    dist.init_process_group(backend, store=store, rank=number, world_size=size, timeout=_TIMEOUT)
    try:
        yield device
    finally:
        dist.destroy_process_group()


def share(total: int) -> slice:
    """Return the part of ``total`` things in order that falls to this process; parts differ in size by one at most."""
    bounds = [total * index // world() for index in (rank(), rank() + 1)]
    return slice(*bounds)


def sum_gradients(tensors: Iterable[Tensor]) -> None:
    """Add up gradients over the processes, in place, in one exchange a dtype."""
    if world() == 1:
        return
    by_type: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        by_type.setdefault(tensor.dtype, []).append(tensor)
    for group in by_type.values():
        flat = torch.cat([tensor.flatten() for tensor in group])
        dist.all_reduce(flat)
        for tensor, part in zip(group, flat.split([tensor.numel() for tensor in group]), strict=True):
            tensor.copy_(part.view_as(tensor))


def add_up(value: Tensor) -> Tensor:
    """Return the sum of a tensor over the processes."""
    if world() > 1:
        value = value.clone()
        dist.all_reduce(value)
    return value


def gather(value: Tensor) -> Tensor:
    """Return the tensors of all processes, one after the other along the first dimension; sizes there may differ."""
    if world() == 1:
        return value
    sizes = [torch.zeros(1, dtype=torch.int64, device=value.device) for _ in range(world())]
    dist.all_gather(sizes, torch.tensor([len(value)], device=value.device))
    lengths = [int(size) for size in sizes]
    # Collectives want equal shapes, and no bool.
    padded = value.new_zeros(max(lengths), *value.shape[1:])
    padded[: len(value)] = value
    as_bytes = padded.to(torch.uint8) if value.dtype == torch.bool else padded
    parts = [torch.empty_like(as_bytes) for _ in lengths]
    dist.all_gather(parts, as_bytes.contiguous())
    return torch.cat([part[:length] for part, length in zip(parts, lengths, strict=True)]).to(value.dtype)


def from_first(value: Any) -> Any:
    """Return what rank 0 passed in, on every process."""
    if world() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box)
    return box[0]


def on_first(action: Callable[[], Any]) -> None:
    """Let rank 0 do something with the disk while the others wait, and all fail if it fails."""
    fault: Exception | None = None
    if rank() == 0:
        try:
            action()
        except Exception as error:
            fault = error
    fault = from_first(fault)
    if fault is not None:
        raise fault
