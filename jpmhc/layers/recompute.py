"""Branch inputs that are made anew in the backward pass instead of being kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from jpmhc.kernels.crossing import Reading, cross


class _Reread(NamedTuple):
    """What is kept in the place of a view of u."""

    size: torch.Size
    stride: tuple[int, ...]
    offset: int


@contextmanager
def reads_recomputed(u: Tensor, x: Tensor, pre: Tensor) -> Iterator[None]:
    """Let operations inside, the branch's, keep the way to read u again in the place of u.

    Parameters
    ----------
    u : Tensor, shape (..., d)
        Branch input.
    x : Tensor, shape (..., n, d)
        Streams that it was read from, which the next boundary keeps anyway.
    pre : Tensor, shape (..., n)
        With which weights.

    Notes
    -----
    The same body reads again. Every tensor that the branch keeps of u costs
    one read of the streams. A branch that changes u in place keeps what it made of it.
    """
    streams, storage, version = x.detach(), _storage(u), u._version

    def pack(tensor: Tensor) -> Tensor | _Reread:
        if not storage or _storage(tensor) != storage or tensor.dtype != u.dtype or u._version != version:
            return tensor
        if tensor.is_neg() != u.is_neg():  # a conjugate's imaginary part, whose sign no stride tells
            return tensor
        return _Reread(tensor.size(), tensor.stride(), int(tensor.storage_offset() - u.storage_offset()))

    def unpack(kept: Tensor | _Reread) -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        with torch.no_grad(), torch.autocast(streams.device.type, enabled=False):
            again = cross(streams, None, Reading(pre)).u
        return again.as_strided(kept.size, kept.stride, kept.offset)  # type: ignore[union-attr]

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield


def _storage(tensor: Tensor) -> int | None:
    """Where the numbers of a tensor are; None for one without numbers of its own: sparse, a zero tangent, batched."""
    try:
        return tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):
        return None
