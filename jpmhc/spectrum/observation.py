"""What every hyper-connection of a model gets and makes during one forward."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from jpmhc.layers import HyperConnection


@dataclass
class Observation:
    """One call of one hyper-connection, with the graph that it is part of.

    Attributes
    ----------
    name : str
        Of the layer in the model.
    call : int
        0 for the first application of the layer in this forward.
    layer : HyperConnection
        The layer.
    x : Tensor, shape (..., n, d)
        Streams that it got.
    pre, post, matrix : Tensor
        Coefficients that it used.
    u, y : Tensor or None
        What its branch got and returned, where the branch is a module.
    """

    name: str
    call: int
    layer: HyperConnection
    x: Tensor
    pre: Tensor
    post: Tensor
    matrix: Tensor
    u: Tensor | None = None
    y: Tensor | None = None


@contextlib.contextmanager
def observe(model: nn.Module) -> Iterator[list[Observation]]:
    """Collect the calls of all hyper-connections of a model, in the order in which they run.

    Raises
    ------
    ValueError
        If the model has none; on leaving, if one ran where it cannot be watched (compiled).
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, HyperConnection)}
    if not layers:
        raise ValueError(f"model: {type(model).__name__} has no HyperConnection")
    found: list[Observation] = []
    before = {name: layer.last for name, layer in layers.items()}
    with contextlib.ExitStack() as stack:
        for name, layer in layers.items():
            stack.enter_context(_watched(name, layer, found))
        yield found
    seen = {observation.name for observation in found}
    unseen = [name for name, layer in layers.items() if layer.last is not before[name] and name not in seen]
    if unseen or not found:
        what = f"{unseen[0]!r} ran where it cannot be watched" if unseen else "none of its hyper-connections ran"
        raise ValueError(f"model: {what}; inspect the model without torch.compile")


@contextlib.contextmanager
def _watched(name: str, layer: HyperConnection, found: list[Observation]) -> Iterator[None]:
    original = layer._ran
    calls = 0

    # Whole, in halves or carried, with coefficients of its own or given ones: every run of a layer comes by here.
    def ran(x: Tensor, pre: Tensor, post: Tensor, matrix: Tensor) -> None:
        nonlocal calls
        found.append(Observation(name, calls, layer, x, pre, post, matrix))
        calls += 1
        original(x, pre, post, matrix)

    def branch_called(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        inputs, outputs = (
            [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
            for tree in ((args, kwargs), output)
        )
        mine = next((o for o in reversed(found) if o.layer is layer), None)
        if mine is not None and inputs and outputs:
            mine.u, mine.y = inputs[0], outputs[0]

    # A stack runs a layer with hooks by itself: in one pass with its neighbour its streams never exist.
    handles = [layer.register_forward_hook(lambda module, args, output: None)]
    if isinstance(layer.branch, nn.Module):
        handles.append(layer.branch.register_forward_hook(branch_called, with_kwargs=True))
    layer._ran = ran  # type: ignore[method-assign]
    try:
        yield
    finally:
        del layer._ran
        for handle in handles:
            handle.remove()


def energy(observation: Observation, probes: int, generator: torch.Generator) -> float | None:
    """Estimate ``||X||_F^2 / C``, X the Jacobian of the branch on its C inputs (all tokens'); None where unknown.

    The mean of ``||X^T z||^2`` over Gaussian z is ``||X||_F^2``.
    """
    u, y = observation.u, observation.y
    if u is None or y is None or not (u.requires_grad and y.requires_grad) or not u.numel():
        return None
    total = 0.0
    for _ in range(probes):
        z = torch.randn(y.shape, generator=generator, device="cpu").to(y)
        (pulled,) = torch.autograd.grad(y, u, z, retain_graph=True, allow_unused=True)
        total += 0.0 if pulled is None else float(pulled.double().square().sum())
    return total / (probes * u.numel())
