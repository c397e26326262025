"""Cayley transform with a derivative that needs its result alone."""

from typing import Any

import torch
from torch import Tensor

from jpmhc import kernels
from jpmhc.autodiff.coefficients import as_matrices
from jpmhc.autodiff.options import check_count
from jpmhc.autodiff.precision import in_full_precision
from jpmhc.autodiff.transforms import differentiable, leading_batch, tangent_rule, traced_orders
from jpmhc.kernels.once import anchor
from jpmhc.kernels.precision import full_precision
from jpmhc.kernels.transforms import transform_depth


def cayley(raw: Tensor, *, step: float = 1.0, iterations: int | None = None) -> Tensor:
    r"""Rotation ``Q = (I - B)^-1 (I + B)`` with ``B = step W / 2`` and the skew matrix ``W = raw - raw^T``.

    Parameters
    ----------
    raw : Tensor, shape (..., n, n)
        Any real matrices. bfloat16 and float16 are computed in float32.
    step : float
        Scale of the skew matrix: ``Q = I + step W + O(step^2)``.
    iterations : int, optional
        If given, the published approximation ``Y <- I + B (I + Y)`` from ``Y = I + 2 B``, this many times (JPmHC: 2 at
        ``step=0.1``), in place of the exact rotation.

    Returns
    -------
    Tensor, shape (..., n, n)
        float32, or float64 if `raw` is. Without `iterations` orthogonal to round-off (7e-7 in float32, 2e-15 in
        float64, for entries up to 1e3 and n up to 16), with determinant 1 and never an eigenvalue -1.

    Raises
    ------
    TypeError
        If `raw` is not a floating-point tensor.
    ValueError
        If `raw` is not square or `iterations` is not an integer of at least 1.

    See Also
    --------
    orthogonality_residual : How far a matrix is from orthogonal.
    cayley_contraction : The number b that decides whether `iterations` are valid.

    Notes
    -----
    The derivative is ``dQ = step (Q + I) dW (Q + I) / 4``. It needs no solve, and nothing but the result is saved for
    backward. All orders and modes work; traced by ``torch.compile`` under a transform of ``torch.func`` they come
    from plain operations, whose memory is not bounded.

    The approximation is valid where ``b = ||B||_2 < 1`` and useful where b is small. After s iterations its distance
    to Q is ``2 b^(s+2) / sqrt(1 + b^2)`` in the spectral norm, and its defect ``||Y^T Y - I||`` is of order
    ``4 b^(s+2)``, for an odd s of order ``4 b^(s+3)``. With s = 2 the defect is 4e-4 at b = 0.1 and 0.19 at b = 0.5;
    beyond b = 1 it grows with every iteration. The derivative of the approximation is that of the equation at the
    approximation, not that of the iterations: at b = 0.25 and s = 2 it is five times closer to the derivative of Q.

    Cost: for n <= 4 a closed form, otherwise one LU factorisation; from n = 3 on one polish ``Q (3 I - Q^T Q) / 2``.
    Backward is two n x n products. Large entries of B push eigenvalues towards -1, where the derivative fades.

    References
    ----------
    Li, Fuxin and Todorovic, "Efficient Riemannian optimization on the Stiefel manifold via the Cayley transform", 2020.

    Examples
    --------
    >>> import torch
    >>> from jpmhc import autodiff
    >>> raw = torch.tensor([[0.0, -1.0], [0.0, 0.0]])
    >>> autodiff.cayley(raw)  # a rotation by 2 arctan(1/2)
    tensor([[ 0.6000, -0.8000],
            [ 0.8000,  0.6000]])
    """
    raw = as_matrices("raw", raw)
    if raw.shape[-1] != raw.shape[-2]:
        raise ValueError(f"raw: expected square matrices (..., n, n), got {tuple(raw.shape)}")
    if iterations is not None:
        check_count("iterations", iterations)
    arguments = raw, float(step), iterations
    if not torch.compiler.is_compiling():
        return _Cayley.apply(*arguments, None)
    return _attached(*arguments) if transform_depth() else _ReverseCayley.apply(*arguments, anchor(raw))


def _solution(raw: Tensor, step: float, iterations: int | None) -> Tensor:
    if iterations is None:
        return kernels.cayley_forward(raw, step)
    return kernels.cayley_iterated(raw, step, iterations)


class _ReverseCayley(torch.autograd.Function):
    """``Q(raw)`` with a pullback alone, all that tracing without transforms can use."""

    @staticmethod
    def forward(raw: Tensor, step: float, iterations: int | None, _anchor: Tensor | None) -> Tensor:
        return _solution(raw, step, iterations)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.options = {"step": inputs[1]}
        ctx.save_for_backward(output)
        ctx.save_for_forward(output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (rotation,) = ctx.saved_tensors
        return kernels.cayley_adjoint(rotation, gradient, ctx.options["step"]), None, None, None


@leading_batch
class _Cayley(_ReverseCayley):
    """``Q(raw)``, from which ``dQ = step (Q + I) dW (Q + I) / 4``."""

    @staticmethod
    @in_full_precision
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        if not differentiable():
            return _ReverseCayley.backward(ctx, gradient)
        e = _plus_identity(*ctx.saved_tensors).mT
        h = ctx.options["step"] / 4 * (e @ gradient @ e)
        return h - h.mT, None, None, None

    @tangent_rule
    @in_full_precision
    def jvp(saved: tuple[Tensor], tangent: Tensor, *_: None, step: float) -> Tensor:
        e = _plus_identity(*saved)
        return step / 4 * (e @ (tangent - tangent.mT) @ e)


def _attached(raw: Tensor, step: float, iterations: int | None) -> Tensor:
    """`_Cayley` in plain operations, for tracing under transforms: a constant and a correction of value zero.

    ``(Q + I)^-1 = (I - B) / 2``, so a change D of B makes ``Q + I`` into ``(I - X)^-1 (Q + I)`` with
    ``X = (Q + I) D / 2``. As X is zero, its k-th power affects derivatives from the k-th order on alone.
    """
    constant = raw.detach()
    rotation = _solution(constant, step, iterations)
    with full_precision(raw.device):
        change = raw - constant
        # Traced under vmap, the forward-mode rule of a product fails unless both factors have a tangent, be it zero.
        e = _plus_identity(rotation) + 0 * change
        x = (step / 4) * (e @ (change - change.mT))
        term = e
        result = rotation
        for _ in range(traced_orders()):
            term = x @ term
            result = result + term
    return result


def _plus_identity(matrix: Tensor) -> Tensor:
    return matrix + torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
