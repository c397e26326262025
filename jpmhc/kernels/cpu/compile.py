"""How bodies are compiled: without the interpreter's lock, kept on disk, one version for every size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba

Function = TypeVar("Function", bound=Callable[..., Any])

# Contraction lets a multiply-add be one instruction; nothing may be reordered, so NaN, infinities and signs are kept.
# The error model of NumPy divides without a branch, which a loop needs to use the processor's vectors.
_OPTIONS: dict[str, Any] = {"nogil": True, "fastmath": {"contract"}, "error_model": "numpy"}

_SUMMING: dict[str, Any] = {**_OPTIONS, "fastmath": {"contract", "reassoc", "nsz"}}


def compiled(function: Function) -> Function:
    """Compile a function at its first call for each dtype and keep the result on disk.

    Numba keeps it in ``__pycache__`` beside the function's file or, where that cannot be written, in the user's cache
    folder; ``NUMBA_CACHE_DIR`` names another one. Where no folder can be written every process compiles anew. What is
    kept belongs to this processor and to the last change of the function's own file: whoever changes a function that
    it calls in another file must remove the caches.
    """
    return _kept(function, _OPTIONS)


def summing(function: Function) -> Function:
    """Compile like `compiled`, and let sums be reordered, without which they cannot use the processor's vectors.

    NaN and infinities are kept.
    """
    return _kept(function, _SUMMING)


def summing_part(function: Function) -> Function:
    """Make a function part of those that call it, like `part`, with sums that may be reordered."""
    return numba.njit(forceinline=True, **_SUMMING)(function)


def _kept(function: Function, options: dict[str, Any]) -> Function:
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # there is no such folder
        return numba.njit(**options)(function)


def part(function: Function) -> Function:
    """Make a function part of the compiled functions that call it.

    Inside its caller the compiler sees which arrays are apart and which sizes are constant, without which its loops
    do not use the processor's vectors.
    """
    return numba.njit(forceinline=True, **_OPTIONS)(function)
