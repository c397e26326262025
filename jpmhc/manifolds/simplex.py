"""Probability vectors under the Fisher-Rao metric."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from jpmhc.kernels import moved_logarithm
from jpmhc.manifolds.algebra import cosine_and_sinc, norm, root, scalar_angle_over_sine
from jpmhc.manifolds.angles import squared_angle
from jpmhc.manifolds.fisher import Fisher, least


class Simplex(Fisher):
    """Positive vectors ``x`` with ``sum(x) = 1``.

    Parameters
    ----------
    retraction : {"root", "softmax", "exp"}
        ``(sqrt(x) + u / (2 sqrt(x)))^2`` normalised, of second order; ``softmax(log x + u / x)``, of first order; or
        the exponential map. The first two stay inside at every length of the step.

    Notes
    -----
    Metric: ``sum(u v / x)``, the sphere of radius 2 in the coordinates ``2 sqrt(x)``, from which all closed forms come.
    `expmap` follows a great circle, which bounces off the boundary of the simplex. Transport: parallel along the
    shortest geodesic, isometric. `random` is uniform (flat Dirichlet); `origin` is ``1 / n``. All maps cost O(n).

    Examples
    --------
    >>> import torch
    >>> from jpmhc import manifolds
    >>> simplex = manifolds.Simplex()
    >>> x = simplex.origin(4, dtype=torch.float64)
    >>> simplex.retr(x, torch.tensor([0.5, -0.5, 0.0, 0.0], dtype=torch.float64)).round(decimals=3)
    tensor([0.6670, 0.0100, 0.1620, 0.1620], dtype=torch.float64)
    """

    name = "Simplex"
    ndim = 1
    shape_pattern = "(..., n) with n >= 2"
    isometric_transport = True
    retractions: ClassVar[tuple[str, ...]] = ("root", "softmax", "exp")

    def __init__(self, retraction: str = "root") -> None:
        super().__init__()
        self.retraction = self._choose("retraction", retraction, self.retractions)
        self.retraction_order = 1 if retraction == "softmax" else 2

    def accepts(self, shape: tuple[int, ...]) -> bool:
        """Whether there are at least two entries."""
        return len(shape) >= 1 and shape[-1] >= 2

    def dim(self, shape: tuple[int, ...]) -> int:
        """``n - 1``."""
        return shape[-1] - 1

    def scaled(self, logits: Tensor) -> Tensor:
        """``softmax(logits)``, no entry below ``eps^2``."""
        return _inside(torch.softmax(logits, -1))

    def proju(self, x: Tensor, u: Tensor) -> Tensor:
        """``u - x sum(u)``."""
        return u - x * u.sum(-1, keepdim=True)

    def retr(self, x: Tensor, u: Tensor) -> Tensor:
        """Move from `x` along `u` by the retraction of this manifold."""
        if self.retraction == "exp":
            return self.expmap(x, u)
        return self.scaled(moved_logarithm(x, u, self.retraction == "root", least(x)))

    def expmap(self, x: Tensor, u: Tensor) -> Tensor:
        """``(sqrt(x) cos t + w sin(t) / t)^2`` with ``w = u / (2 sqrt(x))`` and ``t = |w|``."""
        s = x.sqrt()
        w = u / (2 * s)
        cosine, sinc = cosine_and_sinc((w * w).sum(-1, keepdim=True))
        y = (s * cosine + w * sinc).square()
        return _inside(y / y.sum(-1, keepdim=True))

    def logmap(self, x: Tensor, y: Tensor) -> Tensor:
        """``2 sqrt(x) w`` with w from ``sqrt(x)`` to ``sqrt(y)`` on the unit sphere."""
        s = x.sqrt()
        step = y.sqrt() - s
        w = step - s * (s * step).sum(-1, keepdim=True)
        cosine = 1 - (step * step).sum(-1, keepdim=True) / 2
        return self.proju(x, 2 * s * w * scalar_angle_over_sine(cosine))

    def dist(self, x: Tensor, y: Tensor, *, keepdim: bool = False) -> Tensor:
        """Twice the angle between ``sqrt(x)`` and ``sqrt(y)``."""
        s, r = root(x), root(y)
        angle = 4 * torch.atan2(norm(r - s, (-1,)), norm(r + s, (-1,)))
        return angle if keepdim else angle.squeeze(-1)

    def dist2(self, x: Tensor, y: Tensor, *, keepdim: bool = False) -> Tensor:
        """Square of `dist`, smooth at equal points."""
        result = 4 * squared_angle(root(x), root(y))
        return result if keepdim else result.squeeze(-1)

    def transp(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """Reflection on the unit sphere that takes ``sqrt(x)`` to ``sqrt(y)`` along their great circle."""
        s, r = x.sqrt(), y.sqrt()
        w = v / s
        middle = s + r
        w = w - middle * (2 * (middle * w).sum(-1, keepdim=True) / (middle * middle).sum(-1, keepdim=True))
        return self.proju(y, r * w)

    def _random(self, shape: tuple[int, ...], generator: torch.Generator | None, like: dict[str, Any]) -> Tensor:
        return self.projx(torch.empty(shape, **like).exponential_(generator=generator))

    def _origin(self, shape: tuple[int, ...], like: dict[str, Any]) -> Tensor:
        return torch.full(shape, 1 / shape[-1], **like)

    def _settings(self) -> tuple[Any, ...]:
        return (self.retraction,)

    def extra_repr(self) -> str:
        """Return the constructor arguments."""
        return f"retraction={self.retraction!r}"


def _inside(x: Tensor) -> Tensor:
    """Keep the entries off the boundary, where the metric is infinite."""
    least = torch.finfo(x.dtype).eps ** 2
    return x * (1 - x.shape[-1] * least) + least
