"""Hooks on saved tensors, which ``torch.func`` transforms refuse, are put aside for what needs one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch._C import _autograd


@contextmanager
def hooks_aside() -> Iterator[None]:
    """Save tensors as they are inside, whatever `torch.autograd.graph.saved_tensors_hooks` are at work.

    `torch.utils.checkpoint`, `torch.autograd.graph.save_on_cpu` and stacks that recompute their reads set such hooks
    around calls of users. Nothing here looks into them, and they see what is saved before and after.
    """
    held = []
    if not torch.compiler.is_compiling():
        while (hooks := _autograd._top_saved_tensors_default_hooks(True)) is not None:
            held.append(hooks)
            _autograd._pop_saved_tensors_default_hooks()
    try:
        yield
    finally:
        for pack, unpack in reversed(held):
            _autograd._push_saved_tensors_default_hooks(pack, unpack)
