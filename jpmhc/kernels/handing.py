"""A function of the streams that hands the streams on, so that their gradient comes back in one piece."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from jpmhc.kernels.precision import full_precision
from jpmhc.kernels.transforms import signed, transform_depth

Function = Callable[[Tensor, Tensor], Tensor]
Pull = Callable[[Tensor, Tensor, Tensor | None, Tensor], tuple[Tensor, Tensor]]


def hand_on(
    function: Function, pull: Pull, x: Tensor, other: Tensor, keep_result: bool = True
) -> tuple[Tensor, Tensor]:
    """Return ``x`` and ``function(x, other)``; use that x alone from there on.

    What comes back to the streams from later uses meets what comes back from this one inside its backward pass, which
    adds in place: autograd never holds two gradients of their size, nor adds them. Nothing is kept for backward but x,
    ``other`` and, if asked for, the result.

    Parameters
    ----------
    function : Callable
        ``function(x, other)``, in plain operations.
    pull : Callable
        ``pull(x, other, result, cotangent)``, its pullback: new tensors for the gradients of x, in the coefficients'
        dtype, and of ``other``.
    x : Tensor
        Streams, of any floating dtype.
    other : Tensor
        What they are combined with, in the dtype of the coefficients.
    keep_result : bool
        Whether ``pull`` is given the result, which is kept for it; None otherwise.

    Returns
    -------
    x : Tensor
        The same streams.
    result : Tensor

    Notes
    -----
    Backward passes that are to be differentiated again, ``torch.func``, forward mode, compilation and tracing go
    through ``function`` itself.
    """
    # A graph of jit.trace holds operations alone, a function with rules in it could not be saved.
    if transform_depth() or torch.compiler.is_compiling() or torch._C._is_tracing():
        return x, function(x, other)
    return _HandedOn.apply(x, other, function, pull, keep_result)


@signed
class _HandedOn(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, other: Tensor, function: Function, pull: Pull, keep_result: bool) -> tuple[Tensor, Tensor]:
        return x.view_as(x), function(x, other)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, other, ctx.function, ctx.pull, keep_result = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, other, output[1] if keep_result else None)

    @staticmethod
    def backward(ctx: Any, later: Tensor | None, cotangent: Tensor | None) -> tuple[Tensor | None, ...]:
        x, other, result = ctx.saved_tensors
        if cotangent is None:
            return later, None, None, None, None
        with full_precision(x.device):
            if torch.is_grad_enabled():
                # Of aliases, because the inputs may depend on one another, and a gradient must not take that way too.
                aliases = [x.view_as(x), other.view_as(other)]
                wanted = [alias for alias in aliases if alias.requires_grad]
                found = iter(torch.autograd.grad(ctx.function(*aliases), wanted, cotangent, create_graph=True))
                grad_x, grad_other = (next(found) if alias.requires_grad else None for alias in aliases)
                if grad_x is not None and later is not None:
                    grad_x = grad_x + later
                return grad_x, grad_other, None, None, None
            wide, grad_other = ctx.pull(x, other, result, cotangent)
            if later is not None:
                wide = wide.add_(later)
        return wide.to(x.dtype), grad_other, None, None, None
