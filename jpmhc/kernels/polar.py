"""Polar factor: the nearest matrix with orthonormal columns, with its adjoint.

All functions work on any batch of m x n matrices with m >= n and full column rank.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from jpmhc.kernels.batches import inv
from jpmhc.kernels.elementary import is_captured
from jpmhc.kernels.elimination import FEW, inverse, orthonormal_columns
from jpmhc.kernels.primitive import choice, primitive
from jpmhc.kernels.reading import can_read

NEWTON_STEPS = 10  # 7 reach round-off at condition number 1e14 (measured)
CUBIC_STEPS = 8
_FEW_NUMBERS = 512  # of which singular vectors take no longer than the calls of anything else
_POLISHED = 16  # columns; singular vectors of more are within 2e-6 in float32 (measured), and a step is slow
_TALL, _ROUND = 2, 1e-2  # rows a column, and the ratio of eigenvalues, from which on the Gram matrix will do
NEAR = 0.9  # Frobenius distance of X^T X from I within which the cubic step converges


@primitive("polar_forward")
def polar_forward(matrix: Tensor) -> Tensor:
    """Compute the factor U of ``matrix = U H`` with orthonormal columns and symmetric positive definite H.

    Parameters
    ----------
    matrix : Tensor, shape (..., m, n)
        float32 or float64, m >= n.

    Returns
    -------
    Tensor, shape (..., m, n)
        Orthonormal to round-off. Where the columns are linearly dependent, to round-off or exactly, the factor is not
        unique and the result is arbitrary, orthonormal or not, or NaN.
    """
    if not matrix.shape[-1]:
        return matrix.clone()
    if can_read(matrix):
        return _by_reading(matrix)
    if matrix.shape[-1] > FEW and not is_captured(matrix):
        return polar_newton(matrix)
    return _by_elimination(matrix)


def _by_elimination(matrix: Tensor) -> Tensor:
    """`polar_newton` without a library's factorisations."""
    scaled = matrix / _largest(matrix)
    q = orthonormal_columns(scaled)
    return _newton(q, q.mT @ scaled, inverse)


def _by_reading(matrix: Tensor) -> Tensor:
    """`polar_forward` where looking at the data costs nothing: few products near a solution, else eigenvectors.

    The step ``X (15 I - 10 G + 3 G^2) / 8`` with ``G = X^T X`` takes a singular value ``1 + e`` to ``1 + O(e^3)``.
    """
    few = matrix.numel() <= _FEW_NUMBERS
    # A column of another length is reason enough, and the first one tells as a rule.
    if not few and all(_largest_entry(some.square().sum(-2) - 1) < NEAR for some in (matrix[..., :1], matrix)):
        near = _near(matrix)
        if near is not None:
            return near
    usable = matrix
    finite = matrix.sum().isfinite()  # in one pass; a sum of large numbers may not be, and then the long way is gone
    if not bool(finite):
        finite = matrix.isfinite().all(-1, keepdim=True).all(-2, keepdim=True)
        usable = torch.where(finite, matrix, torch.ones_like(matrix))
    if few:
        x = _by_singular_vectors(usable)
    else:
        tall = matrix.shape[-2] >= _TALL * matrix.shape[-1]
        x = _by_gram(usable) if tall else _by_newton(usable)
    return x if usable is matrix else torch.where(finite, x, torch.nan)


def _by_newton(matrix: Tensor) -> Tensor:
    """Go by `newton_polar` where that is more than the reference, which singular vectors outrun."""
    square = matrix.shape[-2] == matrix.shape[-1]
    if choice("newton_polar", matrix if square else matrix[..., : matrix.shape[-1], :]).backend == "reference":
        return _by_singular_vectors(matrix)
    if square:
        return _polished(newton_polar(matrix))
    q, r = torch.linalg.qr(matrix)
    return _polished(q @ newton_polar(r))


def _polished(x: Tensor) -> Tensor:
    flat = x.view(-1, *x.shape[-2:])
    return torch.baddbmm(flat, flat, flat.mT @ flat, beta=1.5, alpha=-0.5).view(x.shape)


