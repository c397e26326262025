"""What a function did with tensors from outside, to let it do the same again with others in their place.

A derivative calls the function again, long after the equation was solved. Meanwhile a loop has gone on to its next
layer, `torch.func.functional_call` has taken its parameters back, a module holds another input: the tensors of the
solution are not found where they were. So they are kept by the operation that took them, not by the way to them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from jpmhc.autodiff.stance import uncompiled

_PLAIN = (bool, int, float, str, type(None), torch.dtype, torch.device, torch.Size)
_ADVICE = (
    "the derivative calls fn again: pass what changes through args, and bind the variables of a loop, "
    "fixed_point(lambda z, layer=layer: ..., z0)"
)


class Outside(NamedTuple):
    """A tensor from outside among the arguments of a call."""

    place: int
    source: int | Tensor
    """Which of the captures it is, or a constant."""
    version: int = -1
    """Of a constant, what counts the times that it was written to."""

    @classmethod
    def constant(cls, place: int, tensor: Tensor) -> Outside:
        """Keep a tensor through which no derivative passes."""
        return cls(place, tensor, -1 if tensor.is_inference() else tensor._version)

    def tensor(self, captures: Sequence[Tensor]) -> Tensor:
        """Return the tensor, or what stands for it among other captures."""
        if isinstance(self.source, int):
            return captures[self.source]
        if not self.source.is_inference() and self.source._version != self.version:
            raise RuntimeError(
                f"fn: uses a tensor of shape {tuple(self.source.shape)} that was written to since the equation was "
                f"solved; {_ADVICE}"
            )
        return self.source


class Call(NamedTuple):
    """One operation of a function."""

    function: Any
    arguments: tuple[Any, ...]
    """Numbers and strings among the leaves of its arguments, and the types of all others."""
    outside: tuple[Outside, ...] = ()

    @classmethod
    def of(cls, function: Any, leaves: Sequence[Any], outside: Sequence[Outside] = ()) -> Call:
        """Describe a call by the leaves of its arguments."""
        return cls(function, tuple(map(_described, leaves)), tuple(outside))

    def differs(self, other: Call) -> bool:
        """Whether another call is of another operation, or takes arguments of other kinds."""
        if self.function != other.function or len(self.arguments) != len(other.arguments):
            return True
        pairs = zip(self.arguments, other.arguments, strict=True)
        return any(a is not b and type(a) is not type(b) for a, b in pairs)

    def changes(self, other: Call) -> list[tuple[Any, Any]]:
        """Return the arguments in which another call of the same kind differs, each with the other."""
        pairs = zip(self.arguments, other.arguments, strict=True)
        return [(a, b) for a, b in pairs if a != b and (a == a or b == b)]  # NaN is like NaN


def _described(leaf: Any) -> Any:
    return Tensor if isinstance(leaf, Tensor) else leaf if isinstance(leaf, _PLAIN) else type(leaf)


@dataclass
class Recording:
    """What a function did.

    Attributes
    ----------
    captured : list of Tensor
        Tensors from outside through which a derivative or a mapped axis passes.
    calls : list of Call
    """

    captured: list[Tensor]
    calls: list[Call]


class _OtherWay(Exception):
    """A function takes other operations than it did."""


class _Replay(TorchFunctionMode):
    """Hands every operation the tensors from outside that it took before."""

    def __init__(self, calls: Sequence[Call], captures: Sequence[Tensor]) -> None:
        super().__init__()
        self._calls, self._captures, self._at = calls, captures, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        leaves, tree = pytree.tree_flatten((args, kwargs or {}))
        call, now = self._calls[self._at] if self._at < len(self._calls) else None, Call.of(func, leaves)
        if call is None or call.differs(now):
            raise _OtherWay
        for before, after in call.changes(now):
            raise RuntimeError(
                f"fn: gives {after!r} to {getattr(func, '__name__', func)} and gave {before!r} when the equation was "
                f"solved; {_ADVICE}"
            )
        self._at += 1
        for outside in call.outside:
            leaves[outside.place] = outside.tensor(self._captures)
        args, kwargs = pytree.tree_unflatten(leaves, tree)
        return func(*args, **kwargs)

    def finish(self) -> None:
        """Raise if operations are missing."""
        if self._at != len(self._calls):
            raise _OtherWay


class _Substitution(TorchFunctionMode):
    """Puts other tensors in the place of captured ones, wherever an operation takes them."""

    def __init__(self, replacements: dict[int, Tensor]) -> None:
        super().__init__()
        self._replacements = replacements
        self.met: set[int] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = pytree.tree_map_only(Tensor, self._replaced, (args, kwargs or {}))
        return func(*args, **kwargs)

    def _replaced(self, tensor: Tensor) -> Tensor:
        if id(tensor) not in self._replacements:
            return tensor
        self.met.add(id(tensor))
        return self._replacements[id(tensor)]


class Lifted:
    """A function with its captures as the first argument: ``(replacements, *args) -> fn(*args)``.

    Parameters
    ----------
    fn : callable
    captures : sequence of Tensor
        What it takes from outside.
    """

    def __init__(self, fn: Callable[..., Any], captures: Sequence[Tensor]) -> None:
        self._fn, self._captures = fn, captures
        self._recording: Recording | None = None
        self._order: list[int] = []

    def keep(self, recording: Recording) -> None:
        """Do from now on what was recorded, with the tensors from outside that were there."""
        places = {id(capture): place for place, capture in enumerate(self._captures)}
        self._order = [places[id(capture)] for capture in recording.captured]
        self._recording = recording

    def __call__(self, replacements: Sequence[Tensor], *args: Any) -> Any:
        """Evaluate ``fn``.

        Raises
        ------
        RuntimeError
            It does not do what it did when it was recorded.
        """
        if self._recording is None:
            return self._substituted(replacements, args)[0]
        replay = _Replay(self._recording.calls, [replacements[place] for place in self._order])
        try:
            with uncompiled(), replay:
                output = self._fn(*args)
            replay.finish()
        except _OtherWay:
            # As modules do that have a shortcut for tensors without a gradient. What they hold is known by its id.
            output, met = self._substituted(replacements, args)
            if any(id(capture) not in met for capture in self._recording.captured):
                raise RuntimeError(
                    f"fn: takes other operations, of other tensors, than when the equation was solved; {_ADVICE}"
                ) from None
        return output

    def _substituted(self, replacements: Sequence[Tensor], args: Sequence[Any]) -> tuple[Any, set[int]]:
        changed = {id(old): new for old, new in zip(self._captures, replacements, strict=True)}
        if all(new is old for old, new in zip(self._captures, replacements, strict=True)) and self._recording is None:
            return self._fn(*args), set()
        substitution = _Substitution(changed)
        with uncompiled(), substitution:
            return self._fn(*args), substitution.met
