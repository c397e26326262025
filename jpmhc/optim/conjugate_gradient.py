"""RiemannianConjugateGradient: nonlinear conjugate gradients with a Wolfe line search along the retraction."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, ClassVar

import torch

from jpmhc.optim.blocks import Blocks, Vector, combine, pair, scale
from jpmhc.optim.closure_step import Closure, ClosureOptimizer
from jpmhc.optim.line_search import Trial, wolfe
from jpmhc.optim.options import check_count, check_range


class RiemannianConjugateGradient(ClosureOptimizer):
    """Riemannian conjugate gradients with the direction of Hager & Zhang (2005; Sakai & Iiduka, 2021, on manifolds).

    With ``g`` the Riemannian gradient, T the transport to the new point, and ``y = g+ - T g``::

        d+ = -g+ + beta T d,    beta = max(<y - 2 |y|^2 / <y, T d> T d, g+> / <y, T d>,  -1 / (|d| min(0.01, |g|)))

    For small deterministic problems: the loss must be the same whenever the closure is called at the same point. The
    call is that of ``torch.optim.LBFGS``; tensors stay on their device, a few numbers an iteration are read from it.

    Parameters
    ----------
    params : iterable
        Parameters or ``named_parameters()``, one group; those without a manifold take part.
    max_iter : int
        Iterations a step.
    tolerance_grad : float
        Stop where the norm of the Riemannian gradient is at most this.
    decrease, curvature : float
        Constants of the Wolfe conditions, ``0 < decrease < curvature < 1``.
    max_trials : int
        Closure calls an iteration at most.

    Raises
    ------
    ValueError
        If a number is outside its range, or there is more than one group.
    TypeError
        If an argument has the wrong type, or a parameter is complex or, on a manifold, in half precision.

    Notes
    -----
    The derivative of the loss along a trial step is taken with the exact velocity of the retraction, which is
    differentiated for it, so no property of the transport is needed. State: ``direction`` per parameter. In the group
    beside the options: ``n_iter``, ``func_evals``, and the ``length`` and ``slope`` of the last search.

    Examples
    --------
    >>> import torch
    >>> from jpmhc import manifolds, optim
    >>> x = manifolds.Parameter(torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64), manifold=manifolds.Sphere())
    >>> optimizer = optim.RiemannianConjugateGradient([x])
    >>> def closure():
    ...     optimizer.zero_grad()
    ...     loss = x[0] + 2 * x[1]
    ...     loss.backward()
    ...     return loss
    >>> start = optimizer.step(closure)
    >>> bool(abs(closure() + 5**0.5) < 1e-12)
    True
    """

    _start: ClassVar[dict[str, Any]] = {**ClosureOptimizer._start, "length": None, "slope": None}

    def __init__(
        self,
        params: Any,
        max_iter: int = 20,
        tolerance_grad: float = 1e-7,
        *,
        decrease: float = 1e-4,
        curvature: float = 0.1,
        max_trials: int = 25,
    ) -> None:
        defaults = {
            "max_iter": max_iter,
            "tolerance_grad": tolerance_grad,
            "decrease": decrease,
            "curvature": curvature,
            "max_trials": max_trials,
        }
        super().__init__(params, defaults)

    def _check_options(self, group: dict[str, Any]) -> None:
        super()._check_options(group)
        check_count("max_trials", group["max_trials"])
        check_range("decrease", group["decrease"], 0.0, 1.0)
        check_range("curvature", group["curvature"], 0.0, 1.0)
        if not 0 < group["decrease"] < group["curvature"] < 1:
            raise ValueError(
                f"decrease, curvature: expected 0 < decrease < curvature < 1, got {group['decrease']}, "
                f"{group['curvature']}"
            )

    @torch.no_grad()
    def step(self, closure: Closure | None) -> float:  # type: ignore[override]
        """Iterate until the gradient vanishes, ``max_iter`` is reached or no step decreases the loss.

        Parameters
        ----------
        closure : Callable
            Clears the gradients, computes the loss and its gradients, and returns the loss. None is taken where all
            gradients are zero, and moves nothing: ``torch.distributed.checkpoint`` has the state made so.

        Returns
        -------
        float
            The loss before the step; NaN without a closure.

        Raises
        ------
        ValueError
            If the loss or a gradient is not finite where the step begins.
        TypeError
            If the closure does not return one number or is missing, a gradient is sparse, or a parameter has lost its
            manifold.
        """
        group, blocks = self._begin(closure)
        x = blocks.point()
        memory = [
            batch.state("direction", partial(torch.zeros_like, p)) for batch, p in zip(blocks.batches, x, strict=True)
        ]
        if closure is None:
            return math.nan
        first_loss, egrad = self._evaluate(closure, blocks)
        self._check_start(first_loss, egrad, blocks)
        loss, gradient = first_loss, blocks.gradient(x, egrad)
        direction = [d.clone() for d in memory]
        for _ in range(group["max_iter"]):
            norm = blocks.norm(x, gradient)
            if norm <= group["tolerance_grad"]:
                break
            if not blocks.inner(x, gradient, direction) < 0:
                direction, group["length"] = scale(-1.0, gradient), None
            trial = self._search(closure, blocks, x, loss, egrad, direction)
            if trial is None and group["length"] is not None:
                # A stale direction may have misled the search; the gradient cannot.
                direction, group["length"] = scale(-1.0, gradient), None
                trial = self._search(closure, blocks, x, loss, egrad, direction)
            if trial is None:
                blocks.write(x)
                break
            step = scale(trial.length, direction)
            old_gradient, direction = blocks.transport(x, step, gradient, direction)
            loss, (x, egrad) = trial.loss, trial.payload
            gradient = blocks.gradient(x, egrad)
            beta = _hager_zhang(blocks, x, gradient, old_gradient, direction, norm)
            direction = combine(-1.0, gradient, beta, direction)
            group["n_iter"] += 1
        for kept, latest in zip(memory, direction, strict=True):
            kept.copy_(latest)
        return first_loss

    def _search(
        self, closure: Closure, blocks: Blocks, x: Vector, loss: float, egrad: Vector, direction: Vector
    ) -> Trial[tuple[Vector, Vector]] | None:
        group = self.param_groups[0]

        def evaluate(length: float) -> Trial[tuple[Vector, Vector]]:
            end, slope_of = blocks.curve(x, direction, length)
            blocks.write(end)
            value, slopes = self._evaluate(closure, blocks)
            return Trial(length, value, slope_of(slopes), (end, slopes))

        slope = pair(egrad, direction)
        if not slope < 0:
            return None
        guess = 1 / blocks.norm(x, direction)
        if group["length"] is not None:
            guess = group["length"] * group["slope"] / slope
        trial = wolfe(
            evaluate,
            Trial(0.0, loss, slope, (x, egrad)),
            guess,
            decrease=group["decrease"],
            curvature=group["curvature"],
            noise=10 * blocks.precision * abs(loss),
            max_trials=group["max_trials"],
        )
        if trial is not None:
            blocks.write(trial.payload[0])
            group["length"], group["slope"] = trial.length, slope
        return trial


def _hager_zhang(
    blocks: Blocks, x: Vector, gradient: Vector, old_gradient: Vector, direction: Vector, old_norm: float
) -> float:
    change = combine(1.0, gradient, -1.0, old_gradient)
    along = blocks.inner(x, change, direction)
    if not along > 0:
        return 0.0
    correction = 2 * blocks.inner(x, change, change) / along * blocks.inner(x, direction, gradient)
    beta = (blocks.inner(x, change, gradient) - correction) / along
    return max(beta, -1 / (blocks.norm(x, direction) * min(0.01, old_norm)))
