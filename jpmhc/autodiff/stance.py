"""Compiled functions run as plain Python where the tracer cannot follow: under a transform or a function mode."""

from __future__ import annotations

import contextlib
import sys
from typing import Any

import torch


def uncompiled() -> contextlib.AbstractContextManager[Any]:
    """Run functions that were compiled as the Python they were made of.

    ``torch.func`` transforms refuse a compiled function, or send it back to Python with a warning; function modes get
    traced into it. A trace that is under way, and a process that never loaded the compiler, have none to run.
    """
    if "torch._dynamo" not in sys.modules or torch.compiler.is_compiling():
        return contextlib.nullcontext()
    return torch.compiler.set_stance("force_eager")