def _by_singular_vectors(matrix: Tensor) -> Tensor:
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    x: Tensor = u @ vh
    return x + (x - x @ (x.mT @ x)) / 2 if matrix.shape[-1] <= _POLISHED else x


def _by_gram(matrix: Tensor) -> Tensor:
    """``X G^(-1/2)`` with ``G = X^T X`` and a Newton-Schulz step, half of the time of singular vectors.

    Its error grows with the square of the condition number; a matrix of more than 10 takes the other way, as does one
    whose squares are out of range.
    """
    gram = matrix.mT @ matrix
    if not bool(gram.isfinite().all()):  # squares overflow where the numbers do not
        return _by_singular_vectors(matrix)
    values, vectors = torch.linalg.eigh(gram)
    x = matrix @ ((vectors * values.rsqrt().unsqueeze(-2)) @ vectors.mT)
    step = (x.mT @ x).mul_(-0.5)
    step.diagonal(dim1=-2, dim2=-1).add_(1.5)
    x = x @ step
    info = torch.finfo(matrix.dtype)
    # Squares may underflow, too.
    steep = ~(values[..., 0] > _ROUND * values[..., -1].clamp_min(info.tiny / info.eps**2))
    if bool(steep.any()):
        x[steep] = _by_singular_vectors(matrix[steep])
    return x


def _near(x: Tensor) -> Tensor | None:
    """`polar_forward` by products alone, where the singular values are close enough to 1."""
    for _ in range(CUBIC_STEPS):
        defect = x.mT @ x
        defect.diagonal(dim1=-2, dim2=-1).sub_(1)
        size = _largest_norm(defect)
        if size < torch.finfo(x.dtype).eps ** 0.5:
            return x - x @ defect.div_(2)
        square = defect @ defect
        # Two bounds of the largest singular value of the defect; the second is the sharper one of a large matrix.
        if not (size < NEAR or _largest_norm(square) < NEAR**2):
            break
        step = square.mul_(3 / 8).sub_(defect, alpha=0.5)
        step.diagonal(dim1=-2, dim2=-1).add_(1)
        x = x @ step
    return None


def _largest_norm(matrix: Tensor) -> float:
    return matrix.flatten(-2).norm(dim=-1).amax().item()


def _largest_entry(values: Tensor) -> float:
    return values.abs_().amax().item()


def polar_newton(matrix: Tensor) -> Tensor:
    """Compute `polar_forward` in plain operations, differentiable as they are.

    Notes
    -----
    Newton's iteration ``X <- (g X + X^-T / g) / 2`` on the triangular factor, with Higham's scaling
    ``g = (|X^-1|_F / |X|_F)^(1/2)``. It converges quadratically at any spectrum and, unlike a singular value
    decomposition, never waits for the device; a fixed number of steps reaches round-off. A Newton-Schulz step ends it.
    `polar_forward` of few columns on a GPU is the same without a library's factorisations.
    """
    # The factor does not depend on the scale, but sums of squares overflow at half the range of exponents.
    q, x = torch.linalg.qr(matrix / _largest(matrix.detach()))
    return _newton(q, x, inv)


@primitive("newton_polar")
def newton_polar(matrix: Tensor) -> Tensor:
    """Compute the polar factor of square matrices by Newton's iteration alone.

    Parameters
    ----------
    matrix : Tensor, shape (..., n, n)
        float32 or float64; infinity or NaN come of singular ones.

    Returns
    -------
    Tensor, shape (..., n, n)
        Singular values within the root of machine precision of 1; a Newton-Schulz step takes them to round-off.
    """
    return _iterated(matrix / _largest(matrix), inverse)


def _newton(q: Tensor, x: Tensor, inverse: Callable[[Tensor], Tensor]) -> Tensor:
    """Return q times the polar factor of x."""
    u = q @ _iterated(x, inverse)
    return u + (u - u @ (u.mT @ u)) / 2


def _iterated(x: Tensor, inverse: Callable[[Tensor], Tensor]) -> Tensor:
    for _ in range(NEWTON_STEPS):
        other = inverse(x).mT
        scale = (_norm(other) / _norm(x)).sqrt()
        x = (scale * x + other / scale) / 2
    return x


