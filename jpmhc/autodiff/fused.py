"""A value from a fused kernel with the derivatives of the plain expression that it stands for."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from jpmhc import kernels
from jpmhc.autodiff.equation import pullback, pushforward
from jpmhc.autodiff.precision import in_full_precision
from jpmhc.autodiff.transforms import leading_batch, tangent_rule, wants_rule

Plain = Callable[..., Any]


def fused(
    kernel: Callable[..., Any], plain: Plain, tensors: tuple[Tensor, ...], options: tuple[float | int, ...] = ()
) -> Any:
    """``plain(*tensors, *options)``, its value by a faster body of the kernel where there is one.

    Parameters
    ----------
    kernel : callable
        A primitive of `jpmhc.kernels` that computes the same.
    plain : callable
        In differentiable operations, with one tensor or a tuple of them as its result.
    tensors : tuple of Tensor, shape (..., n, m) each
        Their batch dimensions are broadcast.
    options : tuple of float or int
        Further arguments, constants.

    Returns
    -------
    Tensor or tuple of Tensor

    Notes
    -----
    Derivatives, of every order and mode, are those of `plain`, computed anew from the arguments, which is all that is
    saved. Where a derivative may be asked for and the kernel has no body of its own (other devices, larger matrices),
    and inside ``torch.compile``, `plain` runs as it is.
    """
    if torch.compiler.is_compiling():
        return plain(*tensors, *options)
    shape = tensors[0].shape
    if any(tensor.shape != shape and tensor.shape[:-2] != shape[:-2] for tensor in tensors):
        batch = torch.broadcast_shapes(*(tensor.shape[:-2] for tensor in tensors))
        tensors = tuple(tensor.expand(*batch, *tensor.shape[-2:]) for tensor in tensors)
    if not wants_rule(*tensors):
        return kernel(*tensors, *options)
    if kernels.choice(kernel.__name__, *tensors, *options).backend == "reference":
        return plain(*tensors, *options)
    return _Fused.apply(kernel, plain, options, *tensors)


@leading_batch
class _Fused(torch.autograd.Function):
    """``(kernel, plain, options, *tensors) -> plain(*tensors, *options)``."""

    @staticmethod
    def forward(kernel: Callable[..., Any], plain: Plain, options: tuple[float | int, ...], *tensors: Tensor) -> Any:
        return kernel(*tensors, *options)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _, plain, options, *tensors = inputs
        ctx.options = {"expression": lambda *given: plain(*given, *options)}
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    @in_full_precision
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        cotangent = gradients[0] if len(gradients) == 1 else gradients
        wanted = ctx.needs_input_grad[3:]
        return None, None, None, *pullback(ctx.options["expression"], ctx.saved_tensors, wanted, cotangent)

    @tangent_rule
    @in_full_precision
    def jvp(
        saved: tuple[Tensor, ...], _kernel: None, _plain: None, _options: None, *tangents: Tensor, expression: Plain
    ) -> Any:
        return pushforward(expression, saved, tangents)
