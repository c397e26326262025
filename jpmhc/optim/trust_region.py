"""RiemannianTrustRegion: Newton's method on a manifold, made global by a region in which its model is trusted."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from jpmhc.optim.blocks import Blocks, Vector, pair
from jpmhc.optim.closure_step import Closure, ClosureOptimizer
from jpmhc.optim.hessian import Products, differentiate, from_user
from jpmhc.optim.options import check_count, check_range
from jpmhc.optim.truncated_cg import truncated_cg

_LEAST = 1e-300  # keeps a ratio of decreases that are both zero from dividing by zero


class RiemannianTrustRegion(ClosureOptimizer):
    """The Riemannian trust region of Absil, Baker & Gallivan (2007), its model minimised by truncated CG.

    Converges from everywhere, quadratically at a minimum where the Hessian is not singular. For small deterministic
    problems: the loss must be the same whenever the closure is called at the same point. The call is that of
    ``torch.optim.LBFGS``; tensors stay on their device, a few numbers an inner iteration are read from it.

    Parameters
    ----------
    params : iterable
        Parameters or ``named_parameters()``, one group; those without a manifold take part.
    max_iter : int
        Outer iterations a step.
    tolerance_grad : float
        Stop where the norm of the Riemannian gradient is at most this, or round-off of the Euclidean one.
    max_inner : int, optional
        Products with the Hessian an outer iteration; by default as many as the point has numbers.
    max_radius : float, optional
        Of the region; by default the root of the number of numbers. It starts at an eighth of it.
    accept : float
        Share of the predicted decrease that a step must achieve to be taken, in [0, 1/4).
    hessian : Callable, optional
        ``hessian(*directions)``, one tensor per parameter in and out: the Euclidean Hessian of the loss at the present
        parameters along these directions, for example
        ``lambda v: torch.func.jvp(torch.func.grad(loss), (x.detach(),), (v,))[1]``.
        Without it the closure's graph is differentiated a second time; then the closure must return the loss as a
        tensor and call ``loss.backward()``, which is left out, so that ``grad`` stays as it was.

    Raises
    ------
    ValueError
        If a number is outside its range, or there is more than one group.
    TypeError
        If an argument has the wrong type, or a parameter is complex or, on a manifold, in half precision.

    Notes
    -----
    The Riemannian Hessian is the manifold's ``ehess2rhess``. A manifold without one (geoopt's) gets the projected
    derivative of its gradient, which is the Hessian under an embedded metric and at critical points; elsewhere the
    region keeps the iteration safe. In the group beside the options: ``n_iter``, ``func_evals``, ``radius``.

    Examples
    --------
    >>> import torch
    >>> from jpmhc import manifolds, optim
    >>> x = manifolds.Parameter(torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64), manifold=manifolds.Sphere())
    >>> optimizer = optim.RiemannianTrustRegion([x])
    >>> def closure():
    ...     optimizer.zero_grad()
    ...     loss = x[0] + 2 * x[1]
    ...     loss.backward()
    ...     return loss
    >>> start = optimizer.step(closure)
    >>> bool(abs(closure() + 5**0.5) < 1e-12)
    True
    """

    _start: ClassVar[dict[str, Any]] = {**ClosureOptimizer._start, "radius": None}

    def __init__(
        self,
        params: Any,
        max_iter: int = 20,
        tolerance_grad: float = 1e-7,
        *,
        max_inner: int | None = None,
        max_radius: float | None = None,
        accept: float = 0.1,
        hessian: Callable[..., Tensor | Sequence[Tensor]] | None = None,
    ) -> None:
        if hessian is not None and not callable(hessian):
            raise TypeError(f"hessian: expected a callable, got {type(hessian).__name__}")
        self.hessian = hessian
        defaults = {
            "max_iter": max_iter,
            "tolerance_grad": tolerance_grad,
            "max_inner": max_inner,
            "max_radius": max_radius,
            "accept": accept,
        }
        super().__init__(params, defaults)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "hessian": self.hessian}

    def _check_options(self, group: dict[str, Any]) -> None:
        super()._check_options(group)
        if group["max_inner"] is not None:
            check_count("max_inner", group["max_inner"])
        if group["max_radius"] is not None:
            check_range("max_radius", group["max_radius"], 0.0)
            if group["max_radius"] == 0:
                raise ValueError("max_radius: expected more than 0, got 0")
        check_range("accept", group["accept"], 0.0, 0.25, open_high=True)

    @torch.no_grad()
    def step(self, closure: Closure | None) -> float:  # type: ignore[override]
        """Iterate until the gradient vanishes, ``max_iter`` is reached or steps drown in round-off.

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
        if closure is None:
            return math.nan
        largest = group["max_radius"] or math.sqrt(blocks.size)
        radius = largest / 8 if group["radius"] is None else group["radius"]
        x = blocks.point()
        first_loss, egrad, products = self._model(closure, blocks)
        self._check_start(first_loss, egrad, blocks)
        loss = first_loss
        for _ in range(group["max_iter"]):
            # Again, as what round-off leaves across the manifold has no curvature for the inner iteration to find.
            gradient = blocks.tangent(x, blocks.gradient(x, egrad))
            norm = blocks.norm(x, gradient)
            # What rounding leaves of a Euclidean gradient that is normal to the manifold.
            slope = math.sqrt(pair(egrad, egrad))
            floor = blocks.precision * slope
            if norm <= max(group["tolerance_grad"], floor) or radius <= blocks.precision:
                break

            def hessian(u: Vector, at: Any = (x, egrad, products)) -> Vector:
                return blocks.hessian(at[0], at[1], at[2](u), u)

            max_inner = group["max_inner"] or blocks.size
            model = truncated_cg(blocks, x, gradient, hessian, radius, max_inner=max_inner, floor=floor)
            predicted = -blocks.inner(x, gradient, model.step) - blocks.inner(x, model.step, model.hessian_step) / 2
            y = blocks.retract(x, model.step)
            blocks.write(y)
            new_loss, new_egrad, new_products = self._model(closure, blocks)
            group["n_iter"] += 1
            # Near the optimum both decreases are round-off of the loss; this takes their ratio to one there.
            # A loss whose terms cancel has more of it than its size tells: the noise of rounding the point, for one, or
            # what it had before they cancelled. The last is too large to stop by: losses may fall by many orders.
            noise = 1e3 * blocks.precision * max(abs(loss), slope * math.sqrt(pair(x, x)), _LEAST)
            allowed = max(noise, 10 * blocks.precision * abs(first_loss))
            finite = math.isfinite(new_loss) and all(bool(torch.isfinite(g).all()) for g in new_egrad)
            ratio = (loss - new_loss + allowed) / (predicted + allowed) if finite else -math.inf
            new_norm = blocks.norm(y, blocks.tangent(y, blocks.gradient(y, new_egrad))) if finite else math.inf
            # Among losses that round-off cannot order the gradient does.
            if new_loss >= loss and new_norm >= norm:
                ratio = -math.inf
            # A step of Newton's method makes the gradient much smaller, unless that is round-off too.
            in_noise = finite and predicted <= noise and new_loss <= loss + noise
            if in_noise and not model.at_boundary and new_norm > norm / 2:
                if new_norm < norm:
                    x = y
                blocks.write(x)
                break
            if ratio < 0.25:
                radius /= 4
            elif ratio > 0.75 and model.at_boundary:
                radius = min(2 * radius, largest)
            if ratio > group["accept"]:
                x, loss, egrad, products = y, new_loss, new_egrad, new_products
            else:
                blocks.write(x)
                # Writing the parameters has ended the old products' graph.
                loss, egrad, products = self._model(closure, blocks)
        group["radius"] = radius
        return first_loss

    def _model(self, closure: Closure, blocks: Blocks) -> tuple[float, Vector, Products]:
        if self.hessian is not None:
            return *self._evaluate(closure, blocks), from_user(self.hessian, blocks, self.param_groups[0]["params"])
        self.param_groups[0]["func_evals"] += 1
        return differentiate(closure, blocks)