@primitive("polar_adjoint")
def polar_adjoint(matrix: Tensor, factor: Tensor, cotangent: Tensor) -> Tensor:
    """Apply the derivative ``dU / dmatrix``, a symmetric map: the pullback and the pushforward at once.

    Parameters
    ----------
    matrix, factor : Tensor, shape (..., m, n)
        The matrix and its factor U.
    cotangent : Tensor, shape (..., m, n)
        G, a gradient with respect to U (or a tangent of the matrix).

    Returns
    -------
    Tensor, shape (..., m, n)
        ``U X + (G - U U^T G) H^-1`` with ``H = U^T matrix`` and ``H X + X H = U^T G - G^T U``.
    """
    if not factor.shape[-1]:
        return torch.empty_like(factor)
    symmetric = factor.mT @ matrix
    symmetric = (symmetric + symmetric.mT) / 2
    inner = factor.mT @ cotangent
    tall = factor.shape[-2] > factor.shape[-1]
    if can_read(symmetric):
        values, vectors = _eigenvectors(symmetric)
        result = factor @ _by_eigenvectors(values, vectors, inner - inner.mT)
        inverted = (vectors / values.unsqueeze(-2)) @ vectors.mT if tall else None
    else:
        result = factor @ sylvester(symmetric, inner - inner.mT)
        inverted = inverse(symmetric) if tall else None
    if inverted is not None:
        result += (cotangent - factor @ inner) @ inverted
    return result


@primitive("sylvester")
def sylvester(symmetric: Tensor, right_side: Tensor) -> Tensor:
    """Solve ``H X + X H = C`` for symmetric positive definite H.

    Parameters
    ----------
    symmetric, right_side : Tensor, shape (..., n, n)
        H and C.

    Returns
    -------
    Tensor, shape (..., n, n)
        X; finite at equal eigenvalues of H, where the eigenvectors have no derivative.

    Notes
    -----
    On a CPU in the basis of the eigenvectors of H. An eigenvalue routine would wait for other devices; there it is an
    iteration with inverses, which takes 2 to 19 times as long on a CPU.
    """
    if not symmetric.shape[-1]:
        return torch.empty_like(symmetric)
    if can_read(symmetric):
        return _by_eigenvectors(*_eigenvectors(symmetric), right_side)
    return _by_sign(symmetric, right_side)


def _by_sign(symmetric: Tensor, right_side: Tensor) -> Tensor:
    """`sylvester` by the matrix sign iteration on ``[[H, -C], [0, -H]]`` (Roberts, 1980).

    Newton's iteration of `polar_newton` on H drags C along to ``2 X``.
    """
    size = _largest(symmetric)
    h, c = symmetric / size, right_side / size
    for _ in range(NEWTON_STEPS):
        other = inverse(h)
        scale = (_norm(other) / _norm(h)).sqrt()
        h = (scale * h + other / scale) / 2
        c = (scale * c + other @ c @ other / scale) / 2
    return c / 2


def _eigenvectors(symmetric: Tensor) -> tuple[Tensor, Tensor]:
    """Return eigenvalues (..., n), NaN where the matrix is not finite, and eigenvectors in columns (..., n, n)."""
    if bool(symmetric.sum().isfinite()):  # as in `_by_reading`
        values, vectors = torch.linalg.eigh(symmetric)
    else:
        finite = symmetric.isfinite().all(-1, keepdim=True).all(-2, keepdim=True)
        values, vectors = torch.linalg.eigh(torch.where(finite, symmetric, 0.0))
        values = torch.where(finite.squeeze(-1), values, torch.nan)
    return values, vectors


def _by_eigenvectors(values: Tensor, vectors: Tensor, right_side: Tensor) -> Tensor:
    """`sylvester` for the matrix of these eigenvalues and eigenvectors."""
    turned = vectors.mT @ right_side @ vectors
    half = values / 2  # sums of two may overflow
    return vectors @ turned.div_(half.unsqueeze(-1) + half.unsqueeze(-2)).div_(2) @ vectors.mT


def _largest(matrix: Tensor) -> Tensor:
    return matrix.abs().amax((-2, -1), keepdim=True)


def _norm(matrix: Tensor) -> Tensor:
    return matrix.square().sum((-2, -1), keepdim=True).sqrt()
