"""The bookkeeping that all Riemannian optimisers share: which parameter lives where, and in which batch."""

from __future__ import annotations

from collections.abc import Hashable
from operator import is_
from typing import Any, NamedTuple

import torch
from torch import Tensor

from jpmhc.kernels.reading import can_read
from jpmhc.manifolds.base import Manifold
from jpmhc.manifolds.parameter import check_point, replacements
from jpmhc.manifolds.peer import geoopt
from jpmhc.optim.batch import Batch
from jpmhc.optim.options import plain
from jpmhc.optim.parameters import check_parameter, kind, label, manifold_of


class Plan(NamedTuple):
    """Who moves in a step of one group, as long as nothing about its parameters changes."""

    live: list[Tensor]
    manifolds: list[Any]
    states: list[dict[str, Any]]
    free: list[Tensor]
    batches: list[Batch]

    def holds(self, live: list[Tensor], manifolds: list[Any], states: list[dict[str, Any]]) -> bool:
        """Whether it was made for the same parameters on the same manifolds, with the same state objects."""
        return (
            len(live) == len(self.live)
            and all(map(is_, live, self.live))
            and all(map(is_, manifolds, self.manifolds))
            and all(map(is_, states, self.states))
            and all(batch.is_current() for batch in self.batches)
        )


