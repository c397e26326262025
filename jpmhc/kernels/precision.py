"""The precision in which small numbers are computed: that of their arguments, whatever torch is set to."""

from __future__ import annotations

import contextlib
import os
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch._C import _get_fp32_precision_getter as _precision_of
from torch._C import _set_fp32_precision_setter as _set_precision_of

# Whose setting holds for products on a device; other devices have none.
_LIBRARIES = {"cpu": "mkldnn", "xpu": "mkldnn", "cuda": "cuda"}
_EXACT = ("ieee", "none")


def full_precision(device: torch.device | str) -> contextlib.AbstractContextManager[Any]:
    """Switch off what takes products of coefficients to less than the precision of their factors.

    Autocast takes them to half precision, and ``torch.set_float32_matmul_precision`` to tf32 or bfloat16, which is
    the whole process's: see `_ExactProducts`. Derivatives that autograd makes of torch's own products run later, with
    what is set then. Code that is being compiled follows the setting where it multiplies by torch's own products, and
    a warning says so.

    Parameters
    ----------
    device : torch.device or str
        Where the numbers lie.
    """
    kind = device if isinstance(device, str) else device.type
    if torch.compiler.is_compiling():
        _warn_of_rounded_products(kind)
    elif _products_are_rounded(kind):
        return _apart_from_autocast(kind) if autocast_on(kind) else _EXACT_PRODUCTS
    return torch.autocast(kind, enabled=False) if autocast_on(kind) else contextlib.nullcontext()


def lowered(device_type: str) -> bool:
    """Whether products on devices of a type may be computed in less than the precision of their factors."""
    return autocast_on(device_type) or (not torch.compiler.is_compiling() and _products_are_rounded(device_type))


def autocast_on(device_type: str) -> bool:
    """Whether autocast is on for devices of a type."""
    return device_type != "meta" and torch.is_autocast_enabled(device_type)  # torch knows no autocast for meta


def cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert a tensor; one that needs none is spared torch's microsecond, a dozen of which a token would pay."""
    return tensor if tensor.dtype is dtype else tensor.to(dtype)


class _ExactProducts:
    """Products of float32 in float32, from the first entry in any thread to the last exit.

    The setting belongs to the process: threads that each saved and restored it would put back one another's.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.entries = 0
        self.periods = 0
        self._legacy: str | None = None
        self._kept: dict[str, str] = {}

    def __enter__(self) -> None:
        with self._lock:
            self.entries += 1
            if self.entries == 1:
                self.periods += 1
                self._kept = {library: _precision_of(library, "matmul") for library in ("mkldnn", "cuda")}
                try:
                    self._legacy = torch.get_float32_matmul_precision()
                except RuntimeError:  # set by libraries: torch has no word for it all
                    self._legacy = None
                # By either way torch's other one would find them at odds, and raise.
                if self._legacy is not None:
                    torch.set_float32_matmul_precision("highest")
                else:
                    self._set(dict.fromkeys(self._kept, "ieee"))

    def __exit__(self, *exception: Any) -> None:
        with self._lock:
            if self.entries == 1:
                if self._legacy is not None:
                    torch.set_float32_matmul_precision(self._legacy)
                self._set(self._kept)
            self.entries -= 1

    def forget(self) -> None:
        """Undo what other threads entered, where they do not live on: in the child of a fork."""
        self._lock = threading.Lock()
        if self.entries:
            self.entries = 1
            self.__exit__()

    def _set(self, precisions: dict[str, str]) -> None:
        for library, precision in precisions.items():
            # What torch inherits from a wider setting goes on doing so.
            for value in ("none", precision):
                if _precision_of(library, "matmul") != precision:
                    _set_precision_of(library, "matmul", value)


_EXACT_PRODUCTS = _ExactProducts()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_EXACT_PRODUCTS.forget)


def _products_are_rounded(device_type: str) -> bool:
    """Whether products would be rounded but for `_ExactProducts`, which another thread may be about to leave."""
    library = _LIBRARIES.get(device_type)
    if library is None:
        return False
    period = _EXACT_PRODUCTS.periods
    if _EXACT_PRODUCTS.entries or _precision_of(library, "matmul") not in _EXACT:
        return True
    # Another thread may have come and gone while this one looked.
    return period != _EXACT_PRODUCTS.periods


@contextlib.contextmanager
def _apart_from_autocast(kind: str) -> Iterator[None]:
    with _EXACT_PRODUCTS, torch.autocast(kind, enabled=False):
        yield


def _warn_of_rounded_products(device_type: str) -> None:
    library = _LIBRARIES.get(device_type)
    precision = "none" if library is None else _precision_of(library, "matmul")
    if precision not in _EXACT:
        warnings.warn(
            f"torch.set_float32_matmul_precision: products of float32 are set to {precision} while code of jpmhc is "
            "being compiled, which follows the setting where it multiplies by torch's own products: what should be "
            "orthogonal or sum to one is so to about 1e-3 there; 'highest' keeps it exact",
            stacklevel=2,
        )


# What torch.compiler.assume_constant_result does, without importing the compiler.
_warn_of_rounded_products._dynamo_marked_constant = True  # type: ignore[attr-defined]
