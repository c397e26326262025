"""What an ``autograd.Function`` on a batch of matrices needs to stay right under nested ``torch.func`` transforms."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from jpmhc.kernels.transforms import FunctionClass, signed, transform_depth, wants_derivative


def tangent_rule(rule: Callable[..., Tensor]) -> Any:
    """Turn ``rule(saved, *tangents)`` into the ``jvp`` of a function that calls ``ctx.save_for_forward``.

    Torch runs a ``jvp`` with forward mode switched off, so that the tangent of an outer level (``jvp`` of ``jvp``,
    ``jacfwd`` of ``jacfwd``) is dropped without a word: measured on 2.13, such second derivatives lack a term. Here
    forward mode is on, and the saved tensors come without their tangent at the rule's own level. Options
    that ``setup_context`` keeps in the dictionary ``ctx.options`` reach the rule as keywords.
    """

    @wraps(rule)
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        saved = tuple(forward_ad.unpack_dual(tensor).primal for tensor in ctx.saved_tensors)
        with forward_ad._set_fwd_grad_enabled(True):
            return rule(saved, *tangents, **ctx.options)

    return staticmethod(jvp)


def leading_batch(function: FunctionClass) -> FunctionClass:
    """Give a function whose tensors share their leading batch dimensions the ``vmap`` rule that adds one more.

    ``generate_vmap_rule = True`` would run the other rules on batched tensors, which ``unpack_dual`` refuses. Where
    nothing asks for a derivative, ``apply`` is the forward alone: torch binds arguments and makes a node for 60 us,
    which is more than the smaller maps take.
    """
    with_rules = signed(function).apply

    def apply(*args: Any, **options: Any) -> Any:
        return with_rules(*args, **options) if wants_derivative(*args) else function.forward(*args, **options)

    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        def front(value: Any, dim: int | None) -> Any:
            if not isinstance(value, Tensor):
                return value
            return value.movedim(dim, 0) if dim is not None else value.expand(info.batch_size, *value.shape)

        result = function.apply(*map(front, args, in_dims))
        return result, 0 if isinstance(result, Tensor) else tuple(0 for _ in result)

    function.vmap = staticmethod(vmap)  # type: ignore[method-assign]
    function.apply = staticmethod(apply)  # type: ignore[method-assign]
    return function


def differentiable() -> bool:
    """Whether what is computed now may be differentiated again, in reverse or in forward mode.

    Where it may not, a derivative rule calls a kernel, which has no derivative. A backward pass without
    ``create_graph`` runs with gradients switched off, and yet carries tangents where a dual level is open.
    """
    return torch.is_grad_enabled() or forward_ad._current_level >= 0


def traced_orders() -> int:
    """Highest order of derivative that can be asked of a function while ``torch.compile`` traces it.

    One for each transform at work, and one for a backward pass outside, which cannot be repeated.
    """
    return transform_depth() + 1
