"""Branches that return more than their result: the first tensor is it, however deep, the rest is carried along."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor


def replace_first_tensor(output: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Return the output of a branch with ``function`` applied to its first tensor.

    Parameters
    ----------
    output : Tensor, tuple, list or mapping
        Their items may be such once more; the first tensor is that of the first item that has one. Named tuples and
        mappings keep their type where it can be built from its items.
    function : Callable
        Applied once.

    Raises
    ------
    TypeError
        If there is no tensor in it, or the first one stands in a dataclass that is no mapping, however deep.

    Examples
    --------
    >>> import torch
    >>> replace_first_tensor((torch.ones(2), "cache"), lambda y: 2 * y)
    (tensor([2., 2.]), 'cache')
    >>> replace_first_tensor(((torch.ones(2), "cache"), torch.zeros(2)), lambda y: 2 * y)
    ((tensor([2., 2.]), 'cache'), tensor([0., 0.]))
    """
    return _replace(output, _path(output), function)


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
        The other items of a tuple or list, those of a mapping by their keys; None where the output is a tensor. In the
        place of an item that held the result, what else it held.

    Raises
    ------
    TypeError
        As :func:`replace_first_tensor`.

    Examples
    --------
    >>> import torch
    >>> split_first_tensor({"y": torch.ones(2), "cache": 3})
    (tensor([1., 1.]), {'cache': 3})
    """
    return _split(output, _path(output))


def with_rests(result: Any, rests: list[Any]) -> Any:
    """Return the result of a chain of layers, beside what their branches returned more where any did."""
    return result if all(rest is None for rest in rests) else (result, rests)


def _path(output: Any) -> list[Any]:
    """Keys and indices that lead to the first tensor."""
    path = _search(output)
    if path is None:
        raise TypeError(f"branch: expected a tensor, or a tuple, list or mapping with one, got {type(output).__name__}")
    return path


def _search(value: Any) -> list[Any] | None:
    if isinstance(value, Tensor):
        return []
    if isinstance(value, Mapping):
        items: Iterable[tuple[Any, Any]] = value.items()
    else:
        items = enumerate(value) if isinstance(value, tuple | list) else ()
    for place, item in items:
        path = _search(item)
        if path is not None:
            return [place, *path]
    if (
        is_dataclass(value)
        and not isinstance(value, type)
        and any(_search(field) is not None for field in _held(value))
    ):
        # Else a tensor after it would be taken for the result.
        raise TypeError(
            f"branch: expected its first tensor in a tuple, list or mapping, got it in {type(value).__name__}"
        )
    return None


def _held(value: Any) -> list[Any]:
    """Return what the fields of a dataclass hold."""
    known = is_dataclass(value) and not isinstance(value, type)
    return [getattr(value, field.name, None) for field in fields(value)] if known else []


def _replace(output: Any, path: list[Any], function: Callable[[Tensor], Tensor]) -> Any:
    if not path:
        return function(output)
    place, *inner = path
    new = _replace(output[place], inner, function)
    if isinstance(output, Mapping):
        items = {**output, place: new}
        return items if type(output) is dict else type(output)(**items)
    values = [*output[:place], new, *output[place + 1 :]]
    return type(output)(*values) if hasattr(output, "_fields") else type(output)(values)


def _split(output: Any, path: list[Any]) -> tuple[Tensor, Any]:
    if not path:
        return output, None
    place, *inner = path
    result, rest = _split(output[place], inner)
    # What held the tensor stays, without it.
    if isinstance(output, Mapping):
        others = {key: value for key, value in output.items() if key != place or inner}
        return result, {**others, place: rest} if inner else others
    return result, (*output[:place], *((rest,) if inner else ()), *output[place + 1 :])


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
