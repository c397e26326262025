"""Mixers that hold a point of a manifold as a parameter."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from jpmhc.layers.mixer import Mixer

if TYPE_CHECKING:
    from jpmhc import manifolds


class BasePointMixer(Mixer):
    """A mixer that may hold its base point as a :class:`jpmhc.manifolds.Parameter`, for a Riemannian optimiser to move.

    The point stays in float32 at least, whatever precision the model is cast to: rounded to bfloat16 it would be off
    its manifold.
    """

    base: Tensor
    initial: Tensor | None = None

    def set_base(self, point: Tensor, manifold: manifolds.Manifold) -> None:
        """Make a point of the manifold the parameter ``base`` and its start."""
        from jpmhc import manifolds

        self.initial = point.detach().to("cpu", torch.promote_types(point.dtype, torch.float32)).clone()
        # Where a default device is set, "meta" for one, parameters are made there.
        self.base = manifolds.Parameter(self.initial.clone().to(torch.empty(0).device), manifold=manifold)

    def reset_parameters(self) -> None:
        """Return the base point to where it started."""
        if self.initial is not None:
            with torch.no_grad():
                self.base.copy_(self.initial)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> BasePointMixer:
        before = self.base.detach()
        super()._apply(fn, recurse)
        if self.base.dtype.itemsize < torch.float32.itemsize:
            gradient, self.base.grad = self.base.grad, None
            self.base.data = before.to(self.base.device, torch.float32)
            self.base.grad = None if gradient is None else gradient.float()
        return self


def parameter_dtype() -> torch.dtype:
    """Return the dtype of new base points: the default one, float32 at least."""
    return torch.promote_types(torch.get_default_dtype(), torch.float32)
