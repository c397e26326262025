"""Rotations: square orthogonal matrices of determinant one, under the bi-invariant metric."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from jpmhc import autodiff
from jpmhc.kernels.batches import determinant_sign, inv
from jpmhc.kernels.reading import can_read
from jpmhc.manifolds import steps
from jpmhc.manifolds.algebra import (
    angle_over_sine,
    exponential,
    frobenius,
    identity,
    norm,
    polish,
    skew,
    symmetric,
)
from jpmhc.manifolds.angles import angle_vector
from jpmhc.manifolds.base import Manifold

_UNKNOWN = 16  # times round-off: how near to a half turn its sense is not to be told


class SpecialOrthogonal(Manifold):
    """Rotations ``x`` of shape n x n, with ``x^T x = I`` and ``det x = 1``.

    Parameters
    ----------
    retraction : {"cayley", "exp"}
        ``x (I - A/2)^-1 (I + A/2)`` for a tangent vector ``u = x A``, of second order, or the exponential ``x e^A``.
        The Cayley transform is that of `Stiefel`, one p x p inverse with p = n.

    Notes
    -----
    Metric: Frobenius, ``<u, v>``, invariant under multiplication from both sides; a rotation by an angle t in one plane
    has length ``sqrt(2) t``. Transport: ``v -> y x^T v``, isometric. `random` is uniform (Haar); `origin` is the
    identity. All maps cost O(n^3). `expmap` is NaN for vectors longer than 128.

    `logmap` is the principal logarithm; it is NaN where ``x^T y`` rotates a plane by exactly pi, and there is no
    shortest way; `dist` is right there too. Derivatives exist at equal angles and at equal points. In `projx` of a
    matrix of negative determinant they need a simple smallest singular value, and it alone waits for the device.

    Examples
    --------
    >>> import torch
    >>> from jpmhc import manifolds
    >>> so = manifolds.SpecialOrthogonal()
    >>> x = so.origin(2, 2, dtype=torch.float64)
    >>> u = torch.tensor([[0.0, -2.0], [2.0, 0.0]], dtype=torch.float64)
    >>> so.retr(x, u)
    tensor([[ 0., -1.],
            [ 1.,  0.]], dtype=torch.float64)
    """

    name = "SpecialOrthogonal"
    shape_pattern = "(..., n, n) with n >= 1"
    retraction_order = 2
    isometric_transport = True
    reversible = True
    retractions: ClassVar[tuple[str, ...]] = ("cayley", "exp")

    def __init__(self, retraction: str = "cayley") -> None:
        super().__init__()
        self.retraction = self._choose("retraction", retraction, self.retractions)

    def accepts(self, shape: tuple[int, ...]) -> bool:
        """Whether the matrices are square."""
        return len(shape) >= 2 and shape[-2] == shape[-1] >= 1

    def point_error(self, x: Tensor) -> Tensor:
        """Largest entry of ``|x^T x - I|``, or the error of the determinant if that is larger."""
        defect = (x.mT @ x - identity(x)).abs().amax((-2, -1))
        return torch.where(determinant_sign(x) < 0, 2.0, defect)

    def tangent_error(self, x: Tensor, u: Tensor) -> Tensor:
        """Largest entry of the symmetric part of ``x^T u``."""
        return symmetric(x.mT @ u).abs().amax((-2, -1))

    def dim(self, shape: tuple[int, ...]) -> int:
        """``n (n - 1) / 2``."""
        return shape[-1] * (shape[-1] - 1) // 2

    def projx(self, x: Tensor) -> Tensor:
        """Nearest rotation: the polar factor, with its least certain direction turned round if its determinant is -1.

        NaN for singular matrices.
        """
        factor = autodiff.polar(x)
        sign = determinant_sign(factor.detach())
        if can_read(factor) and sign.amin().item() > 0:
            return factor
        turned = (sign < 0)[..., None, None]
        stretch = symmetric(factor.mT @ x)
        ramp = torch.diag(torch.arange(x.shape[-1], dtype=x.dtype, device=x.device))
        stretch = torch.where(turned & stretch.isfinite(), stretch, ramp)
        least = torch.linalg.eigh(stretch).eigenvectors[..., :1]
        return torch.where(turned, factor - 2 * (factor @ least) @ least.mT, factor)

    def proju(self, x: Tensor, u: Tensor) -> Tensor:
        """``x skew(x^T u)``."""
        return steps.tangent_part(x, u, 0.0, 0.5, -0.5)

    def egrad2rgrad(self, x: Tensor, u: Tensor) -> Tensor:
        """``x skew(x^T u)``."""
        return steps.tangent_part(x, u, 0.0, 0.5, -0.5)

    def ehess2rhess(self, x: Tensor, egrad: Tensor, ehess: Tensor, u: Tensor) -> Tensor:
        """Tangent part of ``ehess - u sym(x^T egrad)``."""
        return self.proju(x, ehess - u @ symmetric(x.mT @ egrad))

    def inner(self, x: Tensor, u: Tensor, v: Tensor | None = None, *, keepdim: bool = False) -> Tensor:
        """``sum(u * v)``, one number a matrix."""
        return frobenius(x, u, u if v is None else v, keepdim=keepdim)

    def retr(self, x: Tensor, u: Tensor) -> Tensor:
        """Move from `x` along `u` by the retraction of this manifold."""
        if self.retraction == "exp":
            return self.expmap(x, u)
        return steps.cayley_retraction(x, u)

    def retr_transp(self, x: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """`retr` and `v` carried along."""
        if self.retraction == "exp":
            return self.expmap_transp(x, u, v)
        return steps.cayley_transport(x, u, v)

    def expmap(self, x: Tensor, u: Tensor) -> Tensor:
        """``x e^(x^T u)``."""
        return polish(x @ exponential(skew(x.mT @ u)))

    def logmap(self, x: Tensor, y: Tensor) -> Tensor:
        """``x log(x^T y)`` from the root of the rotation, the polar factor of ``I + x^T y``; NaN at half turns."""
        rotation = x.mT @ y
        doubled = identity(rotation) + rotation
        half = autodiff.polar(doubled)
        # A singular matrix has no unique factor: which way round a half turn went, nothing tells.
        largest = inv(doubled.detach()).abs().amax((-2, -1), keepdim=True)
        known = largest * (_UNKNOWN * rotation.shape[-1] * torch.finfo(rotation.dtype).eps) < 1
        # The root of a rotation by pi - t has lost eps / t along its own plane; what is left of the rotation has not.
        root = half.detach()
        left = root.mT @ rotation.detach() @ root.mT
        return torch.where(known, x @ skew(2 * half @ angle_over_sine(symmetric(half)) + left), torch.nan)

    def dist(self, x: Tensor, y: Tensor, *, keepdim: bool = False) -> Tensor:
        """Frobenius norm of ``log(x^T y)``, whose halved angles have cosines in ``x + y`` and sines in ``y - x``."""
        result = 2 * norm(angle_vector((x.mT @ (x + y)) / 2, (y - x) / 2), (-2, -1))
        return result if keepdim else result.squeeze((-2, -1))

    def dist2(self, x: Tensor, y: Tensor, *, keepdim: bool = False) -> Tensor:
        """Square of `dist`, smooth at equal points."""
        angles = angle_vector((x.mT @ (x + y)) / 2, y - x)
        return (angles * angles).sum((-2, -1), keepdim=keepdim)

    def transp(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """``y x^T v``."""
        return y @ skew(x.mT @ v)

    def _random(self, shape: tuple[int, ...], generator: torch.Generator | None, like: dict[str, Any]) -> Tensor:
        point = steps.orthonormalised(torch.randn(shape, generator=generator, **like))
        point[..., 0] *= determinant_sign(point).unsqueeze(-1)
        return point

    def _origin(self, shape: tuple[int, ...], like: dict[str, Any]) -> Tensor:
        return torch.eye(shape[-1], **like).expand(shape).clone()

    def _settings(self) -> tuple[Any, ...]:
        return (self.retraction,)

    def extra_repr(self) -> str:
        """Return the constructor arguments."""
        return f"retraction={self.retraction!r}"
