"""The step that RiemannianAdam and RiemannianSGD share: collect, check, then update one batch after the other."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from jpmhc.kernels.precision import full_precision
from jpmhc.optim.base import RiemannianOptimizer
from jpmhc.optim.batch import Batch
from jpmhc.optim.options import check_count, check_edited, check_range
from jpmhc.optim.parameters import label

_Work = tuple[dict[str, Any], list[Tensor], list[tuple[Batch, Tensor, Tensor]]]


class GradientOptimizer(RiemannianOptimizer):
    """An optimiser that makes one update from the gradients that are there.

    A subclass says how free parameters move (:meth:`_update_free`), and how a batch on a manifold does
    (:meth:`_update_batch`); everything is checked before the first of them is written to.
    """

    def __init__(self, params: Any, defaults: dict[str, Any]) -> None:
        super().__init__(params, {**defaults, "step": 0})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient; gradients are read, never written.

        Parameters
        ----------
        closure : Callable, optional
            Computes the gradients and returns the loss.

        Returns
        -------
        Any
            What the closure returned, or None.

        Raises
        ------
        ValueError
            If a gradient is not finite, or somebody has moved a point on the CPU off its manifold since the last step
            (see ``check``), or a group's rate or interval was set to what it cannot be. No parameter has moved then.
        TypeError
            If a gradient is sparse, or a parameter has lost its manifold. No parameter has moved then.
        RuntimeError
            If a CUDA graph is being captured and ``capturable`` is not set.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._check_capture()
        for group in self.param_groups:
            check_edited(group)
        plans = [self._collect(index) for index in range(len(self.param_groups))]
        work = [
            (group, plan.free, [(batch, batch.points(), batch.gradients()) for batch in plan.batches])
            for group, plan in zip(self.param_groups, plans, strict=True)
        ]
        gradients = []
        for index, (group, free, batches) in enumerate(work):
            self._check_free(index, free)
            if group["check"] == "raise" or (group["check"] is None and not group["capturable"]):
                for batch, points, _ in batches:
                    self._check_points(index, batch, points)
                found = [*(_local(p.grad) for p in free if p.grad is not None), *(g for _, _, g in batches)]
                gradients += [gradient for gradient in found if gradient.numel()]
        if gradients and not _all_finite(gradients):
            self._name_the_bad_gradient()
        kinds = sorted({gradient.device.type for _, _, batches in work for _, _, gradient in batches}) or ["cpu"]
        # Once for all maps, and for those of other libraries, which do not see to it; two kinds of devices at most.
        with full_precision(kinds[0]), full_precision(kinds[-1]):
            self._update(work)
        return loss

    def _update(self, work: list[_Work]) -> None:
        for group, free, batches in work:
            group["step"] += 1
            interval = group["stabilize"]
            stabilize = interval is not None and group["step"] % interval == 0
            for parameters in _apart(free):
                self._update_free(group, parameters, [p.grad for p in parameters if p.grad is not None])
            for batch, points, gradient in batches:
                signed = gradient.neg() if group["maximize"] else gradient
                self._update_batch(group, batch, points, signed, stabilize)

    @torch.no_grad()
    def stabilize(self) -> None:
        """Project every bound parameter onto its manifold, and its momentum onto the tangent space, now."""
        for index, group in enumerate(self.param_groups):
            bound = [p for p in group["params"] if p.numel() and self._bound(p, index) is not None]
            for batch in self._divide(index, bound, [self.state.get(p, {}) for p in bound], None)[1]:
                point = batch.manifold.projx(batch.points())
                batch.write(point)
                places = [i for i, state in enumerate(batch.states) if self._momentum in state]
                if places:
                    momenta = [batch.states[i][self._momentum] for i in places]
                    tangents = batch.manifold.proju(point[places], torch.stack(momenta).to(point))
                    for momentum, tangent in zip(momenta, tangents.unbind(), strict=True):
                        momentum.copy_(tangent)

    _momentum: str
    """Key of the tangent vector in every parameter's state."""

    def _update_free(self, group: dict[str, Any], parameters: list[Tensor], gradients: list[Tensor]) -> None:
        raise NotImplementedError

    def _update_batch(
        self, group: dict[str, Any], batch: Batch, point: Tensor, gradient: Tensor, stabilize: bool
    ) -> None:
        raise NotImplementedError

    def _check_options(self, group: dict[str, Any]) -> None:
        check_range("weight_decay", group["weight_decay"], 0.0)
        if group["stabilize"] is not None:
            check_count("stabilize", group["stabilize"])
        if group["check"] not in (None, "raise", "none"):
            raise ValueError(f"check: expected None, 'raise' or 'none', got {group['check']!r}")
        if group["capturable"] and group["stabilize"] is not None:
            raise ValueError("stabilize: expected None with capturable=True; a CUDA graph cannot count steps")
        if group["capturable"] and group["check"] == "raise":
            raise ValueError("check: expected None or 'none' with capturable=True; a CUDA graph cannot raise")

    def _check_capture(self) -> None:
        if not torch.cuda.is_available() or not torch.cuda.is_current_stream_capturing():
            return
        if not all(group["capturable"] for group in self.param_groups):
            raise RuntimeError("capturable: expected True while a CUDA graph captures step(), got False")

    def _check_free(self, group: int, parameters: list[Tensor]) -> None:
        """Raise where torch's implementation would refuse free parameters half-way through a step."""

    def _name_the_bad_gradient(self) -> None:
        for index, group in enumerate(self.param_groups):
            for place, parameter in enumerate(group["params"]):
                if parameter.grad is not None and (bad := int((~torch.isfinite(_local(parameter.grad))).sum())):
                    raise ValueError(
                        f"{label(self.param_groups, index, place)}: expected a finite gradient, got NaN or infinity in "
                        f"{bad} of {parameter.numel()} numbers"
                    )


