"""Which body runs an operation: the plain-PyTorch reference, Numba on a CPU or Triton on a GPU."""

from __future__ import annotations

import importlib
import logging
import os
import threading
from collections.abc import Callable
from functools import cache
from types import TracebackType
from typing import Any, NamedTuple

import torch
from torch import Tensor

_FOLDERS = {"numba": "cpu", "triton": "cuda"}
_DEVICES = {"cpu": "numba", "cuda": "triton"}
_NAMES = ("auto", "reference", "numba", "triton")
_LOG = logging.getLogger("jpmhc.kernels")
_lock = threading.Lock()
_settings: list[backend] = []
_setting = "auto"


class Choice(NamedTuple):
    """The body that runs a call, and why."""

    backend: str
    """``reference``, ``numba`` or ``triton``."""
    reason: str
    body: Callable[..., Any] | None = None
    """None for the reference."""

    def __str__(self) -> str:
        return f"{self.backend}: {self.reason}"


class backend:
    """Set the bodies that run the operations of `jpmhc.kernels`, for good or, as a context manager, for a block.

    Parameters
    ----------
    name : str
        ``auto``: Numba for tensors on a CPU, where there is enough to do to compile for it, Triton on a CUDA device,
        the reference everywhere else. ``numba`` or ``triton``: that body wherever it can run. ``reference``:
        plain PyTorch.

    Raises
    ------
    ValueError
        If the name is another one.

    Notes
    -----
    Where a body is missing (its package is not installed, the dtype or the size is not one of its own) the reference
    runs, with one line in the log ``jpmhc.kernels`` where that was asked for by name or a package is missing; it is
    never an error. `jpmhc.kernels.choice` tells what runs a call and why.

    The setting belongs to the process, not to a thread, because backward passes on a GPU run in threads of their
    own. Where blocks of several threads or tasks overlap, the one that was entered last counts, and each takes back its
    own. It counts when an operation runs, not when ``torch.compile`` traces it. One exception: what ``torch.export``
    traces under ``reference`` is made of torch's own operators alone, so that the program loads where this library is
    not installed, and ``torch.onnx.export`` can take it. Some of them work in place, so it runs under
    ``torch.no_grad()``, or anywhere once ``run_decompositions()`` made it anew. Code that is compiled with
    ``fullgraph=True`` cannot enter a block; put it around the call.

    Examples
    --------
    >>> from jpmhc import kernels
    >>> with kernels.backend("reference"):
    ...     print(kernels.choice("cayley_forward", torch.eye(4), 1.0))
    reference: asked for
    """

    def __init__(self, name: str) -> None:
        if name not in _NAMES:
            raise ValueError(f"name: expected one of {', '.join(_NAMES)}, got {name!r}")
        self._name, self._blocks = name, 0
        self._under: backend | None
        with _lock:
            # Until this one turns out to be for a block, it is for good in the place of the one before.
            self._under = _settings.pop() if _settings and not _settings[-1]._blocks else None
            if self._under is not None:
                self._under._under = None
            _settings.append(self)
            _settle()

    def __enter__(self) -> backend:
        with _lock:
            if self._blocks == 0 and self in _settings:
                if self._under is not None and not self._under._blocks:
                    _settings.insert(_settings.index(self), self._under)
                self._under = None
            else:
                _settings.append(self)
            self._blocks += 1
            _settle()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with _lock:
            last = max(place for place, setting in enumerate(_settings) if setting is self)
            del _settings[last]
            self._blocks -= 1
            _settle()


def _settle() -> None:
    global _setting
    _setting = _settings[-1]._name if _settings else "auto"


def asked_for_a_body() -> bool:
    """Whether compiled bodies are to run even where there is too little to do for them."""
    return _setting in ("numba", "triton")


def leaves_the_library() -> bool:
    """Whether a program is being made that shall hold none of this library's operators."""
    return _setting == "reference" and torch.compiler.is_exporting()