class RiemannianOptimizer(torch.optim.Optimizer):
    """A ``torch.optim.Optimizer`` that knows the manifold of every parameter and batches those of one kind.

    Groups may be edited as those of every optimiser of torch: a parameter that is new in ``param_groups`` is checked at
    the step that first moves it, as one that was there from the start.

    Parameters
    ----------
    params : iterable
        Parameters, ``named_parameters()`` or groups, as for every optimiser of torch. Those that are a
        ``geoopt.ManifoldTensor`` (``manifolds.Parameter`` is one) stay on their manifold.
    defaults : dict
        Options of groups that do not set them.
    """

    def __init__(self, params: Any, defaults: dict[str, Any]) -> None:
        self._manifolds: dict[Tensor, tuple[geoopt.Manifold, Hashable] | None] = {}
        self._plans: dict[int, Plan] = {}
        super().__init__(params, {name: plain(default) for name, default in defaults.items()})

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._check_names(state["param_groups"])
        self._check_states(state["state"], state["param_groups"])
        super().__setstate__(state)
        self._plans = {}
        self._manifolds = self.__dict__.get("_manifolds", {})
        for index, group in enumerate(self.param_groups):
            # A state of torch's AdamW or SGD lacks options that only we have.
            for name, default in self.defaults.items():
                group.setdefault(name, default)
            self._register(index)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what ``state_dict()`` gave, as ``torch.optim.Optimizer.load_state_dict``.

        It is checked as pre-hooks (``register_load_state_dict_pre_hook``) leave it; they may match it by names.

        Raises
        ------
        ValueError
            If a state has not the shape that this optimiser keeps for its parameter (another optimiser's second moment
            on a manifold has not), or a name that both sides know is at another place, counted through all groups.
            Nothing is loaded then. Names that one side knows alone, as all are where one puts ``module.`` before
            them, are not compared.
        """
        super().load_state_dict(state_dict)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, as ``torch.optim.Optimizer.add_param_group``; its options and parameters are checked.

        Raises
        ------
        TypeError, ValueError
            If an option is outside its range, or a parameter is complex, in a precision that its manifold refuses, off
            its manifold, or what took the place of one on a manifold (FSDP puts it there). Nothing is added then.
        """
        self._check_options({**self.defaults, **param_group})
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        group.update({name: plain(group[name]) for name in self.defaults})
        try:
            self._register(len(self.param_groups) - 1)
        except (TypeError, ValueError):
            self.param_groups.pop()
            raise

    def _check_options(self, group: dict[str, Any]) -> None:
        raise NotImplementedError

    def _state_shapes(self, parameter: Tensor) -> dict[str, torch.Size]:
        """Return the shapes of the tensors that are kept for a parameter, by their name."""
        raise NotImplementedError

    def _check_names(self, groups: list[dict[str, Any]]) -> None:
        present = self.__dict__.get("param_groups", [])  # a copy that is being made has none
        here, there = _places(present), _places(groups)
        for name, place in here.items():
            if place != there.get(name, place):
                raise ValueError(
                    f"state_dict: expected {name} as {_ordinal(place)} of all parameters, got it as "
                    f"{_ordinal(there[name])}; a pre-hook may match the states by their names"
                )

    def _check_states(self, states: dict[Any, dict[str, Any]], groups: list[dict[str, Any]]) -> None:
        for place, group in enumerate(groups):
            for index, parameter in enumerate(group["params"]):
                state = states.get(parameter)
                if not state:
                    continue
                for name, shape in self._state_shapes(parameter).items():
                    value = state.get(name)
                    if value is None or (isinstance(value, Tensor) and value.shape == shape):
                        continue
                    got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
                    raise ValueError(
                        f"state of {label(groups, place, index)}: expected {name} of shape {tuple(shape)}, got {got}; "
                        "it is another optimiser's, or of parameters in another order"
                    )

    def _register(self, group: int) -> None:
        parameters = self.param_groups[group]["params"]
        lost = replacements()
        for index, parameter in enumerate(parameters):
            name = label(self.param_groups, group, index)
            check_parameter(parameter, name)
            if id(parameter) in lost:
                raise TypeError(
                    f"{name}: expected the parameter on a manifold that was {lost[id(parameter)]}, got a "
                    f"{type(parameter).__name__} of shape {tuple(parameter.shape)} in its place; leave it out of "
                    "sharding with manifolds.unsharded_parameters"
                )
            if parameter not in self._manifolds and (manifold := manifold_of(parameter)) is not None:
                # Initialised anew in place, or rounded to half precision and back, it may have left its manifold.
                check_point(name, parameter.detach(), manifold)
        for parameter in parameters:
            # Once known as bound, a parameter stays so: this is what tells a lost manifold from one that never was.
            if parameter not in self._manifolds:
                manifold = manifold_of(parameter)
                self._manifolds[parameter] = None if manifold is None else (manifold, kind(manifold))

    def _collect(self, group: int, flat: geoopt.Manifold | None = None) -> Plan:
        """Return who moves in this step: free parameters as they are, batches of the others.

        Parameters without a gradient are left out. With ``flat`` given, only frozen and empty ones are, and free ones
        are batched on it.
        """
        parameters = self.param_groups[group]["params"]
        gradients = [p.grad for p in parameters]
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None and gradient.layout is not torch.strided:
                raise TypeError(f"{self._label(group, parameter)}: expected a dense gradient, got {gradient.layout}")
        if flat is None:
            live = [p for p, gradient in zip(parameters, gradients, strict=True) if gradient is not None]
        else:
            live = [p for p in parameters if p.requires_grad and p.numel()]
        manifolds = [getattr(p, "manifold", None) for p in live]
        states = [self.state[p] for p in live]
        plan = self._plans.get(group)
        if plan is None or not plan.holds(live, manifolds, states):
            free, batches = self._divide(group, live, states, flat)
            plan = self._plans[group] = Plan(live, manifolds, states, free, batches)
        return plan

    def _divide(
        self, group: int, live: list[Tensor], states: list[dict[str, Any]], flat: geoopt.Manifold | None
    ) -> tuple[list[Tensor], list[Batch]]:
        free: list[Tensor] = []
        buckets: dict[Hashable, Batch] = {}
        for parameter, state in zip(live, states, strict=True):
            bound = self._bound(parameter, group)
            if bound is None:
                if flat is None:
                    free.append(parameter)
                    continue
                bound = flat, None
            key = (bound[1], parameter.shape, parameter.dtype, parameter.device)
            buckets.setdefault(key, Batch(bound[0])).add(parameter, state)
        return free, list(buckets.values())

    def _check_points(self, group: int, batch: Batch, points: Tensor) -> None:
        """Raise if somebody else has moved a parameter off its manifold, where a look at it waits for no device."""
        # Those of other libraries drift by themselves.
        if batch.is_as_written(points) or not can_read(points) or not isinstance(batch.manifold, Manifold):
            return
        if not batch.manifold.check_point_on_manifold(points):
            for parameter in batch.parameters:
                check_point(self._label(group, parameter), parameter.detach(), batch.manifold)

    def _bound(self, parameter: Tensor, group: int) -> tuple[geoopt.Manifold, Hashable] | None:
        if parameter not in self._manifolds:
            # As accelerate does after sharding, somebody edited the group. Those that have gone are forgotten.
            present = {p for g in self.param_groups for p in g["params"]}
            self._manifolds = {p: known for p, known in self._manifolds.items() if p in present}
            self._register(group)
        known = self._manifolds[parameter]
        if known is None or getattr(parameter, "manifold", None) is known[0]:
            return known
        manifold = manifold_of(parameter)
        if manifold is None:
            raise TypeError(
                f"{self._label(group, parameter)}: expected a parameter on {known[0]!r}, got a plain "
                f"{type(parameter).__name__}; something replaced it and its constraint would be lost"
            )
        self._manifolds[parameter] = manifold, kind(manifold)
        return self._manifolds[parameter]

    def _label(self, group: int, parameter: Tensor) -> str:
        places = (i for i, p in enumerate(self.param_groups[group]["params"]) if p is parameter)
        return label(self.param_groups, group, next(places))


def _places(groups: list[dict[str, Any]]) -> dict[str, list[int]]:
    """Return where the parameters of each name are, counted through all groups; two models may share a name."""
    places: dict[str, list[int]] = {}
    start = 0
    for group in groups:
        names = group.get("param_names") or ()
        # Somebody may have edited the parameters and left the names.
        for index, name in enumerate(names if len(names) == len(group["params"]) else ()):
            places.setdefault(name, []).append(start + index)
        start += len(group["params"])
    return places


def _ordinal(places: list[int]) -> str:
    return f"number {', '.join(map(str, places))}"
