"""Whether two manifolds are one, from all that they hold."""

from __future__ import annotations

from typing import Any

import torch

from jpmhc.manifolds.peer import geoopt

_VALUES = (bool, int, float, complex, str, bytes, frozenset, torch.dtype, torch.device, geoopt.Manifold)
_CONTAINERS = ("_buffers", "_parameters", "_modules")
_MODULE_ATTRIBUTES = frozenset(vars(torch.nn.Module()))


def held(manifold: geoopt.Manifold) -> dict[str, Any]:
    """Return the attributes that decide what a manifold computes: all but the hooks and flags of every module."""
    attributes = vars(manifold)
    # In few steps of Python: an optimiser asks for every parameter.
    own = {name: attributes[name] for name in attributes.keys() - _MODULE_ATTRIBUTES}
    for name in _CONTAINERS:
        if attributes[name]:
            own[name] = attributes[name]
    return own


def alike(one: Any, other: Any) -> bool:
    """Whether two attributes are equal; of tensors, and of what else may change in place, only the same are."""
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, tuple | list):
        return len(one) == len(other) and all(map(alike, one, other))
    if isinstance(one, dict):
        differing = (name for name, value in one.items() if value is not other.get(name))
        return one.keys() == other.keys() and all(alike(one[name], other[name]) for name in differing)
    return isinstance(one, _VALUES) and bool(one == other)


def names_its_settings(cls: type) -> bool:
    """Whether the constructor of a class is the one that its ``_settings`` are the arguments of."""
    # An inherited _settings knows nothing of the options of a constructor that came later.
    for base in cls.__mro__:
        if "_settings" in vars(base):
            return True
        if "__init__" in vars(base):
            return False
    return False