def choose(module: str, operation: str, args: tuple[Any, ...]) -> Choice:
    """Return the body for a call.

    Parameters
    ----------
    module : str
        Name of the file of the operation's reference and bodies.
    operation : str
        Name of the operation.
    args : tuple
        Of the call; the first tensor decides on the device.
    """
    if _setting == "reference":
        return Choice("reference", "asked for")
    device = device_of(args)
    named = _setting != "auto"
    name = _setting if named else _DEVICES.get(device, "reference")
    if name == "reference":
        return Choice("reference", f"no other body for the device {device}")
    missing = _missing(name)
    if missing is not None:
        return Choice("reference", missing)
    found = _body(name, module, operation)
    if isinstance(found, str):
        reason = found
    elif _DEVICES.get(device) != name and not (name == "triton" and interpreted()):
        reason = f"{name} has no body for the device {device}"
    else:
        # The quicker question first: for few numbers it is a part of what a call costs.
        refusal = (None if named else found.spares(*args)) or found.refuses(*args)
        if refusal is None:
            return Choice(name, "asked for" if named else f"the body for the device {device}", found)
        reason = refusal
    if named:
        _say_once(f"{operation} runs its reference: {reason}")
    return Choice("reference", reason)


def device_of(args: tuple[Any, ...]) -> str:
    """Return the type of the device of the first tensor."""
    for value in args:
        if isinstance(value, Tensor):
            return "cpu" if value.is_cpu else value.device.type  # a string of a device costs as much as three questions
    raise TypeError("expected a tensor among the arguments")


def interpreted() -> bool:
    """Whether Triton bodies run in Triton's interpreter, on any device."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def body(
    dtypes: tuple[torch.dtype, ...],
    refuses: Callable[..., str | None] | None = None,
    spares: Callable[..., str | None] | None = None,
    streams: tuple[torch.dtype, ...] = (),
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Mark a function in ``kernels/cpu`` or ``kernels/cuda`` as a body of the operation of its name.

    Parameters
    ----------
    dtypes : tuple of torch.dtype
        Of its tensors, all of which must have one of them, the same for all.
    refuses : callable, optional
        From the arguments of the call to the reason why this body does not take them, or None.
    spares : callable, optional
        The same for calls that it takes when asked for by name, but not under ``auto``: those too small to be worth
        compiling for.

    Returns
    -------
    callable
        Decorator for a function with the arguments and the result of the reference.
    """

    def mark(function: Callable[..., Any]) -> Callable[..., Any]:
        def reason(*args: Any) -> str | None:
            first = None
            for value in args:
                if isinstance(value, Tensor):
                    dtype = value.dtype
                    first = first or dtype
                    if dtype is not first or dtype not in dtypes:
                        wrong = _wrong({value.dtype for value in args if isinstance(value, Tensor)})
                        if wrong is not None:
                            return wrong
                        break
            return refuses(*args) if refuses is not None else None

        def _wrong(given: set[torch.dtype]) -> str | None:
            if len(given) > 1 and len(given.intersection(streams)) == 1:
                given -= set(streams)
            if len(given) > 1:
                return f"tensors of different dtypes, {', '.join(sorted(map(str, given)))}"
            return None if given.issubset(dtypes) else f"no body for {given.pop()}"

        function.refuses = reason  # type: ignore[attr-defined]
        function.spares = spares or (lambda *_args: None)  # type: ignore[attr-defined]
        return function

    return mark


@cache
def _body(name: str, module: str, operation: str) -> Any:
    """Return the function, or the reason why there is none."""
    try:
        home = importlib.import_module(f"jpmhc.kernels.{_FOLDERS[name]}.{module}")
    except ModuleNotFoundError as error:
        if error.name != f"jpmhc.kernels.{_FOLDERS[name]}.{module}":
            raise
        return f"no {name} body"
    return getattr(home, operation, f"no {name} body")


@cache
def _missing(package: str) -> str | None:
    try:
        importlib.import_module(package)
    except ImportError as error:
        _say_once(f"operations run their reference, {package} cannot be imported: {error}")
        return f"{package} cannot be imported"
    return None


@cache
def _say_once(line: str) -> None:
    _LOG.warning(line)
