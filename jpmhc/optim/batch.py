"""Parameters of one kind as one stacked batch: a step costs one sequence of launches a kind, not one a parameter."""

from __future__ import annotations

from collections.abc import Callable
from operator import is_
from typing import Any

import torch
from torch import Tensor

from jpmhc.kernels.reading import can_read
from jpmhc.manifolds.peer import geoopt


class Batch:
    """k parameters of equal shape, dtype and device on one manifold, seen as one tensor of shape (k, *shape).

    Every parameter keeps a state of its own, as ``torch.optim`` and checkpoints expect, but what it keeps is a view of
    one stacked tensor, which the update works on in place. A state that somebody replaced (loading a checkpoint does),
    through ``.data`` too, is noticed at the next use and stacked anew.

    Parameters
    ----------
    manifold : geoopt.Manifold
        Of all of them.
    """

    def __init__(self, manifold: geoopt.Manifold) -> None:
        self.manifold = manifold
        self.parameters: list[Tensor] = []
        self.states: list[dict[str, Any]] = []
        self._stacked: dict[str, tuple[Tensor, tuple[Tensor, ...]]] = {}
        self._dropped: set[str] = set()
        self._places: dict[str, list[int]] = {}
        self._written: tuple[Tensor, tuple[Tensor, ...]] | None = None
        self._version: int | None = None
        self._place: tuple[torch.dtype, torch.device] | None = None

    def add(self, parameter: Tensor, state: dict[str, Any]) -> None:
        """Take in a parameter and the dictionary that holds its state; before the first use."""
        self.parameters.append(parameter)
        self.states.append(state)

    def is_current(self) -> bool:
        """Whether the parameters still are where the last points written were; a model moves as a whole."""
        return self._place is None or self._place == self._current_place()

    def _current_place(self) -> tuple[torch.dtype, torch.device]:
        first = self.parameters[0]
        return first.dtype, first.device

    def points(self) -> Tensor:
        """Return the parameters, shape (k, *shape); not to be written to."""
        return self.parameters[0].unsqueeze(0) if len(self.parameters) == 1 else torch.stack(self.parameters)

    def gradients(self) -> Tensor:
        """Return their gradients, zero where there is none, shape (k, *shape)."""
        # Always a copy: geoopt's Lorentz flips a sign of the gradient it is given, in place. Reading ``grad`` makes up
        # a third of this for hundreds of small parameters, so each is read once.
        found = [(p, p.grad) for p in self.parameters]
        return torch.stack([torch.zeros_like(p) if gradient is None else gradient for p, gradient in found])

    def write(self, points: Tensor) -> None:
        """Copy points of shape (k, *shape) into the parameters."""
        self._place = self._place or self._current_place()
        if len(self.parameters) == 1:
            self.points().copy_(points)
            self._version = _version(self.parameters[0])
            return
        if self._written is None:
            # Kept from step to step: making hundreds of views takes longer than copying what they show.
            copy = points.clone()
            self._written = copy, copy.unbind()
        else:
            self._written[0].copy_(points)
        torch._foreach_copy_(self.parameters, self._written[1])

    def is_as_written(self, points: Tensor) -> bool:
        """Whether the parameters, which are at `points` now, are where the last `write` left them.

        Of a single one there is no copy to compare with, and what is done through ``.data`` does not count as a change.
        """
        if len(self.parameters) == 1:
            return self._version is not None and self._version == _version(self.parameters[0])
        return self._written is not None and can_read(points) and torch.equal(points, self._written[0])

    def state(self, name: str, start: Callable[[], Tensor]) -> Tensor:
        """Return the stacked state of that name, to be updated in place.

        Parameters
        ----------
        name : str
            Key in every parameter's state.
        start : Callable
            Returns what parameters without such a state start from, a tensor of shape (k, ...); its dtype and device
            are those of the result. Called only where something has to be stacked.

        Returns
        -------
        Tensor, shape (k, ...)
        """
        found = [state.get(name) for state in self.states]
        if self._shows(name, found):
            return self._stacked[name][0]
        self._dropped.discard(name)
        pieces = zip(found, start().unbind(), strict=True)
        stacked = torch.stack([s if f is None else f.to(s) for f, s in pieces])
        views = stacked.unbind()
        for state, view in zip(self.states, views, strict=True):
            state[name] = view
        self._stacked[name] = stacked, views
        self._places.pop(name, None)
        return stacked

    def drop(self, name: str) -> None:
        """Forget the state of that name."""
        if name in self._dropped:
            return
        for state in self.states:
            state.pop(name, None)
        self._stacked.pop(name, None)
        self._dropped.add(name)

    def _shows(self, name: str, found: list[Tensor | None]) -> bool:
        """Whether what the parameters keep under a name still are the views of the stacked tensor."""
        if name not in self._stacked:
            return False
        stacked, views = self._stacked[name]
        if not all(map(is_, found, views)):
            return False
        # Traces and fake tensors have no place in memory.
        if torch.compiler.is_compiling() or type(stacked) is not Tensor:
            return True
        if name not in self._places:
            # Of new views: those that were handed out may have been given other numbers already.
            self._places[name] = [view.data_ptr() for view in stacked.unbind()]
        # Setting ``.data`` leaves a view the object that it was, with numbers that are elsewhere.
        return list(map(Tensor.data_ptr, views)) == self._places[name]


def _version(parameter: Tensor) -> int | None:
    """Return how often a tensor was written to, where that is counted."""
    if torch.compiler.is_compiling():
        return None
    try:
        return parameter._version
    except RuntimeError:  # not of those made in inference mode
        return None
