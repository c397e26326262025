"""A fixed-point equation ``z = fn(z, *leaves)`` on packed tensors, with its Jacobian products."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from jpmhc.autodiff.hooks import hooks_aside
from jpmhc.autodiff.stance import uncompiled
from jpmhc.autodiff.transforms import along_batched_gradients, batched_gradients

Function = Callable[..., Any]


def pullback(fn: Function, primals: Sequence[Tensor], wanted: Sequence[bool], cotangent: Any) -> list[Tensor | None]:
    """Multiply ``cotangent`` with the Jacobian of ``fn``, for the primals that are ``wanted``; ``None`` elsewhere."""
    restricted, chosen = _restrict(fn, primals, wanted)
    gradients: list[Tensor | None] = [None] * len(primals)
    if chosen:
        _, pull = _vjp(restricted, *chosen)
        found = iter(pull(cotangent))
        gradients = [next(found) if want else None for want in wanted]
    return gradients


def pushforward(
    fn: Function, primals: Sequence[Tensor], tangents: Sequence[Tensor | None], like: Tensor | None = None
) -> Any:
    """Multiply the Jacobian of ``fn`` with ``tangents``, where ``None`` is zero; shaped like ``like``, the result.

    The product is the transpose of the pullback, which is linear. It needs no forward-mode rule of any operation in
    ``fn``, and no second level of ``torch.autograd.forward_ad``, which does not nest.
    """
    wanted = [tangent is not None for tangent in tangents]
    restricted, chosen = _restrict(fn, primals, wanted)
    if not chosen:
        return pytree.tree_map(torch.zeros_like, fn(*primals) if like is None else like)
    output, pull = _vjp(restricted, *chosen)
    _, push = _vjp(pull, pytree.tree_map(torch.zeros_like, output if like is None else like))
    return push(tuple(tangent for tangent in tangents if tangent is not None))[0]


def _vjp(fn: Function, *primals: Tensor) -> tuple[Any, Function]:
    with uncompiled(), hooks_aside():
        output, pull = torch.func.vjp(fn, *primals)  # type: ignore[misc]

    def pull_plainly(cotangent: Any) -> Any:
        with hooks_aside():
            return pull(cotangent)

    def pull_along(cotangent: Any) -> Any:
        leaves, tree = pytree.tree_flatten(cotangent)
        if not batched_gradients(leaves):
            return pull_plainly(cotangent)
        # On such a batch torch would drop the graph of every autograd.Function in ``fn``.
        return along_batched_gradients(
            lambda _, in_dims, *given: torch.func.vmap(
                lambda *one: pull_plainly(pytree.tree_unflatten(one, tree)), in_dims=in_dims
            )(*given),
            leaves,
        )

    return output, pull_along


def _restrict(fn: Function, primals: Sequence[Tensor], wanted: Sequence[bool]) -> tuple[Function, list[Tensor]]:
    def restricted(*chosen: Tensor) -> Any:
        given = iter(chosen)
        return fn(*(next(given) if want else primal for primal, want in zip(primals, wanted, strict=True)))

    return restricted, [primal for primal, want in zip(primals, wanted, strict=True) if want]


@dataclass(frozen=True, eq=False)
class Equation:
    """The map of ``z = fn(z, *leaves)`` with ``z`` of shape ``(*batch, D)`` and any tensors as leaves.

    Samples are the batch entries; ``fn`` treats each on its own.
    """

    fn: Callable[..., Tensor]

    def __call__(self, z: Tensor, *leaves: Tensor) -> Tensor:
        """Evaluate ``fn(z, *leaves)``."""
        return self.fn(z, *leaves)

    def mapped(self, in_dims: Sequence[int | None], randomness: str) -> Equation:
        """Put one more batch dimension in front, which the leaves have where ``in_dims`` is 0."""
        mapped = torch.func.vmap(self.fn, in_dims=(0, *in_dims), randomness=randomness)

        def fn(z: Tensor, *leaves: Tensor) -> Tensor:
            with uncompiled():
                return mapped(z, *leaves)

        return Equation(fn)

    def linearised(self, z: Tensor, leaves: Sequence[Tensor], transposed: bool) -> Callable[[Tensor], Tensor]:
        """Prepare ``x -> J x`` or ``x -> J^T x``, with ``J = d fn / d z``, to be applied many times."""
        _, pull = _vjp(lambda state: self.fn(state, *leaves), z)
        if transposed:
            return lambda x: pull(x)[0]
        _, push = _vjp(lambda x: pull(x)[0], torch.zeros_like(z))
        return lambda x: push(x)[0]

    def jacobian_product(self, z: Tensor, leaves: Sequence[Tensor], x: Tensor, transposed: bool) -> Tensor:
        """Compute ``J x`` or ``J^T x``, differentiable in ``z``, ``leaves`` and ``x``."""
        return self.linearised(z, leaves, transposed)(x)
