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
    place = _place(output)
    if isinstance(output, Mapping):
        items = {**output, place: function(output[place])}
        return items if type(output) is dict else type(output)(**items)
    values = [*output[:place], function(output[place]), *output[place + 1 :]]
    return type(output)(*values) if hasattr(output, "_fields") else type(output)(values)


def split_first_tensor(output: Any) -> tuple[Tensor, Any]:
    """Return the first tensor in the output of a branch and what else there is.

    Parameters
    ----------
    output : Tensor, tuple, list or mapping
        As of :func:`replace_first_tensor`.

    Returns
    -------
    result : Tensor
    rest : tuple, dict or None
        The other items of a tuple or list, those of a mapping by their keys; None where the output is a tensor.

    Raises
    ------
    TypeError
        If there is no tensor in it.

    Examples
    --------
    >>> import torch
    >>> split_first_tensor({"y": torch.ones(2), "cache": 3})
    (tensor([1., 1.]), {'cache': 3})
    """
    if isinstance(output, Tensor):
        return output, None
    place = _place(output)
    if isinstance(output, Mapping):
        return output[place], {key: value for key, value in output.items() if key != place}
    return output[place], (*output[:place], *output[place + 1 :])


def with_rests(result: Any, rests: list[Any]) -> Any:
    """Return the result of a chain of layers, beside what their branches returned more where any did."""
    return result if all(rest is None for rest in rests) else (result, rests)


def _place(output: Any) -> Any:
    """Key or index of the first tensor."""
    items = (
        output.items() if isinstance(output, Mapping) else enumerate(output if isinstance(output, tuple | list) else ())
    )
    for place, value in items:
        if isinstance(value, Tensor):
            return place
    raise TypeError(f"branch: expected a tensor, or a tuple, list or mapping with one, got {type(output).__name__}")


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
