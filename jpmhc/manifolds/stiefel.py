"""Matrices with orthonormal columns, under the canonical or the Euclidean metric."""

import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from jpmhc import autodiff
from jpmhc.kernels.batches import determinant_sign
from jpmhc.kernels.primitive import primitive
from jpmhc.manifolds import steps
from jpmhc.manifolds.algebra import (
    common_shape,
    divided_exponential,
    exponential,
    frobenius,
    identity,
    norm,
    polish,
    skew,
    sum_of_products,
    symmetric,
)
from jpmhc.manifolds.angles import angle_vector
from jpmhc.manifolds.base import Manifold
from jpmhc.manifolds.lift import canonical_logarithm
from jpmhc.manifolds.special_orthogonal import SpecialOrthogonal
from jpmhc.manifolds.sphere import Sphere

_SHOTS = 60
_MOST_PRODUCTS = 1024
_MISSED = 1e3  # tolerances, by how much a geodesic may miss its end
_SLACK = 1e-3  # of a length, far above round-off
_NEVER_WINDS = 1.0  # a length well below the injectivity radius of both metrics
_Carry = Callable[[Tensor], Tensor]
_LEAST_SCALE = 0.05  # of the part of a tangent vector that leaves the span of x


class Stiefel(Manifold):
    r"""Matrices ``x`` of shape n x p, n >= p, with ``x^T x = I``.

    Parameters
    ----------
    metric : {"canonical", "euclidean"}
        A tangent vector is ``u = x A + N`` with skew A and ``x^T N = 0``. Its squared length is ``|A|^2 / 2 + |N|^2``
        or ``|A|^2 + |N|^2``.
    retraction : {"cayley", "qr", "polar", "exp"}, optional
        What `retr` is; ``"cayley"`` for the canonical and ``"polar"`` for the Euclidean metric by default, which are
        the two of second order.

    Notes
    -----
    ========== ======================================================= ============ =================================
    retraction map                                                     second order transport of `retr_transp`
    ========== ======================================================= ============ =================================
    cayley     ``(2 x + N) (I - A/2 + N^T N/4)^-1 - x``                canonical    the same rotation, isometric
    polar      nearest point to ``x + u``                              euclidean    projection
    qr         orthonormalised columns of ``x + u``                    neither      projection
    exp        exponential map of the metric                           both         the rotations of it, isometric
    ========== ======================================================= ============ =================================

    The Cayley retraction is ``(I - W/2)^-1 (I + W/2) x`` with the n x n skew W that has ``W x = u`` (Wen and Yin,
    2013). Eliminating one block of their 2p x 2p system leaves the p x p one above, whose symmetric part is at least
    I, so it is never singular. Retractions end with a Newton-Schulz step or orthonormalise anew: nothing drifts.

    Cost: O(n p^2) for all maps. `logmap` has a formula for one column and for square matrices. Otherwise it iterates,
    30 to 230 evaluations, each a logarithm of matrices of up to 2p rows under the canonical metric, where it finds a
    geodesic for all but exceptional pairs (`jpmhc.manifolds.lift`); for distances up to about 1 under the Euclidean
    one, where it shoots until the geodesic hits `y`. NaN marks a matrix that was not hit, or whose geodesic is longer
    than a way that is known. A result shorter than the injectivity radius, at least 2.8 (canonical) and pi (Euclidean),
    is the shortest; a longer one may not be. Derivatives solve with the Jacobian of the exponential, in ``2 p^2 + p``
    products or fewer, 1024 at most, and warn where that ends above its tolerance. Under ``torch.compile`` the solution
    is one operation; the derivative forms the n p x n p Jacobian there, and tracing it under a transform still takes
    minutes.

    `expmap` is NaN for vectors longer than 60 to 90: its series is doubled no further. `random` is uniform (Haar);
    `origin` holds the first p columns of the identity.

    References
    ----------
    Edelman, Arias and Smith, "The geometry of algorithms with orthogonality constraints", 1998. Wen and Yin, "A
    feasible method for optimization with orthogonality constraints", 2013. Zimmermann and Hueper, "Computing the
    Riemannian logarithm on the Stiefel manifold", 2022. Rentmeesters, "Algorithms for data fitting on some common
    homogeneous spaces", 2013, and Zimmermann and Stoye, "The injectivity radius of the compact Stiefel manifold under
    the Euclidean metric", 2024: the radii.

    Examples
    --------
    >>> import torch
    >>> from jpmhc import manifolds
    >>> stiefel = manifolds.Stiefel()
    >>> x = stiefel.origin(3, 2, dtype=torch.float64)
    >>> u = stiefel.proju(x, torch.ones(3, 2, dtype=torch.float64))
    >>> y = stiefel.retr(x, u)
    >>> torch.dist(y.mT @ y, torch.eye(2, dtype=torch.float64)) < 1e-15
    tensor(True)
    """

    name = "Stiefel"
    shape_pattern = "(..., n, p) with n >= p >= 1"
    metrics: ClassVar[tuple[str, ...]] = ("canonical", "euclidean")
    retractions: ClassVar[tuple[str, ...]] = ("cayley", "qr", "polar", "exp")

    def __init__(self, metric: str = "canonical", retraction: str | None = None) -> None:
        super().__init__()
        self.metric = self._choose("metric", metric, self.metrics)
        if retraction is None:
            retraction = "cayley" if metric == "canonical" else "polar"
        self.retraction = self._choose("retraction", retraction, self.retractions)
        self.beta = 0.5 if metric == "canonical" else 1.0  # weight of |A|^2 in the metric
        second = ("exp", "cayley" if metric == "canonical" else "polar")
        self.retraction_order = 2 if retraction in second else 1
        self.isometric_transport = self.reversible = retraction in ("cayley", "exp")

    def accepts(self, shape: tuple[int, ...]) -> bool:
        """Whether ``n >= p >= 1``."""
        return len(shape) >= 2 and shape[-2] >= shape[-1] >= 1

    def point_error(self, x: Tensor) -> Tensor:
        """Largest entry of ``|x^T x - I|``."""
        return (x.mT @ x - identity(x)).abs().amax((-2, -1))

    def tangent_error(self, x: Tensor, u: Tensor) -> Tensor:
        """Largest entry of the symmetric part of ``x^T u``."""
        return symmetric(x.mT @ u).abs().amax((-2, -1))

    def dim(self, shape: tuple[int, ...]) -> int:
        """``n p - p (p + 1) / 2``."""
        n, p = shape[-2:]
        return n * p - p * (p + 1) // 2

    def projx(self, x: Tensor) -> Tensor:
        """Nearest point, the polar factor; NaN where the columns are dependent."""
        return autodiff.polar(x)

    def proju(self, x: Tensor, u: Tensor) -> Tensor:
        """``u - x sym(x^T u)``, the nearest tangent vector in both metrics."""
        return steps.tangent_part(x, u, 1.0, -0.5, -0.5)

    def egrad2rgrad(self, x: Tensor, u: Tensor) -> Tensor:
        """``u - x u^T x`` (canonical) or ``u - x sym(x^T u)`` (Euclidean)."""
        half = 0.5 / self.beta
        return steps.tangent_part(x, u, 1.0, half - 1, -half)

    def ehess2rhess(self, x: Tensor, egrad: Tensor, ehess: Tensor, u: Tensor) -> Tensor:
        """Riesz representation of ``v -> <ehess, v> + <egrad, Q(u, v)>``, geodesics having ``x'' = Q(x', x')``.

        ``Q(u, v) = -x sym(u^T v) + (1 - beta) (N_u A_v + N_v A_u)`` by differentiating `expmap` twice.
        """
        a, normal = self._split(x, u)
        e = x.mT @ egrad
        curvature = x @ (normal.mT @ egrad) - (egrad - x @ e) @ a
        return self.egrad2rgrad(x, ehess - u @ symmetric(e) + (1 - self.beta) * curvature)

    def inner(self, x: Tensor, u: Tensor, v: Tensor | None = None, *, keepdim: bool = False) -> Tensor:
        """``<u, v> - (1 - beta) <x^T u, x^T v>`` with beta 1/2 (canonical) or 1 (Euclidean), one number a matrix."""
        result = frobenius(x, u, u if v is None else v, keepdim=keepdim)
        if x.shape[-2] == x.shape[-1]:
            return result if self.beta == 1.0 else self.beta * result  # x^T keeps products
        if self.beta != 1.0:
            xu = x.mT @ u
            across = xu if v is None else x.mT @ v
            result = result - (1 - self.beta) * (xu * across).sum((-2, -1), keepdim=keepdim)
        return result

    def retr(self, x: Tensor, u: Tensor) -> Tensor:
        """Move from `x` along `u` by the retraction of this manifold."""
        if self.retraction == "exp":
            return self.expmap(x, u)
        if self.retraction == "cayley":
            return steps.cayley_retraction(x, u)
        return autodiff.polar(x + u) if self.retraction == "polar" else steps.orthonormalised(x + u)

    def retr_transp(self, x: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """`retr` and the vector `v` at `x` carried along, at little more than the cost of `retr` for Cayley.

        The Cayley rotation Q, with ``retr(x, u) = Q x``, takes ``v = x C + M`` to
        ``Q v = y C + M - Z N^T M / 2`` with ``y = Z - x``.
        """
        if self.retraction == "exp":
            return self.expmap_transp(x, u, v)
        if self.retraction != "cayley":
            y = self.retr(x, u)
            return y, self.transp(x, y, v)
        return steps.cayley_transport(x, u, v)

    def transp(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """Projection onto the tangent space at `y`."""
        moved = self.proju(y, v)
        return moved if moved.shape == x.shape else moved.expand(torch.broadcast_shapes(moved.shape, x.shape))

    def expmap(self, x: Tensor, u: Tensor) -> Tensor:
        """Exponential map of the metric, a function of A and ``N^T N``, smooth where N has dependent columns."""
        end, _, _ = self._geodesic(x, u)
        return polish(end())

    def expmap_transp(self, x: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """`expmap` and `v` carried along by the two rotations it is made of: an isometry of both metrics."""
        end, forth, _ = self._geodesic(x, u)
        return polish(end()), forth(v)

    def logmap(self, x: Tensor, y: Tensor) -> Tensor:
        """Tangent vector with ``expmap(x, u) = y``, the shortest one as the notes of the class say, or NaN."""
        shape = common_shape(x, y)
        x, y = x.expand(shape), y.expand(shape)
        if shape[-2] == shape[-1]:
            return SpecialOrthogonal().logmap(x, y)
        if shape[-1] == 1:
            return Sphere().logmap(x.squeeze(-1), y.squeeze(-1)).unsqueeze(-1)

        # One operation finds the vector, which solves the equation; what solves it again only carries the derivative.
        found = _logarithm(x.detach(), y.detach(), self.metric == "canonical")
        known = found.isfinite().all(-1, keepdim=True).all(-2, keepdim=True)
        n, p = int(shape[-2]), int(shape[-1])
        if torch.compiler.is_compiling():
            options: dict[str, Any] = {"check": "none", "adjoint": autodiff.Implicit(autodiff.Dense())}
        else:
            # The Jacobian is one matrix on 2p rows and the same p x p one on all rows across: no more steps are of use.
            products = autodiff.GMRES(max_steps=min(n * p, 2 * p * p + p, _MOST_PRODUCTS))
            options = {"check": "warn", "adjoint": autodiff.Implicit(products)}
        # Carried back, what an end misses may gather in one entry.
        solver = autodiff.Picard(tol=_MISSED * _tolerance(x) * math.sqrt(n * p), max_steps=1)
        aside = torch.eye(n, p, dtype=x.dtype, device=x.device)
        x, y, start = torch.where(known, x, aside), torch.where(known, y, aside), torch.where(known, found, 0)
        solution = autodiff.fixed_point(self._shoot, start, x, y, solver=solver, batch_dims=x.ndim - 2, **options)
        return torch.where(known, self.proju(x, solution.value), torch.nan)

    def _shoot(self, u: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """Vector whose geodesic ends nearer to y: what its own end lacks, carried back."""
        _, _, back = self._geodesic(x, u)
        return u + self.proju(x, back(y) - x)

    def _way(self, x: Tensor, y: Tensor) -> Tensor:
        """Length of one way from x to y, which bounds their distance, shape (..., 1, 1).

        The shortest way to the span of y, then a turn Q of the columns within it, of length ``sqrt(beta) |log Q|``. A
        reflection Q turns its last column through the space outside, in which a turn counts in full.
        """
        overlap = x.mT @ y
        turn = autodiff.polar(overlap)
        eye = identity(turn)
        spans = norm(angle_vector(overlap, y - x @ overlap), (-2, -1))
        within = 2 * norm(angle_vector((eye + turn) / 2, (turn - eye) / 2), (-2, -1))
        sign = determinant_sign(turn)
        weight = torch.where(sign > 0, math.sqrt(self.beta) * torch.ones_like(sign), 1.0)
        return spans + weight[..., None, None] * within

    def _split(self, x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """``u = x A + N``; what is not tangent in u is dropped, so that it cannot grow over many steps."""
        xu = x.mT @ u
        return skew(xu), u - x @ xu

    def _geodesic(self, x: Tensor, u: Tensor) -> tuple[Callable[[], Tensor], _Carry, _Carry]:
        """Return maps from nothing to the end of the geodesic, from w to ``e^W w r``, and back.

        With ``r = e^((1 - 2 beta) A)`` the geodesic is ``e^W x r``. Here ``W = N x^T - x N^T + 2 beta x A x^T``
        and ``W [x, N] = [x, N] M`` with ``M = [[2 beta A, -N^T N], [I, 0]]``, so that ``e^W = I + [x, N] phi(M)
        [2 beta A x^T - N^T, x^T]`` with ``phi(M) = (e^M - I) / M``: no basis of the span is needed. The scale s of N
        balances M. All is of size p but products with x, u and w, and N itself is never formed. Where x is square there
        is no N, and ``e^W = x e^(2 beta A) x^T``.
        """
        xu = x.mT @ u
        a = skew(xu)
        turn = 2 * self.beta * a
        if x.shape[-2] == x.shape[-1]:
            return lambda: x @ exponential(a), *_square_carries(x, turn, (1 - 2 * self.beta) * a)
        r = exponential((1 - 2 * self.beta) * a)
        square = u.mT @ u - xu.mT @ xu  # N^T N
        mean = square.detach().diagonal(dim1=-2, dim2=-1).mean(-1, keepdim=True).unsqueeze(-1)
        s = mean.clamp_min(_LEAST_SCALE**2).sqrt()
        scale = s * identity(a)
        m = torch.cat([torch.cat([turn, square / -s], -1), torch.cat([scale, torch.zeros_like(a)], -1)], -2)
        phi = divided_exponential(m)

        def end() -> Tensor:
            first, second = (phi @ torch.cat([turn, scale], -2)).chunk(2, -2)
            second = second / s
            return sum_of_products(x, (identity(a) + first - xu @ second) @ r, u, second @ r)

        def forth(w: Tensor) -> Tensor:
            xw = x.mT @ w
            across = u.mT @ w - xu.mT @ xw  # N^T w
            along = skew(xw)  # what is not tangent in w is dropped
            first, second = (phi @ torch.cat([turn @ along - across, s * along], -2)).chunk(2, -2)
            second = second / s
            # x^T w - along is that part; off it goes with the terms in x.
            return sum_of_products(x, (first - xu @ second - xw + along) @ r, u, second @ r, w @ r)

        def back(w: Tensor) -> Tensor:
            w = w @ r.mT
            along = x.mT @ w
            across = u.mT @ w - xu.mT @ along
            first, second = (phi.mT @ torch.cat([along, across / s], -2)).chunk(2, -2)
            return sum_of_products(x, s * second - turn @ first + xu @ first, u, -first, w)

        return end, forth, back

    def _random(self, shape: tuple[int, ...], generator: torch.Generator | None, like: dict[str, Any]) -> Tensor:
        return steps.orthonormalised(torch.randn(shape, generator=generator, **like))

    def _origin(self, shape: tuple[int, ...], like: dict[str, Any]) -> Tensor:
        return torch.eye(*shape[-2:], **like).expand(shape).clone()

    def _settings(self) -> tuple[Any, ...]:
        return self.metric, self.retraction

    def extra_repr(self) -> str:
        """Return the constructor arguments."""
        return f"metric={self.metric!r}, retraction={self.retraction!r}"


def _square_carries(x: Tensor, turn: Tensor, last: Tensor) -> tuple[_Carry, _Carry]:
    """Return ``w -> e^W w e^last`` and its inverse, for square x with ``W = x turn x^T``."""

    def forth(w: Tensor) -> Tensor:
        return x @ (exponential(turn) @ skew(x.mT @ w) @ exponential(last))

    def back(w: Tensor) -> Tensor:
        return x @ (exponential(turn).mT @ (x.mT @ (w @ exponential(last).mT)))

    return forth, back


def _tolerance(x: Tensor) -> float:
    return 20 * torch.finfo(x.dtype).eps


@primitive("stiefel_logarithm")
def _logarithm(x: Tensor, y: Tensor, canonical: bool) -> Tensor:
    """`Stiefel.logmap` without a derivative."""
    stiefel = Stiefel("canonical" if canonical else "euclidean")
    tol = _tolerance(x)
    near = stiefel.proju(x, y - x)
    if canonical:
        # So short a vector has more digits than a rotation.
        short = (y - x).abs().amax((-2, -1), keepdim=True) < tol**0.5
        u = torch.where(short, near, canonical_logarithm(x, y, tol))
    else:
        solver = autodiff.Anderson(tol=tol, max_steps=_SHOTS)
        u = autodiff.fixed_point(stiefel._shoot, near, x, y, solver=solver, batch_dims=x.ndim - 2, check="none").value
    missed = (stiefel.expmap(x, u) - y).abs().amax((-2, -1), keepdim=True)
    # Below the injectivity radius nothing winds, and between equal points both lengths are round-off.
    bound = ((1 + _SLACK) * stiefel._way(x, y)).clamp_min(_NEVER_WINDS)
    winds = stiefel.norm(x, u, keepdim=True) > bound
    return torch.where((missed < _MISSED * tol) & ~winds, u, torch.nan).contiguous()
