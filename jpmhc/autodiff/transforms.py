"""What an ``autograd.Function`` on a batch of matrices needs to stay right under nested ``torch.func`` transforms."""

from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_legacy_batchedtensor
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


def wants_rule(*args: Any) -> bool:
    """Whether a derivative may be asked for by a rule; of a graph of ``torch.jit.trace`` none can be.

    It holds operations alone, a function with rules in it could not be saved. Differentiated afterwards, they raise.
    """
    return wants_derivative(*args) and (not torch._C._is_tracing() or transform_depth() > 0)


def leading_batch(function: FunctionClass) -> FunctionClass:
    """Give a function whose tensors share their leading batch dimensions the ``vmap`` rule that adds one more.

    ``generate_vmap_rule = True`` would run the other rules on batched tensors, which ``unpack_dual`` refuses. Where
    nothing asks for a derivative, ``apply`` is the forward alone: torch binds arguments and makes a node for 60 us,
    which is more than the smaller maps take.
    """
    with_rules = signed(function).apply

    def apply(*args: Any, **options: Any) -> Any:
        return with_rules(*args, **options) if wants_rule(*args) else function.forward(*args, **options)

    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        def front(value: Any, dim: int | None) -> Any:
            if not isinstance(value, Tensor):
                return value
            return value.movedim(dim, 0) if dim is not None else value.expand(info.batch_size, *value.shape)

        result = function.apply(*map(front, args, in_dims))
        return result, 0 if isinstance(result, Tensor) else tuple(0 for _ in result)

    function.vmap = staticmethod(vmap)  # type: ignore[method-assign]
    function.apply = staticmethod(apply)  # type: ignore[method-assign]
    return takes_batched_gradients(function)


def takes_batched_gradients(function: FunctionClass) -> FunctionClass:
    """Let a function with a ``vmap`` rule be applied to the batches that ``is_grads_batched=True`` makes.

    These are not those of ``torch.vmap``, and no ``vmap`` rule is asked about them: torch runs the forward on such a
    batch and drops the graph of the function, so that with ``create_graph=True`` the derivative of a vectorised
    Jacobian lacks terms without a word (measured on 2.13). Here the rule is asked, and the function sees the tensors
    that are behind the batch, whose graph is kept.
    """
    apply = function.apply

    def by_rule(size: int, in_dims: tuple[int | None, ...], *args: Any) -> Any:
        return function.vmap(SimpleNamespace(batch_size=size, randomness="error"), in_dims, *args)[0]

    def apply_along(*args: Any, **options: Any) -> Any:
        return along_batched_gradients(by_rule, args) if batched_gradients(args) else apply(*args, **options)

    function.apply = staticmethod(apply_along)  # type: ignore[method-assign]
    return function


def batched_gradients(args: Iterable[Any]) -> bool:
    """Whether one of ``args`` is a batch of ``is_grads_batched=True``."""
    if torch.compiler.is_compiling():  # the tracer makes none, and cannot follow the question
        return False
    return any(isinstance(value, Tensor) and is_legacy_batchedtensor(value) for value in args)


def along_batched_gradients(mapped: Callable[..., Any], args: Sequence[Any]) -> Any:
    """``mapped(size, in_dims, *args)`` along the innermost axis of `batched_gradients`, of what is behind the batches.

    Its results, a tensor or some, have the axis in front, and come back as batches.
    """
    # The count of levels belongs to the thread that made them, and backward passes may run on others.
    for level in range(_MOST_LEVELS, 0, -1):
        if any(along := [_has_axis(arg, level) for arg in args]):
            break
    else:
        raise RuntimeError("is_grads_batched: found no axis of the batch; torch keeps its levels in another way")
    given = [_unbatched(arg, level) if has_axis else arg for arg, has_axis in zip(args, along, strict=True)]
    size = next(tensor.shape[0] for tensor, has_axis in zip(given, along, strict=True) if has_axis)
    result = mapped(size, tuple(0 if has_axis else None for has_axis in along), *given)
    if isinstance(result, Tensor):
        return torch._add_batch_dim(result, 0, level)
    return tuple(torch._add_batch_dim(part, 0, level) for part in result)


def _unbatched(tensor: Tensor, level: int, otherwise: int = 1) -> Tensor:
    """Return what is behind a batch, its axis of this level in front; one of another size if it has none."""
    return torch._remove_batch_dim(tensor, level, otherwise, 0)


def _has_axis(value: Any, level: int) -> bool:
    if not isinstance(value, Tensor) or not is_legacy_batchedtensor(value):
        return False
    return _unbatched(value, level, 1).shape[0] == _unbatched(value, level, 2).shape[0]


_MOST_LEVELS = 63  # of torch's batched tensors


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
