"""What a function did with tensors from outside, to let it do the same again with others in their place.

A derivative calls the function again, long after the equation was solved. Meanwhile a loop may have gone on to its next
layer, `torch.func.functional_call` has taken its parameters back, a module holds another input: the tensors of the
solution are not where they were. So they are known by the operation that took them, as long as the function takes the
same operations, and by their identity from there on. Nothing is raised before the function has returned: it may not be
left halfway, and an exception would meet its context managers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from jpmhc.autodiff.stance import uncompiled

_PLAIN = (bool, int, float, complex, str, type(None), range, np.generic, torch.dtype, torch.device, torch.Size)
_ADVICE = (
    "the derivative calls fn again: pass what changes through args, and bind the variables of a loop, "
    "fixed_point(lambda z, layer=layer: ..., z0)"
)


Build = Callable[[list[Any]], tuple[tuple[Any, ...], dict[str, Any]]]


def flatten(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[list[Any], Build]:
    """Return the leaves of arguments, and what makes arguments of other leaves."""
    leaves = [*args, *kwargs.values()]
    if any(isinstance(leaf, tuple | list | dict) for leaf in leaves):
        nested, tree = pytree.tree_flatten((args, kwargs))
        return nested, lambda changed: pytree.tree_unflatten(changed, tree)
    count = len(args)  # the usual case, at a fifth of the cost
    return leaves, lambda changed: (tuple(changed[:count]), dict(zip(kwargs, changed[count:], strict=True)))


class Outside(NamedTuple):
    """A tensor from outside among the arguments of a call."""

    place: int
    tensor: Tensor
    version: int
    """What counts the times that it was written to."""


class Call(NamedTuple):
    """One operation of a function."""

    function: Any
    names: tuple[str, ...]
    """Of its keyword arguments."""
    arguments: tuple[Any, ...]
    """Numbers and strings among the leaves of its arguments, and the types of all others."""
    outside: tuple[Outside, ...] = ()

    @classmethod
    def of(cls, function: Any, names: Iterable[str], leaves: Sequence[Any], outside: Sequence[Outside] = ()) -> Call:
        """Describe a call by the leaves of its arguments."""
        return cls(function, tuple(names), tuple(map(_described, leaves)), tuple(outside))

    def differs(self, other: Call) -> bool:
        """Whether another call is of another operation, or takes arguments of other kinds."""
        if self.function != other.function or len(self.arguments) != len(other.arguments):
            return True
        pairs = zip(self.arguments, other.arguments, strict=True)
        return any(a is not b and type(a) is not type(b) for a, b in pairs)

    def changes(self, other: Call) -> str | None:
        """Describe what another call of the same kind is given that this one is not."""
        pairs = [(self.names, other.names), *zip(self.arguments, other.arguments, strict=True)]
        for mine, others in pairs:
            if mine is not others and mine != others and (mine == mine or others == others):  # NaN is like NaN
                name = getattr(self.function, "__name__", self.function)
                return f"gives {_shown(others)} to {name} and gave {_shown(mine)} when the equation was solved"
        return None


def _shown(described: Any) -> str:
    is_array = isinstance(described, tuple) and len(described) == 2 and isinstance(described[1], bytes)
    return f"an array of shape {described[0]}" if is_array else repr(described)


def _described(leaf: Any) -> Any:
    if isinstance(leaf, Tensor):
        return Tensor
    if isinstance(leaf, _PLAIN):
        return leaf
    if isinstance(leaf, slice):
        return slice(_described(leaf.start), _described(leaf.stop), _described(leaf.step))
    if isinstance(leaf, np.ndarray):
        return leaf.shape, leaf.tobytes()
    return type(leaf)


@dataclass
class Recording:
    """What a function did.

    Attributes
    ----------
    captured : list of Tensor
        Tensors from outside through which a derivative or a mapped axis passes.
    calls : list of Call
    returned : tuple of int
        Places among the leaves of its output of captured tensors that it returns as they are.
    """

    captured: list[Tensor] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    returned: tuple[int, ...] = ()

    def outside(self) -> dict[int, Tensor]:
        """Return all tensors from outside, by their identity."""
        return {id(entry.tensor): entry.tensor for call in self.calls for entry in call.outside}


def handed_on(output: Any, places: Iterable[int]) -> Any:
    """Let an operation make the leaves at these places of an output, so that a function mode meets them."""
    leaves, tree = pytree.tree_flatten(output)
    for place in places:
        leaves[place] = leaves[place].view_as(leaves[place])
    return pytree.tree_unflatten(leaves, tree)


class _Again(TorchFunctionMode):
    """Hands operations the tensors from outside that they took before, or others in their place."""

    def __init__(self, calls: Sequence[Call], replacements: dict[int, Tensor], given: Iterable[Any]) -> None:
        super().__init__()
        self._calls, self._replacements, self._at = calls, replacements, 0
        self._known = {id(leaf): leaf for leaf in pytree.tree_leaves(tuple(given))}
        self._same = True
        self.change: str | None = None
        self.met: set[int] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        leaves, build = flatten(args, kwargs or {})
        placed = self._by_place(func, kwargs or {}, leaves) if self._same else ()
        for place, leaf in enumerate(leaves):
            if place not in placed and id(leaf) in self._replacements:
                self.met.add(id(leaf))
                leaves[place] = self._replacements[id(leaf)]
        args, kwargs = build(leaves)
        result = func(*args, **kwargs)
        if self._same:  # holding a result keeps its id from being used again
            self._known.update((id(leaf), leaf) for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor))
        return result

    def returned(self, output: Any) -> list[int]:
        """Places among the leaves of an output of tensors that have a replacement."""
        return [place for place, leaf in enumerate(pytree.tree_leaves(output)) if id(leaf) in self._replacements]

    def _by_place(self, func: Any, kwargs: dict[str, Any], leaves: list[Any]) -> set[int]:
        call = self._calls[self._at] if self._at < len(self._calls) else None
        now = Call.of(func, kwargs, leaves)
        # A tensor of the function's own where one from outside was: it is another operation.
        if call is None or call.differs(now) or any(id(leaves[entry.place]) in self._known for entry in call.outside):
            self._same = False
            self._known.clear()
            return set()
        self._at += 1
        self.change = self.change or call.changes(now)
        for entry in call.outside:
            self.met.add(id(entry.tensor))
            leaves[entry.place] = self._replacements.get(id(entry.tensor), entry.tensor)
        return {entry.place for entry in call.outside}


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
        self._calls: list[Call] = []
        self._constants: list[tuple[Tensor, int]] = []
        self._needed: set[int] = set()
        self._returned: tuple[int, ...] | None = None

    def keep(self, first: Recording, recording: Recording) -> None:
        """Do from now on what was recorded, with the tensors from outside that were there.

        Only those that `first`, another recording, has met too are from outside for certain: what an operation makes
        that torch does not show, a scripted function for one, is another tensor every time.
        """
        known, captured = first.outside(), {id(capture) for capture in self._captures}
        versions: dict[int, tuple[Tensor, set[int]]] = {}
        for call in recording.calls:
            lasting = tuple(entry for entry in call.outside if id(entry.tensor) in known)
            self._calls.append(call._replace(outside=lasting))
            for entry in lasting:
                versions.setdefault(id(entry.tensor), (entry.tensor, set()))[1].add(entry.version)
        self._needed = captured & set(versions)
        # What the function writes to itself is a place to work in.
        self._constants = [
            (tensor, version_of(tensor))
            for key, (tensor, seen) in versions.items()
            if key not in captured and seen == {version_of(tensor)}
        ]
        if not versions and not captured:
            self._calls = []
        self._returned = recording.returned

    def __call__(self, replacements: Sequence[Tensor], *args: Any) -> Any:
        """Evaluate ``fn``.

        Raises
        ------
        RuntimeError
            It does not do what it did when it was recorded.
        """
        changed = {id(old): new for old, new in zip(self._captures, replacements, strict=True) if new is not old}
        if not self._calls and not changed:
            return self._fn(*args)
        for tensor, version in self._constants:
            if version_of(tensor) != version:
                raise RuntimeError(
                    f"fn: uses a tensor of shape {tuple(tensor.shape)} that was written to since the equation was "
                    f"solved; {_ADVICE}"
                )
        again = _Again(self._calls, changed, args)
        with uncompiled(), again:
            output = self._fn(*args)
            output = handed_on(output, again.returned(output) if self._returned is None else self._returned)
        if again.change is not None:
            raise RuntimeError(f"fn: {again.change}; {_ADVICE}")
        if not self._needed.issubset(again.met | {id(old) for old in self._captures if id(old) not in changed}):
            raise RuntimeError(
                f"fn: takes other operations, of other tensors, than when the equation was solved; {_ADVICE}"
            )
        return output


def version_of(tensor: Tensor) -> int:
    """Return how many times a tensor was written to, -1 where nobody counts."""
    return -1 if tensor.is_inference() else tensor._version
