"""Compiled functions run as plain Python where the tracer cannot follow: under a transform or a function mode."""

from __future__ import annotations

import contextlib
import sys
import threading
from typing import Any

import torch


class _ForcedEager:
    """The stance ``"force_eager"`` from the first entry in any thread to the last exit.

    The stance belongs to the process: threads that each saved and restored it would put back one another's.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries = 0
        self._stance: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()

    def __enter__(self) -> None:
        with self._lock:
            if self._entries == 0:
                # Set as soon as it is made, together with a note of the one before.
                self._stance = torch.compiler.set_stance("force_eager")
            self._entries += 1

    def __exit__(self, *exception: Any) -> None:
        with self._lock:
            self._entries -= 1
            if self._entries == 0:
                self._stance.__exit__(*exception)


_FORCED_EAGER = _ForcedEager()


def uncompiled() -> contextlib.AbstractContextManager[Any]:
    """Run functions that were compiled as the Python they were made of.

    ``torch.func`` transforms refuse a compiled function, or send it back to Python with a warning; function modes get
    traced into it. A trace that is under way, and a process that never loaded the compiler, have none to run.
    """
    if "torch._dynamo" not in sys.modules or torch.compiler.is_compiling():
        return contextlib.nullcontext()
    return _FORCED_EAGER
