"""The precision in which small numbers are computed: that of their arguments, whatever torch is set to."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch._C import _get_fp32_precision_getter as _precision_of
from torch._C import _set_fp32_precision_setter as _set_precision_of

# Whose setting holds for products on a device; other devices have none.
_LIBRARIES = {"cpu": "mkldnn", "xpu": "mkldnn", "cuda": "cuda"}
_EXACT = ("ieee", "none")
_NOTHING = contextlib.nullcontext()
_log = logging.getLogger(__name__)


def full_precision(device: torch.device | str) -> contextlib.AbstractContextManager[Any]:
    """Switch off what takes products of coefficients to less than the precision of their factors.

    Autocast takes them to half precision, and ``torch.set_float32_matmul_precision`` to tf32 or bfloat16. That setting
    is the whole process's: products that other threads make meanwhile are exact, too. Derivatives that autograd makes
    of torch's own products run later, with what is set then, and compiled code has what was set for it.

    Parameters
    ----------
    device : torch.device or str
        Where the numbers lie.
    """
    kind = device if isinstance(device, str) else device.type
    exact: contextlib.AbstractContextManager[Any] = _NOTHING
    if not torch.compiler.is_compiling() and _SETTING.is_rounded(kind) and not _SETTING.is_held():
        exact = _Exact()
    if not autocast_on(kind):
        return exact
    return torch.autocast(kind, enabled=False) if exact is _NOTHING else _apart_from_autocast(kind, exact)


def lowered(device_type: str) -> bool:
    """Whether products on devices of a type may be computed in less than the precision of their factors."""
    if autocast_on(device_type):
        return True
    return not torch.compiler.is_compiling() and _SETTING.is_rounded(device_type) and not _SETTING.is_held()


def tell_if_compiled(device_type: str) -> None:
    """Log, once, that maps which are being compiled will follow torch's setting where torch multiplies."""
    if torch.compiler.is_compiling():
        _tell_of_rounded_products(device_type)


def _tell_of_rounded_products(device_type: str) -> None:
    library = _LIBRARIES.get(device_type)
    precision = "none" if library is None else _precision_of(library, "matmul")
    if precision not in _EXACT and not _SETTING.is_told:
        _SETTING.is_told = True
        _log.warning(
            "torch.set_float32_matmul_precision: products of float32 are set to %s while maps of jpmhc are being "
            "compiled; where these are made of torch's own products they follow it, and what should be orthogonal or "
            "sum to one was up to 8e-3 off in bfloat16; 'highest' keeps it exact",
            precision,
        )


# What torch.compiler.assume_constant_result does, without importing the compiler.
_tell_of_rounded_products._dynamo_marked_constant = True  # type: ignore[attr-defined]


def autocast_on(device_type: str) -> bool:
    """Whether autocast is on for devices of a type."""
    return device_type != "meta" and torch.is_autocast_enabled(device_type)  # torch knows no autocast for meta


def cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert a tensor; one that needs none is spared torch's microsecond, a dozen of which a token would pay."""
    return tensor if tensor.dtype is dtype else tensor.to(dtype)


class _Setting:
    """torch's setting for products, which belongs to the process, and the regions of threads that put it aside.

    Every step leaves what the next region, or the end of this one, sets right: signals may raise between any two, and
    their handlers may come here.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        # Of every thread that is inside, its outermost region; one whose block never began, for an interrupt, is dead.
        self.regions: dict[int, weakref.ref[_Exact]] = {}
        self.is_told = False
        self._count = 0
        self._kept: tuple[str | None, dict[str, str]] | None = None

    def is_rounded(self, device_type: str) -> bool:
        """Whether products are rounded, or would be but for a thread that may be about to leave."""
        library = _LIBRARIES.get(device_type)
        if library is None:
            return False
        count = self._count
        if self.regions or _precision_of(library, "matmul") not in _EXACT:
            return True
        # Another thread may have come and gone while this one looked.
        return count != self._count

    def is_held(self) -> bool:
        """Whether this thread is in a region already, whose end is the one that matters."""
        region = self.regions.get(threading.get_ident())
        return region is not None and region() is not None and _is_exact(_live())

    def enter(self, region: _Exact) -> None:
        with self.lock:
            self._count += 1
            try:
                live = _live()
                if not _is_exact(live):
                    self._kept = kept = _legacy(), live
                    self._put_aside(*kept)
                    self._kept = kept  # which a handler that came between has used up
                self.regions[region.thread] = weakref.ref(region)
            except BaseException:
                self.leave(region, failed=True)
                raise

    def leave(self, region: _Exact, failed: bool = False) -> None:
        with self.lock:
            outermost = self.regions.get(region.thread)
            mine = failed or (outermost is not None and outermost() is region)
            others = [thread for thread, other in self.regions.items() if thread != region.thread and other()]
            if mine and not others:
                self._restore()
            if mine:
                self.regions.pop(region.thread, None)

    def forget_others(self) -> None:
        """Undo what other threads entered, where they do not live on: in the child of a fork."""
        try:
            own = threading.get_ident()
            if self.regions and own not in self.regions:
                self._restore()
            self.regions = {thread: region for thread, region in self.regions.items() if thread == own}
        finally:
            self.lock.release()

    def _put_aside(self, legacy: str | None, live: dict[str, str]) -> None:
        # By either way torch's other one would find them at odds, and raise.
        if legacy is not None:
            torch.set_float32_matmul_precision("highest")
        else:
            for library in live:
                _set_precision_of(library, "matmul", "ieee")

    def _restore(self) -> None:
        # What somebody has set meanwhile stays, but for "highest", which cannot be told from what was set here.
        if self._kept is None or not _is_exact(_live()):
            self._kept = None
            return
        legacy, precisions = self._kept
        if legacy is not None:
            torch.set_float32_matmul_precision(legacy)
        for library, precision in precisions.items():
            # What torch inherits from a wider setting goes on doing so.
            for value in ("none", precision):
                if _precision_of(library, "matmul") != precision:
                    _set_precision_of(library, "matmul", value)
        self._kept = None


class _Exact:
    """A region of exact products."""

    def __init__(self) -> None:
        self.thread = threading.get_ident()

    def __enter__(self) -> None:
        _SETTING.enter(self)

    def __exit__(self, *exception: Any) -> None:
        _SETTING.leave(self)


def _is_exact(precisions: dict[str, str]) -> bool:
    return all(value in _EXACT for value in precisions.values())


def _live() -> dict[str, str]:
    return {library: _precision_of(library, "matmul") for library in ("mkldnn", "cuda")}


def _legacy() -> str | None:
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # set by libraries: torch has no word for it all
        return None


@contextlib.contextmanager
def _apart_from_autocast(kind: str, exact: contextlib.AbstractContextManager[Any]) -> Iterator[None]:
    with exact, torch.autocast(kind, enabled=False):
        yield


_SETTING = _Setting()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_SETTING.lock.acquire,
        after_in_parent=_SETTING.lock.release,
        after_in_child=_SETTING.forget_others,
    )