def _apart(parameters: list[Tensor]) -> list[list[Tensor]]:
    """Return whole tensors and the shards of each mesh apart: torch's foreach operations refuse to mix them."""
    lists: dict[Any, list[Tensor]] = {}
    for parameter in parameters:
        lists.setdefault(getattr(parameter, "device_mesh", None), []).append(parameter)
    return list(lists.values())


def _all_finite(gradients: list[Tensor]) -> bool:
    """Whether all numbers are finite, from one number that is read, or two."""
    # The sum of finite numbers may overflow, but not the other way round.
    if len(gradients) == 1 and math.isfinite(gradients[0].sum().item()):
        return True
    # The largest absolute value is not finite exactly if some value is not.
    return math.isfinite(get_total_norm(gradients, math.inf).item())


def _local(gradient: Tensor) -> Tensor:
    """Return what this process holds of a gradient: its shard under FSDP2, whose tensors mix with no others."""
    shard: Tensor = gradient.to_local() if hasattr(gradient, "to_local") else gradient
    return shard


def move(batch: Batch, point: Tensor, tangent: Tensor, momentum: Tensor | None, stabilize: bool) -> None:
    """Retract a batch along a tangent vector; its momentum, transported, and the parameters are written in place.

    Parameters
    ----------
    batch : Batch
        The parameters.
    point, tangent : Tensor, shape (k, *shape)
        Where they are, and how far they go.
    momentum : Tensor, shape (k, *shape), or None
        State that goes along.
    stabilize : bool
        Project both afterwards.
    """
    manifold = batch.manifold
    if momentum is None:
        point = manifold.retr(point, tangent)
    else:
        point, moved = manifold.retr_transp(point, tangent, momentum)
        momentum.copy_(moved)
    if stabilize:
        point = manifold.projx(point)
        if momentum is not None:
            momentum.copy_(manifold.proju(point, momentum))
    batch.write(point)
