"""Computing on the host, whatever the default device."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import FunctionType
from typing import Any, ParamSpec, TypeVar

import torch

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def on_host(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Let a function that makes tensors without naming a device make them on the CPU.

    ``torch.set_default_device("cuda")`` would put them, and what ``torch.as_tensor`` is given, beside numbers that are
    on the CPU. Where the default is the CPU nothing is changed: a device context costs every call of torch inside it.
    """

    @functools.wraps(function)
    def wrapped(*args: Arguments.args, **options: Arguments.kwargs) -> Result:
        if torch.get_default_device().type == "cpu":
            return function(*args, **options)
        with torch.device("cpu"):
            return function(*args, **options)

    return wrapped


def methods_on_host(cls: type) -> None:
    """Do the same for the methods and properties that a class defines itself."""
    for name, member in list(vars(cls).items()):
        changed: Any = None
        if isinstance(member, property) and member.fget is not None:
            changed = property(on_host(member.fget), member.fset, member.fdel, member.__doc__)
        elif isinstance(member, functools.cached_property):
            changed = functools.cached_property(on_host(member.func))
            changed.__set_name__(cls, name)
        elif isinstance(member, FunctionType) and name != "__init_subclass__":
            changed = on_host(member)
        if changed is not None:
            setattr(cls, name, changed)
