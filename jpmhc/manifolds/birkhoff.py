"""Doubly stochastic matrices under the Fisher metric."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from jpmhc import autodiff, kernels
from jpmhc.manifolds.algebra import common_shape
from jpmhc.manifolds.fisher import Fisher, least

_STEPS = 128  # of Newton's method, which takes 1 to 3 and near permutations about 50


class Birkhoff(Fisher):
    """Positive matrices ``x`` of shape n x n whose rows and columns sum to 1.

    Parameters
    ----------
    retraction : {"root", "sinkhorn"}
        Sinkhorn scaling of ``(sqrt(x) + u / (2 sqrt(x)))^2``, of second order, or of ``x exp(u / x)``, of first order
        (Douik and Hassibi, 2018; at ``x = 1/n`` it is the Sinkhorn mixer ``sinkhorn(n u)``).

    Notes
    -----
    Metric: ``sum(u v / x)``. The gradient of a function with Euclidean gradient g is ``x * (g - a 1^T - 1 b^T)``, with
    a and b from one Laplacian system (`jpmhc.kernels.sinkhorn_adjoint`). `transp` compares
    vectors in the coordinates ``2 sqrt(x)`` and projects, so momentum is neither scaled nor ever made longer. The
    exponential map, the logarithm and the distance have no formula and are not offered.

    The root retraction moves an entry x by at most ``|u| sqrt(x) + |u|^2``, in the Fisher length of u, before
    scaling; the exponential one multiplies it by up to ``exp(|u| / sqrt(x))``, which near a vertex asks for more digits
    than there are. Steps of Fisher length 1 are safe from ``(1 - e) I + e / n`` with e = 1e-6 in float32. Of
    20,000 exponential ones from random 4 x 4 points all are right at length 300; the sums of one are wrong at 500, of
    one in ten at 10,000, by up to 2, and only `checked` says so.

    Sums are right to 1e-6 in float32 and 1e-13 in float64. Each matrix is scaled until it is finished and then held
    fixed, so its result does not depend on the batch beyond the last digit. `random` is the Sinkhorn scaling of
    independent Exp(1) entries; `origin` is ``1 / n``, the centre. Cost: O(n^3).

    References
    ----------
    Douik and Hassibi, "Manifold optimization over the set of doubly stochastic matrices: a second-order geometry",
    2018: the gradient and the exponential scaling. The root retraction is ours.

    Examples
    --------
    >>> import torch
    >>> from jpmhc import manifolds
    >>> birkhoff = manifolds.Birkhoff()
    >>> x = birkhoff.origin(2, 2, dtype=torch.float64)
    >>> birkhoff.egrad2rgrad(x, torch.tensor([[1.0, 0.0], [0.0, 0.0]], dtype=torch.float64))
    tensor([[ 0.1250, -0.1250],
            [-0.1250,  0.1250]], dtype=torch.float64)
    """

    name = "Birkhoff"
    shape_pattern = "(..., n, n) with n >= 2"
    retractions: ClassVar[tuple[str, ...]] = ("root", "sinkhorn")

    def __init__(self, retraction: str = "root") -> None:
        super().__init__()
        self.retraction = self._choose("retraction", retraction, self.retractions)
        self.retraction_order = 2 if retraction == "root" else 1

    def accepts(self, shape: tuple[int, ...]) -> bool:
        """Whether the matrices are square, 2 x 2 at least."""
        return len(shape) >= 2 and shape[-2] == shape[-1] >= 2

    def dim(self, shape: tuple[int, ...]) -> int:
        """``(n - 1)^2``."""
        return (shape[-1] - 1) ** 2

    def projx(self, x: Tensor) -> Tensor:
        """Point of least Kullback-Leibler divergence from `x`, whose entries are first made positive."""
        return autodiff.scaled(x, least(x), tol=4 * torch.finfo(x.dtype).eps)

    def scaled(self, logits: Tensor) -> Tensor:
        """Sinkhorn scaling, no entry below ``eps^2``."""
        x = autodiff.sinkhorn(logits, tol=4 * torch.finfo(logits.dtype).eps)
        return x.clamp_min(least(x))  # sums change by less than round-off

    def proju(self, x: Tensor, u: Tensor) -> Tensor:
        """``u - x * (a 1^T + 1 b^T)``, with zero sums: the projection that is orthogonal under the metric.

        Applied twice: near a vertex the sums of `u` may be 1e6 times what is left of it, and so may their round-off.
        """
        shape = common_shape(x, u)
        return autodiff.balanced(x.expand(shape), u.expand(shape), times=2)

    def egrad2rgrad(self, x: Tensor, u: Tensor) -> Tensor:
        """``x * (u - a 1^T - 1 b^T)``, with zero sums: the gradient, since ``sum(x u v / x) = sum(u v)``."""
        shape = common_shape(x, u)
        return autodiff.balanced(x.expand(shape), x * u)

    def retr(self, x: Tensor, u: Tensor) -> Tensor:
        """Move from `x` along `u` by the retraction of this manifold."""
        options = (self.retraction == "root", least(x), 4 * torch.finfo(x.dtype).eps, _STEPS)
        result: Tensor = autodiff.fused(kernels.birkhoff_retraction, _plain_retraction, (x, u), options)
        return result

    def _random(self, shape: tuple[int, ...], generator: torch.Generator | None, like: dict[str, Any]) -> Tensor:
        return self.projx(torch.empty(shape, **like).exponential_(generator=generator))

    def _origin(self, shape: tuple[int, ...], like: dict[str, Any]) -> Tensor:
        return torch.full(shape, 1 / shape[-1], **like)

    def _settings(self) -> tuple[Any, ...]:
        return (self.retraction,)

    def extra_repr(self) -> str:
        """Return the constructor arguments."""
        return f"retraction={self.retraction!r}"


def _plain_retraction(x: Tensor, u: Tensor, root: bool, least: float, tol: float, max_steps: int) -> Tensor:
    logits = kernels.moved_logarithm(x, u, root, least)
    return autodiff.sinkhorn(logits, tol=tol, max_steps=max_steps).clamp_min(least)
