"""Branches that return more than their result: the first tensor is it, the rest is carried along."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor


def replace_first_tensor(output: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Return the output of a branch with ``function`` applied to its first tensor.

    Parameters
    ----------
    output : Tensor, tuple, list or mapping
        Named tuples and mappings keep their type where it can be built from its items.
    function : Callable
        Applied once.

    Raises
    ------
    TypeError
        If there is no tensor in it.

    Examples
    --------
    >>> import torch
    >>> replace_first_tensor((torch.ones(2), "cache"), lambda y: 2 * y)
    (tensor([2., 2.]), 'cache')
    """
    if isinstance(output, Tensor):
        return function(output)
    if isinstance(output, Mapping):
        items = dict(output)
        key = next((key for key, value in items.items() if isinstance(value, Tensor)), None)
        if key is not None:
            items[key] = function(items[key])
            return items if type(output) is dict else type(output)(**items)
    elif isinstance(output, (tuple, list)):
        place = next((i for i, value in enumerate(output) if isinstance(value, Tensor)), None)
        if place is not None:
            values = [*output[:place], function(output[place]), *output[place + 1 :]]
            return type(output)(*values) if hasattr(output, "_fields") else type(output)(values)
    raise TypeError(f"branch: expected a tensor, or a tuple, list or mapping with one, got {type(output).__name__}")


def first_tensor(output: Any) -> Tensor:
    """Return the first tensor in the output of a branch.

    Raises
    ------
    TypeError
        If there is none.
    """
    found: list[Tensor] = []

    def keep(y: Tensor) -> Tensor:
        found.append(y)
        return y

    replace_first_tensor(output, keep)
    return found[0]


def check_result(y: Any, x: Tensor) -> None:
    """Refuse the result of a branch that is not one vector (..., d) for the streams x (..., n, d) of every token.

    Raises
    ------
    ValueError
        Naming both shapes.
    """
    shape = x.shape[:-2] + x.shape[-1:]
    if not isinstance(y, Tensor) or y.shape != shape:
        got = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
        raise ValueError(f"branch: expected a result of shape {tuple(shape)}, got {got}")
