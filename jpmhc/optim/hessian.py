"""The loss of a closure as a function of the parameters, with products of its Hessian."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from jpmhc.optim.blocks import Blocks, Vector
from jpmhc.optim.closure_step import Closure, number

Products = Callable[[Vector], Vector]
"""A direction to the Euclidean Hessian along it."""


class _KeepGraph(TorchFunctionMode):
    """Leaves out ``loss.backward()``, so that a closure returns its loss with the graph still there."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.backward:
            return None
        return func(*args, **(kwargs or {}))


def differentiate(closure: Closure, blocks: Blocks) -> tuple[float, Vector, Products]:
    """Return a closure's loss, its Euclidean gradient, and products with its Hessian at the present point.

    The graph of the closure is differentiated twice in reverse mode; the products hold until a parameter is written to.
    Gradients are not accumulated: the closure's own ``loss.backward()`` is left out.

    Parameters
    ----------
    closure : Callable
        As for ``torch.optim.LBFGS``; it must return the loss as a tensor, and get its gradients by ``loss.backward()``.
    blocks : Blocks
        The parameters.

    Returns
    -------
    loss : float
    gradient : list of Tensor
    products : Callable
        One backward pass each.

    Raises
    ------
    TypeError
        If the closure returns no tensor that depends on the parameters.
    RuntimeError
        From torch, if the closure frees its graph by another call than ``loss.backward()``.
    """
    parameters = blocks.parameters
    with torch.enable_grad():
        with _KeepGraph():
            loss = closure()
        value = number(loss)
        if not isinstance(loss, Tensor) or not loss.requires_grad:
            raise TypeError(
                "closure: expected it to return the loss as a tensor that depends on the parameters; "
                "for a number, give hessian"
            )
        gradients = torch.autograd.grad(loss, parameters, create_graph=True, materialize_grads=True)

    def products(direction: Vector) -> Vector:
        pieces = blocks.scatter(direction)
        curved = [(g, v) for g, v in zip(gradients, pieces, strict=True) if g.requires_grad]
        if not curved:
            return [torch.zeros_like(u) for u in direction]
        outputs, weights = zip(*curved, strict=True)
        result = torch.autograd.grad(outputs, parameters, weights, retain_graph=True, materialize_grads=True)
        return blocks.gather(list(result))

    return value, blocks.gather([g.detach() for g in gradients]), products


def from_user(hessian: Callable[..., Tensor | Sequence[Tensor]], blocks: Blocks, order: list[Tensor]) -> Products:
    """Return a user's Hessian, called with one direction per parameter in the order given, as products on blocks.

    Parameters
    ----------
    hessian : Callable
        As :class:`RiemannianTrustRegion` describes.
    blocks : Blocks
        The parameters, in their own order.
    order : list of Tensor
        The parameters in the user's order; those that do not take part have no direction but zero.

    Returns
    -------
    Callable
        Raises ValueError where the result does not fit the parameters.
    """
    place = {id(parameter): index for index, parameter in enumerate(blocks.parameters)}
    places = [place.get(id(parameter)) for parameter in order]

    def products(direction: Vector) -> Vector:
        pieces = blocks.scatter(direction)
        result = hessian(*(torch.zeros_like(p) if i is None else pieces[i] for p, i in zip(order, places, strict=True)))
        results = [result] if isinstance(result, Tensor) else list(result)
        expected, got = [p.shape for p in order], [r.shape for r in results]
        if expected != got:
            raise ValueError(f"hessian: expected results of shapes {expected}, got {got}")
        ordered: list[Tensor] = [pieces[0]] * len(pieces)
        for index, tensor in zip(places, results, strict=True):
            if index is not None:
                ordered[index] = tensor.detach()
        return blocks.gather(ordered)

    return products
