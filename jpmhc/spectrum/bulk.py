"""The part of a predicted law that has to be solved for, on a grid that follows its distribution function."""

from __future__ import annotations

import functools
import math
import warnings
from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor

from jpmhc.autodiff import ConvergenceWarning
from jpmhc.spectrum.axis import Axis, Grid
from jpmhc.spectrum.chain import Chain
from jpmhc.spectrum.dyson import SelfEnergies, attach, descend, point, solve
from jpmhc.spectrum.inverse import invert
from jpmhc.spectrum.invertible import is_invertible
from jpmhc.spectrum.kernel import kernel_share
from jpmhc.spectrum.poles import merged, pole_masses, whole
from jpmhc.spectrum.rising import rising

TOLERANCE = 1e-8
# Singular values this far below the largest count as zero: double precision tells no more about a product.
FLOOR = 1e-10
_RISE = 0.01
# A distribution function that changes by more as the angle halves is read nearer to the axis, by 5, up to 3 times.
# So is one with that much mass within the angle, over pi.
_SMEARED, _CROWDED, _FINER = 5e-4, 0.02, 3


class Bulk:
    """Law of a chain; what it takes from the resolvent near the axis.

    Parameters
    ----------
    chain : Chain
        The layers.
    top : float
        A place above which there is hardly any mass.
    angle : float
        Where the equation is solved; results are extrapolated to zero from it and its double.
    """

    def __init__(self, chain: Chain, top: float, angle: float) -> None:
        self.chain = chain
        self._numbers = chain.detached()
        self.top = top
        self.angles = (2 * angle, angle)

    # --- solving -----------------------------------------------------------------------------------------------------

    @cached_property
    def _raw_grid(self) -> Grid:
        """March down from above the law, where every start works, by a decade at a time; then refine."""
        angles = (0.3, 0.03, 4e-3, *self.angles)
        whole = 1 - float(self._kernel[1].sum())
        x = self.top * torch.logspace(0, -2, 13, dtype=torch.float64)
        rays = descend(self._numbers, x, angles)
        solved = [self._last(x[:0], ray[:0], x, ray) for ray in rays]
        xs: list[Tensor] = []
        fars: list[SelfEnergies] = []
        nears: list[SelfEnergies] = []
        highest = self.top
        while True:
            *_, far, near = rays
            xs, fars, nears = [*xs, x], [*fars, far], [*nears, near]
            axis = self._evaluate(x, far, near, attached=False)
            cdf = axis.cdf
            known = (~cdf.isnan()).nonzero()[:, 0]
            # Little mass is left, and none nearby: else the law may reach down to zero.
            if not len(known) or (float(cdf[known].min()) < 1e-4 and not bool(axis.inside[known[-1]])):
                break
            inside = x[cdf < whole - 1e-3]
            highest = min(highest, float(inside.max())) if len(inside) and highest == self.top else highest
            lowest = x[-1]
            if lowest <= FLOOR * highest:
                break
            x = lowest * torch.logspace(0, -1, 6, dtype=torch.float64)[1:]
            rays = []
            for k, angle in enumerate(angles):
                rays.append(self._below(point(x, angle), rays[-1] if rays else None, *solved[k], x))
                solved[k] = self._last(*solved[k], x, rays[-1])
        grid = self._sorted(
            torch.cat(xs), functools.reduce(SelfEnergies.joined, fars), functools.reduce(SelfEnergies.joined, nears)
        )
        if len(grid.x) < 2:
            raise RuntimeError(
                "spectrum: the self-consistent equation was solved nowhere; check the scale of the mixers"
            )
        bottom = float(grid.x[0])
        if float(grid.cdf[0]) > whole - 1e-3 and bottom > 10 * FLOOR * self.top:
            raise RuntimeError(
                f"spectrum: the law lies below {bottom:.2g}, where the equation was not solved, while its "
                f"fourth moment reaches up to {self.top:.2g}: too much energy over so many layers"
            )
        for _ in range(12):
            gap = (grid.x[1:] / grid.x[:-1]).log()
            right = ((grid.cdf.diff() > _RISE) & (gap > self.angles[1])).nonzero()[:, 0] + 1
            if not len(right):
                break
            new = (grid.x[right] * grid.x[right - 1]).sqrt()
            half = torch.full_like(new, 0.5)
            far, near = self._solve_both(new, grid.far.between(right, half), grid.near.between(right, half))
            before = len(grid.x)
            grid = self._sorted(torch.cat([grid.x, new]), grid.far.joined(far), grid.near.joined(near))
            if len(grid.x) == before:
                break
        return grid

    def _below(
        self, w: Tensor, start: SelfEnergies | None, places: Tensor, solutions: SelfEnergies, x: Tensor
    ) -> SelfEnergies:
        """Solutions at descending places x of a ray w, from those of a ray farther out or from two solved places.

        What is lost is tried again from the places next to it, one after the other.
        """
        if len(places) < 2:
            return solve(self._numbers, w, start, TOLERANCE, patient=False)
        start = solutions.continued(places, x) if start is None else start
        found = solve(self._numbers, w, start, TOLERANCE, patient=False)
        for i in range(len(x)):
            here = slice(i, i + 1)
            if not found.residual[i] <= TOLERANCE:
                again = solve(self._numbers, w[here], solutions.continued(places, x[here]), TOLERANCE, patient=False)
                found = found.replaced(torch.tensor([i]), again)
                if not again.residual[0] <= TOLERANCE:
                    break
            places, solutions = self._last(places, solutions, x[here], found[here])
        return found

    @staticmethod
    def _last(places: Tensor, solutions: SelfEnergies, x: Tensor, found: SelfEnergies) -> tuple[Tensor, SelfEnergies]:
        """Return the last two solved places and what was found there."""
        good = found.residual <= TOLERANCE
        return torch.cat([places, x[good]])[-2:], solutions.joined(found[good])[-2:]

    def _sorted(self, x: Tensor, far: SelfEnergies, near: SelfEnergies) -> Grid:
        """Order by place, and leave out what did not converge: it is NaN when asked for."""
        axis = self._evaluate(x, far, near, attached=False)
        cdf = axis.cdf
        index = (~cdf.isnan()).nonzero()[:, 0]
        index = index[x[index].argsort()]
        index = index[rising(cdf[index], axis.cdf_error[index])]
        return Grid(x[index], cdf[index].cummax(0).values, far[index], near[index])

    @cached_property
    def grid(self) -> Grid:
        """Places between which the distribution function without atoms rises by at most a hundredth."""
        grid = self._raw_grid
        if len(self.atoms[0]):
            grid = self._sorted(grid.x, grid.far, grid.near)
        # Smeared places would bracket quantiles wrongly.
        smeared = (self._evaluate(grid.x, grid.far, grid.near, attached=False).cdf_error > _SMEARED).nonzero()[:, 0]
        if not len(smeared):
            return grid
        with torch.no_grad():
            cdf = grid.cdf.index_put((smeared,), self.at(grid.x[smeared], attached=False).cdf)
        return replace(grid, cdf=torch.where(cdf.isnan(), grid.cdf, cdf).cummax(0).values)

    def start(self, x: Tensor) -> tuple[SelfEnergies, SelfEnergies]:
        """Solutions between those of the grid's neighbours, at both angles."""
        grid = self._raw_grid
        right = torch.searchsorted(grid.x, x.contiguous()).clamp(1, len(grid.x) - 1)
        weight = ((x / grid.x[right - 1]).log() / (grid.x[right] / grid.x[right - 1]).log()).clamp(0, 1)
        return grid.far.between(right, weight), grid.near.between(right, weight)

    def solve(self, x: Tensor) -> tuple[SelfEnergies, SelfEnergies]:
        """Solutions at real x > 0, at both angles."""
        far, near = self._solve_both(x, *self.start(x))
        lost = ~((far.residual <= TOLERANCE) & (near.residual <= TOLERANCE))
        if lost.any():
            # Across an edge the neighbours may be no start: climb away from the axis and come down again.
            index = lost.nonzero()[:, 0]
            again = descend(self._numbers, x[index], (0.3, 0.1, 0.03, 0.01, *self.angles), self.start(x[index])[0])
            far, near = far.replaced(index, again[-2]), near.replaced(index, again[-1])
            lost = ~((far.residual <= TOLERANCE) & (near.residual <= TOLERANCE))
        if lost.any():
            index = lost.nonzero()[:, 0]
            both = self._solve_both(x[index], far[index], near[index], patient=True)
            far, near = far.replaced(index, both[0]), near.replaced(index, both[1])
            lost = ~((far.residual <= TOLERANCE) & (near.residual <= TOLERANCE))
        if lost.any():
            # Where round-off is as large as the tolerance, a place that the grid has may be solved once and not again.
            grid = self._raw_grid
            place = torch.searchsorted(grid.x, x.contiguous()).clamp_max(len(grid.x) - 1)
            index = (lost & (grid.x[place] == x)).nonzero()[:, 0]
            far, near = (old.replaced(index, new[place[index]]) for old, new in ((far, grid.far), (near, grid.near)))
        return far, near

    def _solve_both(
        self, x: Tensor, far: SelfEnergies, near: SelfEnergies, patient: bool = False
    ) -> tuple[SelfEnergies, SelfEnergies]:
        """Solve at both angles from starts there, as one batch."""
        w = torch.cat([point(x, angle) for angle in self.angles])
        found = solve(self._numbers, w, far.joined(near), TOLERANCE, patient)
        return found[: len(x)], found[len(x) :]

    # --- reading off -------------------------------------------------------------------------------------------------

    def at(self, x: Tensor, attached: bool = True) -> Axis:
        """Read the law without its atoms at x > 0; NaN and a warning where the solve did not converge.

        Where the angle smears, in a peak narrower than it, the law is read nearer to the axis.
        """
        far, near = self.solve(x)
        found = self._evaluate(x, far, near, atoms=self.atoms, attached=attached)
        warn_about(found.residual)
        angles, index = self.angles, _smeared(x, found, self.angles[1]).nonzero()[:, 0]
        for _ in range(_FINER):
            if not len(index):
                break
            angles = (angles[0] / 5, angles[1] / 5)
            far, close = descend(self._numbers, x[index], angles, near[index])
            finer = self._evaluate(x[index], far, close, atoms=self.atoms, attached=attached, angles=angles)
            # Its error may be larger for once: from far away a peak looks as if half of it were below.
            good = finer.residual <= TOLERANCE
            if not self.chain.branch.closed:
                # Quadrature loses the potential of a branch by its S-transform next to a pole.
                good &= finer.cdf_error < found.cdf_error[index]
            found, near = found.replaced(index[good], finer[good]), near.replaced(index, close)
            index = index[(finer.residual <= TOLERANCE) & _smeared(x[index], found[index], angles[1])]
        return found

    def _evaluate(
        self,
        x: Tensor,
        far: SelfEnergies,
        near: SelfEnergies,
        atoms: tuple[Tensor, Tensor] | None = None,
        attached: bool = True,
        angles: tuple[float, ...] | None = None,
    ) -> Axis:
        residual = torch.maximum(far.residual, near.residual)
        index = (residual <= TOLERANCE).nonzero()[:, 0]
        places, masses = atoms or self.__dict__.get("atoms") or self._kernel
        values = []
        chain = self.chain if attached else self._numbers
        with torch.set_grad_enabled(attached and torch.is_grad_enabled()):
            for found, angle in zip((far, near), angles or self.angles, strict=True):
                w = point(x[index], angle)
                s, t = attach(chain, w, found[index])
                resolvent = chain.resolvent(w, s, t)
                # What a mass at a place looks like from here is known, so it is taken out exactly.
                gap = w.unsqueeze(-1).square() - places.square()
                potential = chain.potential(w, s, t, resolvent) - (masses * gap.log()).sum(-1)
                height = w * resolvent.g - (masses * w.unsqueeze(-1).square() / gap).sum(-1)
                mass = 1 - masses.sum()
                values.append(torch.stack([mass - potential.imag / math.pi, -2 / math.pi * height.imag / x[index]]))
            far_value, value = values
            # Linear in the angle, inside the support and outside of it.
            better = (2 * value - far_value).clamp_min(0)
            better = torch.stack([better[0].clamp_max(1 - float(masses.detach().sum())), better[1]])
            everything = torch.cat([better, (value - far_value).abs().detach()])
        cdf, density, cdf_error, density_error = _scattered(everything, index, len(x))
        return Axis(cdf, density, cdf_error, density_error, residual, near.steps)

    @cached_property
    def _kernel(self) -> tuple[Tensor, Tensor]:
        """Place 0 and the mass there, or nothing: known before anything is solved."""
        share = torch.tensor([kernel_share(self._numbers)], dtype=torch.float64)
        share = share[share > 0]
        return torch.zeros_like(share), share

    @cached_property
    def atoms(self) -> tuple[Tensor, Tensor]:
        """Places and masses of atoms: at zero, and others that only the resolvent shows.

        These lie at singular values of the product of the mixers of which there are more than the branches have
        directions to move.
        """
        product = torch.eye(self.chain.mixers.shape[-1], dtype=torch.float64)
        for matrix in self.chain.mixers.detach():
            product = matrix @ product
        places = torch.linalg.svdvals(product).flip(0)
        places = merged(places[places > FLOOR * places[-1]])
        if not len(places):
            return self._kernel
        mass = pole_masses(self._numbers, places, self.solve(places)[1])
        places, mass = places[mass > 0], whole(self.chain, mass[mass > 0])
        return torch.cat([self._kernel[0], places]), torch.cat([self._kernel[1], mass])

    # --- the whole ---------------------------------------------------------------------------------------------------

    @property
    def mass(self) -> float:
        """Mass that is not in atoms."""
        return 1 - float(self.atoms[1].sum())

    def interpolated(self, share: Tensor) -> Tensor:
        """Quantiles as the grid has them, for shares in [0, mass]."""
        x, cdf = self.grid.x, self.grid.cdf
        right = torch.searchsorted(cdf, share).clamp(1, len(x) - 1)
        rise = (cdf[right] - cdf[right - 1]).clamp_min(1e-300)
        weight = ((share - cdf[right - 1]) / rise).clamp(0, 1)
        return x[right - 1] * (x[right] / x[right - 1]) ** weight

    def below(self, x: Tensor) -> Tensor:
        """Distribution function without atoms, as numbers; as the grid has it where the solve does not converge."""
        grid = self.grid
        with torch.no_grad():
            cdf = self.at(x, attached=False).cdf
        right = torch.searchsorted(grid.x, x.contiguous()).clamp(1, len(grid.x) - 1)
        weight = ((x / grid.x[right - 1]).log() / (grid.x[right] / grid.x[right - 1]).log()).clamp(0, 1)
        return torch.where(cdf.isnan(), torch.lerp(grid.cdf[right - 1], grid.cdf[right], weight), cdf)

    def quantile(self, share: Tensor) -> Tensor:
        """Smallest x below which there is that share, in [0, mass]; 0 for what lies below the grid."""
        grid = self.grid
        x = torch.zeros_like(share)
        found = (~((share <= grid.cdf[0]) & (grid.cdf[0] > 1e-4))).nonzero()[:, 0]
        return x.index_put((found,), invert(self, share[found])) if len(found) else x

    @cached_property
    def reaches_zero(self) -> bool:
        """Whether mass remains below the grid, or a density reaches down to zero."""
        grid = self.grid
        if not len(self._kernel[0]):
            # Down there a density is round-off; whether it goes on to zero is known without it.
            return float(grid.cdf[0]) > 1e-4 or not is_invertible(self._numbers)
        lowest = self._evaluate(grid.x[:1], grid.far[:1], grid.near[:1], attached=False)
        return float(grid.cdf[0]) > 1e-4 or bool(lowest.inside)

    @cached_property
    def edges(self) -> tuple[float, float]:
        """Ends of the support; the lower one is 0 where mass remains at the floor, or a density reaches down to it."""
        x, cdf = self.grid.x, self.grid.cdf
        middle = self.interpolated(torch.tensor([0.5 * self.mass], dtype=torch.float64))
        inside = torch.cat([x[(cdf > 1e-4) & (cdf < self.mass - 1e-4)], middle])
        high = self._boundary(float(inside.max()), float(x[-1]))
        if self.reaches_zero:
            return 0.0, high
        return self._boundary(float(inside.min()), float(x[0])), high

    def _boundary(self, inside: float, outside: float) -> float:
        """Where the density ends: there it grows by sqrt 2 as the angle doubles, outside by 2, inside not at all.

        Or where it is no more than what the solve leaves open: next to zero edges lie lower than that.
        """
        for _ in range(3):
            x = torch.logspace(math.log10(inside), math.log10(outside), 12, dtype=torch.float64)
            with torch.no_grad():
                far, near = (self._height(x, found, a) for found, a in zip(self.solve(x), self.angles, strict=True))
            beyond = (far / near > math.sqrt(2)) | (near <= TOLERANCE)
            first = int(beyond.to(torch.uint8).argmax()) if beyond.any() else len(x) - 1
            inside, outside = float(x[max(first - 1, 0)]), float(x[first])
        return math.sqrt(inside * outside)

    def _height(self, x: Tensor, found: SelfEnergies, angle: float) -> Tensor:
        w = point(x, angle)
        places, masses = self.atoms
        atoms = (masses * w.unsqueeze(-1).square() / (w.unsqueeze(-1).square() - places.square())).sum(-1)
        return -(w * self._numbers.resolvent(w, found.s, found.t).g - atoms).imag

    def stieltjes(self, w: Tensor) -> Tensor:
        """``E[w / (w^2 - s^2)]`` of the chain, atoms included, in the open first quadrant."""
        start = self.start(w.abs())[1]
        found = solve(self._numbers, w, start, TOLERANCE)
        lost = (~(found.residual <= TOLERANCE)).nonzero()[:, 0]
        if len(lost):
            found = found.replaced(lost, solve(self._numbers, w[lost], None, TOLERANCE))
        warn_about(found.residual)
        index = (found.residual <= TOLERANCE).nonzero()[:, 0]
        s, t = attach(self.chain, w[index], found[index])
        g = torch.full_like(w, complex(math.nan, math.nan))
        return g.index_put((index,), self.chain.resolvent(w[index], s, t).g)


def _smeared(x: Tensor, found: Axis, angle: float) -> Tensor:
    """Whether an angle is too coarse: by the estimate, or because much mass lies within it."""
    return (found.cdf_error > _SMEARED) | (x * found.density.detach() * angle > _CROWDED)


def _scattered(rows: Tensor, index: Tensor, length: int) -> tuple[Tensor, ...]:
    return tuple(torch.full((length,), math.nan, dtype=torch.float64).index_put((index,), row) for row in rows)


def warn_about(residual: Tensor) -> None:
    """Warn if a point did not converge."""
    lost = int((~(residual <= TOLERANCE)).sum())
    if lost:
        warnings.warn(
            f"spectrum: {lost} of {len(residual)} points did not converge and are NaN; law.points(s) says which, "
            "a larger regularisation is easier",
            ConvergenceWarning,
            stacklevel=2,
        )
