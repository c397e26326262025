"""What the two solvers for deterministic problems share: one group, a closure, and its value and gradient."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from jpmhc.manifolds.peer import geoopt
from jpmhc.optim.base import RiemannianOptimizer
from jpmhc.optim.blocks import Blocks, Vector
from jpmhc.optim.options import check_count, check_range

Closure = Callable[[], Any]


class ClosureOptimizer(RiemannianOptimizer):
    """An optimiser that calls a closure, as ``torch.optim.LBFGS``, several times a step.

    All parameters are one point: an option cannot differ between groups, so there is one group only. Parameters without
    a manifold take part, on the flat one; frozen ones (``requires_grad`` False) stay where they are.

    Numbers of the whole point are kept in the group. In a parameter's state ``torch.distributed.checkpoint`` would lose
    them, and as tensors they would be rounded to the parameter's dtype where they are loaded. They start anew where the
    state of the first parameter does.
    """

    _start: ClassVar[dict[str, Any]] = {"n_iter": 0, "func_evals": 0}
    """The numbers, as they start."""

    def __init__(self, params: Any, defaults: dict[str, Any]) -> None:
        self._counted: dict[str, Any] | None = None
        super().__init__(params, {**defaults, **self._start})

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._counted = None
        for group in self.param_groups:
            # Where they were kept once, as torch.optim.LBFGS keeps its own.
            old = self.state.get(group["params"][0], {}) if group["params"] else {}
            for name, start in self._start.items():
                group[name] = old.pop(name) if name in old else group.get(name, start)

    def _begin(self, closure: Closure | None) -> tuple[dict[str, Any], Blocks]:
        """Return the group, its numbers as the last step left them or, for another point, new; and the point."""
        group = self.param_groups[0]
        moving = (p for p in group["params"] if p.requires_grad and p.numel())
        # To have a state made, torch.distributed.checkpoint asks for a step without a closure from gradients of zero.
        # From there no step moves; anywhere else somebody has forgotten the closure.
        if closure is None and any(p.grad is None or bool(p.grad.any()) for p in moving):
            raise TypeError("closure: expected a function that computes the loss and its gradients, got None")
        blocks = self._blocks()
        for batch in blocks.batches:
            self._check_points(0, batch, batch.points())
        state = self.state[group["params"][0]]
        if self._counted is not None and self._counted is not state:
            group.update(self._start)
        self._counted = state
        return group, blocks

    def _check_options(self, group: dict[str, Any]) -> None:
        if self.param_groups:
            raise ValueError(f"params: expected one group, {type(self).__name__} has no options per parameter")
        check_count("max_iter", group["max_iter"])
        check_range("tolerance_grad", group["tolerance_grad"], 0.0)

    def _state_shapes(self, parameter: Tensor) -> dict[str, torch.Size]:
        return {"direction": parameter.shape}

    def _blocks(self) -> Blocks:
        batches = self._collect(0, flat=geoopt.Euclidean()).batches
        if not batches:
            raise ValueError("params: expected a parameter to move, got only frozen and empty ones")
        return Blocks(batches)

    def _evaluate(self, closure: Closure, blocks: Blocks) -> tuple[float, Vector]:
        with torch.enable_grad():
            loss = number(closure())
        self.param_groups[0]["func_evals"] += 1
        return loss, [batch.gradients() for batch in blocks.batches]

    def _check_start(self, loss: float, egrad: Vector, blocks: Blocks) -> None:
        """Raise unless the loss and all gradients are finite where the step begins."""
        if not math.isfinite(loss):
            raise ValueError(f"closure: expected a finite loss at the start of a step, got {loss}")
        for parameter, gradient in zip(blocks.parameters, blocks.scatter(egrad), strict=True):
            if bad := int((~torch.isfinite(gradient)).sum()):
                raise ValueError(
                    f"{self._label(0, parameter)}: expected a finite gradient, got NaN or infinity in {bad} of "
                    f"{parameter.numel()} numbers"
                )


def number(loss: Any) -> float:
    """Return a closure's loss as a number.

    Raises
    ------
    TypeError
        If it is neither a tensor of one element nor a number.
    """
    if isinstance(loss, Tensor) and loss.numel() == 1:
        return float(loss.detach())
    if isinstance(loss, int | float):
        return float(loss)
    got = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
    raise TypeError(f"closure: expected it to return the loss, one number, got {got}")
