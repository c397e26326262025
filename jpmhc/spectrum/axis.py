"""What is read of a law along the real axis, place by place."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from jpmhc.spectrum.dyson import SelfEnergies


@dataclass(frozen=True)
class Axis:
    """Distribution function and density at G places x with the change that extrapolation made, and convergence."""

    cdf: Tensor
    density: Tensor
    cdf_error: Tensor
    density_error: Tensor
    residual: Tensor
    steps: Tensor

    def __getitem__(self, index: Tensor) -> Axis:
        return Axis(*(part[index] for part in self._parts))

    def replaced(self, index: Tensor, by: Axis) -> Axis:
        """Return the same with other numbers at those places."""
        return Axis(*(old.index_put((index,), new) for old, new in zip(self._parts, by._parts, strict=True)))

    @property
    def _parts(self) -> tuple[Tensor, ...]:
        return self.cdf, self.density, self.cdf_error, self.density_error, self.residual, self.steps

    @property
    def inside(self) -> Tensor:
        """Whether places lie in the support: the density there hardly depends on the angle, outside it is like it."""
        # By less than sqrt 2 as the angle doubles.
        return self.density_error < (math.sqrt(2) - 1) / (2 - math.sqrt(2)) * self.density


@dataclass(frozen=True)
class Grid:
    """Solved places, ascending, at both angles from the axis."""

    x: Tensor
    cdf: Tensor
    far: SelfEnergies
    near: SelfEnergies
