"""Rotations by pairs of quaternions, whose derivative needs the pairs alone."""

from typing import Any

import torch
from torch import Tensor

from jpmhc import kernels
from jpmhc.autodiff.coefficients import as_matrices
from jpmhc.autodiff.equation import pullback, pushforward
from jpmhc.autodiff.precision import in_full_precision
from jpmhc.autodiff.transforms import differentiable, leading_batch, tangent_rule


def quaternion(pair: Tensor) -> Tensor:
    """Rotation of four dimensions ``M x = p x q / (|p| |q|)``, x read as a quaternion.

    Parameters
    ----------
    pair : Tensor, shape (..., 2, 4)
        Quaternions p and q of any length. bfloat16 and float16 are computed in float32.

    Returns
    -------
    Tensor, shape (..., 4, 4)
        float32, or float64 if `pair` is; orthogonal to round-off, of determinant 1. Every rotation of four dimensions
        is one of these, and (p, q) and (-p, -q) make the same.

    Raises
    ------
    TypeError
        If `pair` is not a tensor of floating-point numbers.
    ValueError
        If it is not of shape (..., 2, 4).

    Notes
    -----
    Derivatives of all orders and modes work; saved for backward is the pair alone. A quaternion of zeros counts as 1,
    with a derivative of zero; near it gradients grow like the inverse length. Costs two products of 4 x 4 matrices of
    eight different numbers; backward twice that.

    References
    ----------
    oHC, arXiv 2609.02672, mixes four residual streams so.

    Examples
    --------
    >>> import torch
    >>> from jpmhc import autodiff
    >>> autodiff.quaternion(torch.tensor([[2.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]]))  # x i
    tensor([[ 0., -1.,  0.,  0.],
            [ 1.,  0.,  0.,  0.],
            [ 0.,  0.,  0.,  1.],
            [ 0.,  0., -1.,  0.]])
    """
    pair = as_matrices("pair", pair)
    if pair.shape[-2:] != (2, 4):
        raise ValueError(f"pair: expected shape (..., 2, 4), got {tuple(pair.shape)}")
    if torch.compiler.is_compiling():
        return kernels.plain_quaternion(pair)
    return _Quaternion.apply(pair)


@leading_batch
class _Quaternion(torch.autograd.Function):
    @staticmethod
    def forward(pair: Tensor) -> Tensor:
        return kernels.quaternion_forward(pair)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.options = {}
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    @in_full_precision
    def backward(ctx: Any, gradient: Tensor) -> Tensor | None:
        (pair,) = ctx.saved_tensors
        if not differentiable():
            return kernels.quaternion_adjoint(pair, gradient)
        return pullback(kernels.plain_quaternion, (pair,), (True,), gradient)[0]

    @tangent_rule
    @in_full_precision
    def jvp(saved: tuple[Tensor], tangent: Tensor) -> Tensor:
        result: Tensor = pushforward(kernels.plain_quaternion, saved, (tangent,))
        return result
