"""Polar factor with a derivative that is finite at equal singular values."""

from typing import Any

import torch
from torch import Tensor

from jpmhc import kernels
from jpmhc.autodiff.coefficients import as_matrices
from jpmhc.autodiff.precision import in_full_precision
from jpmhc.autodiff.transforms import differentiable, leading_batch, tangent_rule
from jpmhc.kernels.batches import inv
from jpmhc.kernels.once import anchor
from jpmhc.kernels.precision import full_precision
from jpmhc.kernels.transforms import transform_depth


def polar(matrix: Tensor) -> Tensor:
    r"""Nearest matrix with orthonormal columns, the factor U of ``matrix = U H`` with symmetric positive definite H.

    Parameters
    ----------
    matrix : Tensor, shape (..., m, n)
        Of full rank. bfloat16 and float16 are computed in float32. If ``m < n`` the rows of the result are orthonormal.

    Returns
    -------
    Tensor, shape (..., m, n)
        float32, or float64 if `matrix` is. Orthonormal to round-off, whatever the spectrum; the error of U itself is
        round-off times the largest over the smallest singular value. Where the columns of `matrix` (its rows, if
        ``m < n``) are linearly dependent, exactly or to round-off, the nearest matrix is not unique: the result is
        arbitrary, orthonormal or not, or NaN.

    Raises
    ------
    TypeError
        If `matrix` is not a floating-point tensor.
    ValueError
        If it has fewer than two dimensions or an empty matrix.

    See Also
    --------
    orthogonality_residual : How far a matrix is from orthonormal columns.

    Notes
    -----
    ``dU = U X + (I - U U^T) dA H^-1`` with the Sylvester equation ``H X + X H = U^T dA - dA^T U``, whose coefficients
    are sums of two singular values: where singular values are equal, the derivative of a singular value decomposition
    divides by zero and this one does not, nor do its own derivatives. The map is symmetric, so it is the pullback too.
    Saved for backward are the argument and the result. All orders and modes work; traced by ``torch.compile`` under a
    transform of ``torch.func`` they come from plain operations, whose memory is not bounded.

    Forward is a QR factorisation and ten scaled Newton steps, backward one such iteration for the Sylvester equation;
    neither waits for the device. On a CPU, where looking costs nothing, a few products suffice near an orthonormal
    matrix, and elsewhere a singular value decomposition is faster.

    References
    ----------
    Higham, "Computing the polar decomposition, with applications", 1986.

    Examples
    --------
    >>> import torch
    >>> from jpmhc import autodiff
    >>> autodiff.polar(torch.tensor([[0.0, -3.0], [2.0, 0.0]])).round(decimals=4) + 0
    tensor([[ 0., -1.],
            [ 1.,  0.]])
    """
    matrix = as_matrices("matrix", matrix)
    if matrix.shape[-2] < matrix.shape[-1]:
        return polar(matrix.mT).mT
    if not torch.compiler.is_compiling():
        return _Polar.apply(matrix, None)
    if not transform_depth():
        return _ReversePolar.apply(matrix, anchor(matrix))
    with full_precision(matrix.device):
        # Newton's iteration carries derivatives along; they converge as it does.
        return kernels.polar_newton(matrix)


class _ReversePolar(torch.autograd.Function):
    """``U(A)`` with a pullback alone, all that tracing without transforms can use."""

    @staticmethod
    def forward(matrix: Tensor, _anchor: Tensor | None) -> Tensor:
        return kernels.polar_forward(matrix)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.options = {}
        ctx.save_for_backward(inputs[0], output)
        ctx.save_for_forward(inputs[0], output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        matrix, factor = ctx.saved_tensors
        return kernels.polar_adjoint(matrix, factor, gradient), None


@leading_batch
class _Polar(_ReversePolar):
    """``U(A)``, from which ``dU = U X + (I - U U^T) dA H^-1`` with ``H X + X H = U^T dA - dA^T U``."""

    @staticmethod
    @in_full_precision
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        if not differentiable():
            return _ReversePolar.backward(ctx, gradient)
        matrix, factor = ctx.saved_tensors
        return _derivative(matrix, factor, gradient), None

    @tangent_rule
    @in_full_precision
    def jvp(saved: tuple[Tensor, Tensor], tangent: Tensor, *_: None) -> Tensor:
        matrix, factor = saved
        return _derivative(matrix, factor, tangent)


def _derivative(matrix: Tensor, factor: Tensor, direction: Tensor) -> Tensor:
    """`kernels.polar_adjoint` in operations that can be differentiated again."""
    product = factor.mT @ matrix
    symmetric = (product + product.mT) / 2
    inner = factor.mT @ direction
    result = factor @ _Sylvester.apply(symmetric, inner - inner.mT)
    if factor.shape[-2] > factor.shape[-1]:
        # Not solve_ex: its jvp lacks a term when forward mode is nested (measured on torch 2.13).
        result = result + (direction - factor @ inner) @ inv(symmetric)
    return result


@leading_batch
class _Sylvester(torch.autograd.Function):
    """X with ``H X + X H = C``, so that ``dX`` solves it with ``dC - dH X - X dH``."""

    @staticmethod
    def forward(symmetric: Tensor, right_side: Tensor) -> Tensor:
        return kernels.sylvester(symmetric, right_side)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.options = {}
        ctx.save_for_backward(inputs[0], output)
        ctx.save_for_forward(inputs[0], output)

    @staticmethod
    @in_full_precision
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        symmetric, solution = ctx.saved_tensors
        weight = _Sylvester.apply(symmetric, gradient)
        return -(weight @ solution.mT + solution.mT @ weight), weight

    @tangent_rule
    @in_full_precision
    def jvp(saved: tuple[Tensor, Tensor], symmetric_tangent: Tensor, right_side_tangent: Tensor) -> Tensor:
        symmetric, solution = saved
        change = symmetric_tangent @ solution + solution @ symmetric_tangent
        return _Sylvester.apply(symmetric, right_side_tangent - change)
