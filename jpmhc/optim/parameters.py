"""What an optimiser has to know about a parameter: its manifold, which others it can be stacked with, its name."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor

from jpmhc.manifolds.peer import geoopt

_MODULE_ATTRIBUTES = frozenset(vars(torch.nn.Module()))
_PLAIN = (bool, int, float, str, type(None), tuple)


def manifold_of(parameter: Tensor) -> geoopt.Manifold | None:
    """Return the manifold a parameter is bound to, or None where it is free to move anywhere.

    Parameters
    ----------
    parameter : Tensor
        Any tensor. A plain one, and a ``ManifoldParameter`` on geoopt's ``Euclidean``, are free.

    Returns
    -------
    geoopt.Manifold or None
    """
    if not isinstance(parameter, geoopt.ManifoldTensor) or isinstance(parameter.manifold, geoopt.Euclidean):
        return None
    return parameter.manifold


def kind(manifold: geoopt.Manifold) -> Hashable:
    """Return a key that is equal for manifolds that compute the same, so that their parameters can be stacked.

    Ours say themselves when they are equal. geoopt's do not: two instances of one class with equal plain settings are
    one manifold, but one that holds tensors, or anything else that cannot be compared safely, is equal to itself alone;
    the caller keeps it alive as long as the key.

    Parameters
    ----------
    manifold : geoopt.Manifold
        Ours or geoopt's.

    Returns
    -------
    Hashable
    """
    if type(manifold).__eq__ is not object.__eq__:
        return manifold
    own = {name: value for name, value in vars(manifold).items() if name not in _MODULE_ATTRIBUTES}
    holds_tensors = next(manifold.parameters(), None) is not None or next(manifold.buffers(), None) is not None
    if holds_tensors or not all(isinstance(value, _PLAIN) for value in own.values()):
        return id(manifold)
    parts = tuple((name, kind(part)) for name, part in manifold.named_children())
    return (type(manifold), tuple(sorted(own.items())), parts)


def label(groups: list[dict[str, Any]], group: int, index: int) -> str:
    """Return a parameter's name where its group has names, else its place in ``optimizer.param_groups``."""
    names = groups[group].get("param_names") or ()
    # Somebody may have edited the parameters and left the names.
    return names[index] if len(names) == len(groups[group]["params"]) else f"param_groups[{group}]['params'][{index}]"


def check_parameter(parameter: Tensor, name: str) -> None:
    """Raise unless an optimiser can move this parameter.

    Parameters
    ----------
    parameter : Tensor
        As given to the optimiser.
    name : str
        For the message.

    Raises
    ------
    TypeError
        If it is complex, or bound to a manifold in a dtype other than float32 and float64.
    """
    if not parameter.is_floating_point():
        raise TypeError(f"{name}: expected real floating-point numbers, got {parameter.dtype}")
    if manifold_of(parameter) is not None and parameter.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{name}: expected float32 or float64 on a manifold, got {parameter.dtype}")
