"""A section of a model: the function from the input of one of its modules to the output of another."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

Place = str | tuple[str, int]


class _Reached(Exception):
    """The end of the section; carries its output, so that the rest of the model need not run."""


def section(model: nn.Module, batch: Any, start: Place, stop: Place) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """Return the function between two modules of a model, and the tensor it gets on a batch.

    Parameters
    ----------
    model : Module
        Any module.
    batch : Tensor, tuple or mapping
        What the model is called with: its argument, arguments, or arguments by name.
    start, stop : str or (str, int)
        Names of modules, as in ``model.named_modules()``. The section runs from the first tensor argument of ``start``
        to the first tensor that ``stop`` returns, both included; the same name twice is one layer. ``(name, k)`` is
        the k-th call, from 0, of a module that is applied repeatedly; a plain name is the first call, for ``stop`` the
        first that ends after ``start`` began.

    Returns
    -------
    fn : Callable
        Runs the model with another tensor at ``start`` and returns the result of ``stop``. Everything before the
        section, and what goes around it, is that of the batch.
    x : Tensor
        The tensor at ``start``, detached.

    Raises
    ------
    ValueError
        For a name that is no module, a module that is not called that often or only runs in halves, and a section that
        runs without gradients (``torch.no_grad`` in the model), whose Jacobian would be zero without a word.
    """
    start_name, start_call = _place(model, "start", start)
    stop_name, stop_call = _place(model, "stop", stop)
    start_call = start_call or 0
    args, kwargs = arguments(batch)
    seen: dict[str, Any] = {}
    # Hyper-connections note their coefficients however they are run.
    before = {name: getattr(model.get_submodule(name), "last", None) for name in (start_name, stop_name)}

    def run(replacement: Tensor | None) -> Tensor:
        calls = {"start": 0, "stop": 0}
        entered: list[Tensor] = []

        def enter(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> Any:
            calls["start"] += 1
            if calls["start"] != start_call + 1:
                return None
            leaves, tree = pytree.tree_flatten((inputs, named))
            index = _first_tensor(leaves, f"start: {start_name!r} takes")
            seen["grad"] = torch.is_grad_enabled()
            entered.append(leaves[index] if replacement is None else replacement)
            leaves[index] = entered[0]
            return pytree.tree_unflatten(leaves, tree)

        def leave(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            calls["stop"] += 1
            if not entered and calls["stop"] - 1 == stop_call:
                raise ValueError(
                    f"stop: call {stop_call} of {stop_name!r} ends before call {start_call} of {start_name!r} begins"
                )
            if entered and (stop_call is None or calls["stop"] - 1 == stop_call):
                leaves = pytree.tree_leaves(output)
                raise _Reached(leaves[_first_tensor(leaves, f"stop: {stop_name!r} returns")])

        handles = [
            model.get_submodule(start_name).register_forward_pre_hook(enter, with_kwargs=True, prepend=True),
            model.get_submodule(stop_name).register_forward_hook(leave),
        ]
        try:
            # As the model would train, whatever the caller's mode is; a transform sets its own.
            with torch.enable_grad() if replacement is None else contextlib.nullcontext():
                model(*args, **kwargs)
        except _Reached as reached:
            seen["x"] = entered[0]
            result: Tensor = reached.args[0]
            return result
        finally:
            for handle in handles:
                handle.remove()
        for argument, name in (("start", start_name), ("stop", stop_name)):
            if calls[argument] == 0 and getattr(model.get_submodule(name), "last", None) is not before[name]:
                raise ValueError(
                    f"{argument}: {name!r} runs in halves there, inside of {_around(model, name)}, as in converted "
                    "blocks, so it is not called and has no Jacobian of its own; expected a module that is called, "
                    "such as the one around it"
                )
        if not entered:
            raise ValueError(f"start: {start_name!r} is called {calls['start']} times, there is no call {start_call}")
        asked = "none of them ends" if stop_call is None else f"call {stop_call} does not end"
        raise ValueError(f"stop: {stop_name!r} is called {calls['stop']} times, {asked} after {start_name!r} begins")

    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    function = _Section(model, run)
    state = {name: value.detach().clone() for name, value in function.named_buffers()}
    with torch.random.fork_rng(list(devices)):
        torch.func.functional_call(function, state, (None,))
    if not seen["grad"]:
        raise ValueError(f"start: {start_name!r} runs under torch.no_grad at that call, so its Jacobian would be zero")
    return function, seen["x"].detach()


class _Section(nn.Module):
    """The function as a module, so that the model's buffers are copied before it runs."""

    def __init__(self, model: nn.Module, run: Callable[[Tensor | None], Tensor]) -> None:
        super().__init__()
        self.model, self.run = model, run

    def forward(self, x: Tensor | None) -> Tensor:
        return self.run(x)


def arguments(batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return a batch as arguments of a call: a tuple's or list's items, a mapping's by name, else one argument."""
    if isinstance(batch, Mapping):
        return (), dict(batch)
    # A named tuple is one argument.
    return (tuple(batch), {}) if type(batch) in (tuple, list) else ((batch,), {})


def _place(model: nn.Module, argument: str, place: Place) -> tuple[str, int | None]:
    name, call = (place, None) if isinstance(place, str) else place
    names = dict(model.named_modules())
    if name not in names:
        near = ", ".join(map(repr, [n for n in names if n][:8]))
        raise ValueError(f"{argument}: expected the name of a module, got {name!r}; there are {near}, ...")
    if call is not None and (not isinstance(call, int) or call < 0):
        raise ValueError(f"{argument}: expected a call number of at least 0, got {call!r}")
    return name, call


def _around(model: nn.Module, name: str) -> str:
    """Return how to name the nearest module around that one which can be called."""
    while name:
        name = name.rpartition(".")[0]
        # A list or group of layers has no forward of its own.
        if name and type(model.get_submodule(name)).forward is not nn.Module.forward:
            return repr(name)
    return "the model"


def _first_tensor(leaves: list[Any], where: str) -> int:
    for index, leaf in enumerate(leaves):
        if isinstance(leaf, Tensor) and leaf.is_floating_point():
            return index
    raise ValueError(f"{where} no floating-point tensor")
