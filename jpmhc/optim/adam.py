"""RiemannianAdam: Adam whose moments are a tangent vector and its squared length."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from jpmhc.optim.batch import Batch
from jpmhc.optim.gradient_step import GradientOptimizer, move
from jpmhc.optim.options import check_range, check_rate, rate
from jpmhc.optim.parameters import manifold_of


class RiemannianAdam(GradientOptimizer):
    """Adam on manifolds, AdamW on everything else (Becigneul & Ganea, 2019; Loshchilov & Hutter, 2019).

    On a manifold, with ``r`` the Riemannian gradient at x::

        m <- beta1 m + (1 - beta1) r                     a tangent vector
        v <- beta2 v + (1 - beta2) <r, r>_x              one number a point, as the metric has it
        x, m <- retract and transport along  -lr (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)

    Parameters of equal manifold, shape, dtype and device are updated as one stacked tensor. Those without a manifold
    (on ``geoopt.Euclidean`` as well) are given to ``torch.optim``'s own AdamW, whatever else is in the group.

    Parameters
    ----------
    params : iterable
        Parameters, ``named_parameters()`` (errors then tell the name) or groups.
    lr : float or Tensor
        Learning rate; with ``capturable`` it may be a tensor of one element. A group's may become one at any time;
        unless ``capturable``, torch's loop then serves the parameters without a manifold instead of ``foreach``.
    betas : (float, float)
        Decay of the two moments, in [0, 1).
    eps : float
        Added to the root of the second moment.
    weight_decay : float
        Decoupled, of parameters without a manifold; a point on a manifold has nothing to decay towards and is left
        alone. The default is that of ``torch.optim.AdamW``.
    amsgrad : bool
        Divide by the largest second moment so far.
    stabilize : int, optional
        Project points and momenta back every so many steps, those that have a gradient then. Manifolds of
        :mod:`jpmhc.manifolds` do not drift and need none of it.
    maximize : bool
        Ascend.
    capturable : bool
        Run without a host synchronisation, so that a CUDA graph can capture the step. Parameters without a manifold
        must be on such a device then, as in ``torch.optim``. While a graph is captured, no library factorises matrices
        of our manifolds: elimination takes its place, in some ten launches a column.
    foreach, fused : bool, optional
        Which of torch's implementations serves the parameters without a manifold: ``foreach`` by default.
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
    State per parameter: ``exp_avg`` (of its shape), ``exp_avg_sq`` (on a manifold one number a point) and ``step``.
    ``grad`` is never written to. For a group the step of 200 separate 4 x 4 matrices is that of one (200, 4, 4)
    tensor, plus stacking.

    Examples
    --------
    >>> import torch
    >>> from jpmhc import manifolds, optim
    >>> x = manifolds.Parameter(torch.tensor([1.0, 0.0, 0.0]), manifold=manifolds.Sphere())
    >>> optimizer = optim.RiemannianAdam([x], lr=0.1)
    >>> for _ in range(200):
    ...     optimizer.zero_grad()
    ...     (x[0] + 2 * x[1]).backward()
    ...     optimizer.step()
    >>> bool((x.detach() - torch.tensor([-1.0, -2.0, 0.0]) / 5**0.5).abs().max() < 1e-2)
    True
    """

    _momentum = "exp_avg"

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        stabilize: int | None = None,
        maximize: bool = False,
        capturable: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
        check: str | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "amsgrad": amsgrad,
            "stabilize": stabilize,
            "maximize": maximize,
            "capturable": capturable,
            "foreach": foreach,
            "fused": fused,
            "check": check,
        }
        super().__init__(params, defaults)

    def _check_options(self, group: dict[str, Any]) -> None:
        super()._check_options(group)
        check_rate(group["lr"], group["capturable"])
        if not hasattr(group["betas"], "__len__"):
            raise TypeError(f"betas: expected two numbers, got {group['betas']!r}")
        if len(group["betas"]) != 2:
            raise ValueError(f"betas: expected two numbers, got {group['betas']!r}")
        for index, beta in enumerate(group["betas"]):
            check_range(f"betas[{index}]", beta, 0.0, 1.0, open_high=True)
        check_range("eps", group["eps"], 0.0)
        if group["foreach"] and group["fused"]:
            raise ValueError("foreach, fused: expected at most one to be True")

    def _state_shapes(self, parameter: Tensor) -> dict[str, torch.Size]:
        second, manifold = parameter.shape, manifold_of(parameter)
        if manifold is not None:
            point = parameter.detach().unsqueeze(0)
            second = manifold.component_inner(point, torch.zeros_like(point)).shape[1:]
        return {"step": torch.Size(), "exp_avg": parameter.shape, "exp_avg_sq": second, "max_exp_avg_sq": second}

    def _check_free(self, group: int, parameters: list[Tensor]) -> None:
        if torch.compiler.is_compiling():
            return  # which sets capturable itself, and has no graph to capture on a CPU
        on_host = (p for p in parameters if p.device.type == "cpu")
        if self.param_groups[group]["capturable"] and (parameter := next(on_host, None)) is not None:
            raise ValueError(f"{self._label(group, parameter)}: expected an accelerator with capturable=True, got cpu")

    def _update_free(self, group: dict[str, Any], parameters: list[Tensor], gradients: list[Tensor]) -> None:
        fused = bool(group["fused"])
        # torch.compile fuses the loop itself, and cannot trace the foreach operations with steps on the host; they take
        # a rate that somebody made a tensor of only on a device.
        looped = torch.compiler.is_compiling() or (isinstance(group["lr"], Tensor) and not group["capturable"])
        foreach = not (fused or looped) and group["foreach"] is not False
        on_device = group["capturable"] or fused
        states = [self.state[p] for p in parameters]
        for parameter, state in zip(parameters, states, strict=True):
            if not state:
                device = parameter.device if on_device else "cpu"
                state["step"] = torch.zeros((), dtype=torch.float32, device=device)
                for name in ("exp_avg", "exp_avg_sq", *(("max_exp_avg_sq",) if group["amsgrad"] else ())):
                    state[name] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        adamw(
            parameters,
            gradients,
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [state["max_exp_avg_sq"] for state in states] if group["amsgrad"] else [],
            [state["step"] for state in states],
            foreach=foreach,
            fused=fused,
            capturable=group["capturable"],
            amsgrad=group["amsgrad"],
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=group["maximize"],
        )

    def _update_batch(
        self, group: dict[str, Any], batch: Batch, point: Tensor, gradient: Tensor, stabilize: bool
    ) -> None:
        beta1, beta2 = group["betas"]
        gradient = batch.manifold.egrad2rgrad(point, gradient)
        # An indefinite ambient form (the hyperboloid's) rounds below zero.
        square = batch.manifold.component_inner(point, gradient).clamp_min(0.0)
        step = batch.state("step", lambda: torch.zeros(len(point), dtype=torch.float32, device=point.device))
        mean = batch.state("exp_avg", lambda: torch.zeros_like(gradient))
        mean_square = batch.state("exp_avg_sq", lambda: torch.zeros_like(square))
        step += 1
        mean.lerp_(gradient, 1 - beta1)
        mean_square.lerp_(square, 1 - beta2)
        if group["amsgrad"]:
            largest = batch.state("max_exp_avg_sq", lambda: torch.zeros_like(square))
            mean_square = torch.maximum(largest, mean_square, out=largest)
        age = _age(step, square, group["capturable"])
        denominator = (mean_square / _bias(beta2, age)).sqrt_().add_(group["eps"]).mul_(_bias(beta1, age))
        move(batch, point, mean / denominator * -rate(group), mean, stabilize)


def _age(step: Tensor, square: Tensor, capturable: bool) -> float | Tensor:
    """Return the age of all parameters of a batch, or a tensor that broadcasts with `square`.

    A number saves seven operations of a step, where a look at it waits for nobody; a tensor lets parameters of
    different age share a batch.
    """
    if step.is_cpu and not (capturable or torch.compiler.is_compiling()):
        first, *others = step.tolist()
        if all(age == first for age in others):
            return float(first)
    return step.to(square.dtype).view(-1, *(1,) * (square.dim() - 1))


def _bias(beta: float, age: float | Tensor) -> float | Tensor:
    """Return ``1 - beta^age`` without cancellation."""
    if beta == 0:
        return 1.0
    exponent = age * math.log(beta)
    return -torch.expm1(exponent) if isinstance(exponent, Tensor) else -math.expm1(exponent)
