"""RiemannianSGD: gradient descent whose momentum is a tangent vector that travels with the point."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.sgd import sgd

from jpmhc.optim.batch import Batch
from jpmhc.optim.gradient_step import GradientOptimizer, move
from jpmhc.optim.options import check_range, rate


class RiemannianSGD(GradientOptimizer):
    """Stochastic gradient descent on manifolds (Bonnabel, 2013), with momentum and Nesterov's variant.

    On a manifold, with ``r`` the Riemannian gradient at x::

        b <- momentum b + (1 - dampening) r       b = r at the first step
        d  = b,  or  r + momentum b  for Nesterov
        x, b <- retract and transport along  -lr d

    Parameters of equal manifold, shape, dtype and device are updated as one stacked tensor. Those without a manifold
    (on ``geoopt.Euclidean`` as well) are given to ``torch.optim``'s own SGD.

    Parameters
    ----------
    params : iterable
        Parameters, ``named_parameters()`` (errors then tell the name) or groups.
    lr : float
        Learning rate.
    momentum, dampening : float
        Coefficients above; dampening in [0, 1].
    weight_decay : float
        Decoupled (``p <- (1 - lr weight_decay) p``, where ``torch.optim.SGD`` adds to the gradient), of parameters
        without a manifold; a point on a manifold has nothing to decay towards and is left alone.
    nesterov : bool
        Needs momentum and no dampening.
    stabilize : int, optional
        Project points and momenta back every so many steps, those that have a gradient then.
    maximize : bool
        Ascend.
    capturable : bool
        Run without a host synchronisation, so that a CUDA graph can capture the step (see `RiemannianAdam`).
    check : "raise", "none" or None
        Whether a gradient that is not finite raises, at the price of one number read from the device, and a point on
        the CPU that somebody has moved off its manifold since the last step. None means "raise" unless ``capturable``,
        which ``torch.compile`` sets where it traces the step. Under FSDP2 each process looks at its own shards.

    Raises
    ------
    ValueError
        If a number is outside its range, or two options exclude each other.
    TypeError
        If an argument has the wrong type, or a parameter is complex or, on a manifold, in half precision.

    Notes
    -----
    State per parameter, with momentum only: ``momentum_buffer``, of its shape. ``grad`` is never written to. A group's
    momentum that is set to zero drops it on manifolds: set again, momentum starts anew there.

    Examples
    --------
    >>> import torch
    >>> from jpmhc import manifolds, optim
    >>> x = manifolds.Parameter(torch.tensor([1.0, 0.0, 0.0]), manifold=manifolds.Sphere())
    >>> optimizer = optim.RiemannianSGD([x], lr=0.1, momentum=0.5, nesterov=True)
    >>> for _ in range(100):
    ...     optimizer.zero_grad()
    ...     (x[0] + 2 * x[1]).backward()
    ...     optimizer.step()
    >>> bool((x.detach() - torch.tensor([-1.0, -2.0, 0.0]) / 5**0.5).abs().max() < 1e-4)
    True
    """

    _momentum = "momentum_buffer"

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        stabilize: int | None = None,
        maximize: bool = False,
        capturable: bool = False,
        check: str | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "stabilize": stabilize,
            "maximize": maximize,
            "capturable": capturable,
            "check": check,
        }
        super().__init__(params, defaults)

    def _check_options(self, group: dict[str, Any]) -> None:
        super()._check_options(group)
        check_range("lr", group["lr"], 0.0)
        check_range("momentum", group["momentum"], 0.0)
        check_range("dampening", group["dampening"], 0.0, 1.0)
        if group["nesterov"] and (group["momentum"] == 0 or group["dampening"] != 0):
            raise ValueError(
                "nesterov: expected momentum > 0 and dampening = 0, "
                f"got momentum={group['momentum']}, dampening={group['dampening']}"
            )

    def _state_shapes(self, parameter: Tensor) -> dict[str, torch.Size]:
        return {"momentum_buffer": parameter.shape}

    def _update_free(self, group: dict[str, Any], parameters: list[Tensor], gradients: list[Tensor]) -> None:
        if group["nesterov"] and not group["maximize"]:
            # torch's foreach implementation adds the momentum to the gradients it is given, in place.
            gradients = [gradient.clone() for gradient in gradients]
        if group["weight_decay"]:
            torch._foreach_mul_(parameters, 1 - rate(group) * group["weight_decay"])
        buffers = [self.state[p].get("momentum_buffer") for p in parameters]
        sgd(
            parameters,
            gradients,
            buffers,
            foreach=True,
            weight_decay=0.0,
            momentum=group["momentum"],
            lr=group["lr"],
            dampening=group["dampening"],
            nesterov=group["nesterov"],
            maximize=group["maximize"],
        )
        if group["momentum"]:
            for parameter, buffer in zip(parameters, buffers, strict=True):
                self.state[parameter]["momentum_buffer"] = buffer

    def _update_batch(
        self, group: dict[str, Any], batch: Batch, point: Tensor, gradient: Tensor, stabilize: bool
    ) -> None:
        gradient = batch.manifold.egrad2rgrad(point, gradient)
        momentum, dampening = group["momentum"], group["dampening"]
        if momentum == 0:
            batch.drop("momentum_buffer")  # left behind, it would be no tangent vector where the point goes
            move(batch, point, gradient * -rate(group), None, stabilize)
            return
        # This start makes the first buffer the gradient itself, whatever the dampening.
        buffer = batch.state("momentum_buffer", lambda: gradient * (dampening / momentum))
        buffer.mul_(momentum).add_(gradient, alpha=1 - dampening)
        direction = gradient.add(buffer, alpha=momentum) if group["nesterov"] else buffer
        move(batch, point, direction * -rate(group), buffer, stabilize)
