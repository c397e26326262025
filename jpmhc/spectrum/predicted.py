"""The predicted law: distribution function and density from the resolvent, next to the real axis."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from jpmhc.host import on_host
from jpmhc.spectrum.arguments import as_number
from jpmhc.spectrum.branches import Branch
from jpmhc.spectrum.bulk import TOLERANCE, Bulk
from jpmhc.spectrum.closed_forms import mean_log, second_and_fourth_moment
from jpmhc.spectrum.law import Law, as_levels, as_places
from jpmhc.spectrum.model import Model, make_model
from jpmhc.spectrum.moments import bulk_moment, exact_power
from jpmhc.spectrum.scalar import ScalarLaw
from jpmhc.spectrum.split import split


@dataclass(frozen=True)
class Points:
    """A law at G places, with what is known about the numbers.

    Attributes
    ----------
    s : Tensor, shape (G,)
        Places.
    cdf, density : Tensor, shape (G,)
        Distribution function, atoms included, and density of the rest; NaN where the solve did not converge.
    cdf_error, density_error : Tensor, shape (G,)
        Estimates from the regularisation: the change by extrapolating it to zero.
    residual : Tensor, shape (G,)
        Of the self-consistent equation.
    steps : Tensor, shape (G,), int64
        Eliminations it took.
    converged : Tensor, shape (G,), bool
        Whether the residual is at most 1e-8.
    """

    s: Tensor
    cdf: Tensor
    density: Tensor
    cdf_error: Tensor
    density_error: Tensor
    residual: Tensor
    steps: Tensor
    converged: Tensor


class PredictedLaw(Law):
    """Singular values of a product of layers as the width of the streams grows; made by :func:`predict`.

    Attributes
    ----------
    model : Model
        The layers.
    regularisation : float
        Angle between the axis and the ray on which the equation is solved; results are extrapolated to zero from it
        and its double.
    """

    def __init__(self, model: Model, regularisation: float = 5e-4) -> None:
        regularisation = as_number("regularisation", regularisation)
        if not 0 < regularisation <= 0.1:
            raise ValueError(f"regularisation: expected a number in (0, 0.1], got {regularisation}")
        self.model = model
        self.regularisation = float(regularisation)
        chain, self._split_places = split(model)
        self._bulk = None
        self._share = 0.0
        if chain is not None:
            self._share = chain.mixers.shape[-1] / model.streams
            # Above it the fourth moment leaves at most 1e-6 of the mass.
            top = (1e6 * float(self._low_moments[1].detach()) / self._share) ** 0.25
            if top == 0 and float(self._low_moments[0].detach()) == 0:
                # Whatever is written is taken to zero.
                self._split_places, self._share = model.mixers.new_zeros(model.streams), 0.0
                return
            if not 0 < top < 1e150:
                raise ValueError(
                    f"mixers: expected a product of a size that float64 can hold, got E[s^4]^(1/4) = {top:g}"
                )
            self._bulk = Bulk(chain, top, self.regularisation)

    def __repr__(self) -> str:
        return f"<predicted law of {self.model.layers} layers of {self.model.streams} streams>"

    # --- without solving ---------------------------------------------------------------------------------------------

    @cached_property
    def mean_log(self) -> Tensor:
        """``E[log s]`` in closed form."""
        return mean_log(self.model)

    @cached_property
    def scalar_load(self) -> Tensor:
        """``c``: the branches' energy per direction over the depth. It decides the scalar law beside this one."""
        return self.model.scalar_load

    @property
    def scalar(self) -> ScalarLaw:
        """The scalar law of that load, which must be positive."""
        return ScalarLaw(float(self.scalar_load.detach()))

    @cached_property
    def _low_moments(self) -> tuple[Tensor, Tensor]:
        return second_and_fourth_moment(self.model)

    # --- the law -----------------------------------------------------------------------------------------------------

    @cached_property
    def atoms(self) -> tuple[Tensor, Tensor]:
        """Places, ascending, and masses (k,) of the atoms: directions that no branch moves. Nothing smears them."""
        places, masses = self._split_places, torch.full_like(self._split_places, 1 / self.model.streams)
        if self._bulk is not None:
            more, shares = self._bulk.atoms
            places, masses = torch.cat([places, more]), torch.cat([masses, self._share * shares])
        places, order = places.sort()
        masses = masses[order]
        # Equal up to round-off: one atom.
        first = torch.ones_like(places, dtype=torch.bool)
        first[1:] = places[1:] - places[:-1] > 1e-12 * places[-1:]
        group = first.cumsum(0) - 1
        return places[first], torch.zeros(int(first.sum()), dtype=torch.float64).index_add(0, group, masses)

    def stieltjes(self, w: Tensor | complex) -> Tensor:
        """``E[w / (w^2 - s^2)]`` at any complex ``w`` off the real axis.

        Raises
        ------
        ValueError
            If a ``w`` is real, where the law itself lies.
        """
        w = torch.as_tensor(w, dtype=torch.complex128)
        flat = w.reshape(-1)
        if not (flat.isfinite().all() and (flat.imag != 0).all()):
            raise ValueError("w: expected finite complex numbers off the real axis; on it there is density(s)")
        total = (flat.unsqueeze(-1) / (flat.unsqueeze(-1).square() - self._split_places.square())).sum(-1)
        total = total / self.model.streams
        if self._bulk is not None:
            # Odd and conjugate-symmetric: two reflections into the first quadrant.
            lower, left = flat.imag < 0, flat.real < 0
            turned = torch.where(lower, flat.conj(), flat)
            g = self._bulk.stieltjes(torch.where(left, -turned.conj(), turned))
            g = torch.where(left, -g.conj(), g)
            total = total + self._share * torch.where(lower, g.conj(), g)
        return total.reshape(w.shape)

    def points(self, s: Tensor | float) -> Points:
        """Distribution function and density at places ``s > 0``, flattened to (G,), with errors and convergence."""
        s = torch.as_tensor(s, dtype=torch.float64).reshape(-1)
        if not (s.isfinite() & (s > 0)).all():
            raise ValueError("s: expected finite numbers > 0")
        step = self._atoms_below(s)
        if self._bulk is None:
            zero = torch.zeros_like(s)
            return Points(s, step, zero, zero, zero, zero, zero.long(), zero == 0)
        found = self._bulk.at(s)
        cdf, density, cdf_error, density_error = (
            self._share * part for part in (found.cdf, found.density, found.cdf_error, found.density_error)
        )
        converged = found.residual <= TOLERANCE
        return Points(s, cdf + step, density, cdf_error, density_error, found.residual, found.steps, converged)

    def density(self, s: Tensor | float) -> Tensor:
        """Density with respect to ``ds`` of the part without atoms; zero for negative s and below the floor."""
        s = as_places(s)
        flat = s.reshape(-1)
        value = torch.zeros_like(flat)
        index = ((flat > self._lowest) & flat.isfinite()).nonzero()[:, 0]
        if len(index):
            value = value.index_put((index,), self.points(flat[index]).density)
        return value.reshape(s.shape)

    def cdf(self, s: Tensor | float) -> Tensor:
        """Probability of a singular value at most ``s``, atoms included; at 0 the mass of all that counts as zero."""
        s = as_places(s)
        flat = s.reshape(-1)
        value = self._atoms_below(flat)
        if self._bulk is not None:
            value = torch.where(flat == math.inf, 1.0, value)
            index = ((flat >= 0 if self.floor else flat > 0) & flat.isfinite()).nonzero()[:, 0]
            if len(index):
                # Atoms are where they are; the rest is not asked for further down.
                bulk = self._bulk.at(flat[index].clamp_min(self._lowest)).cdf
                value = value.index_put((index,), value[index] + self._share * bulk)
        return value.reshape(s.shape)

    def _atoms_below(self, s: Tensor) -> Tensor:
        places, masses = self.atoms
        return torch.where(places.detach() <= s.unsqueeze(-1), masses, 0).sum(-1)

    @cached_property
    def _zero(self) -> float:
        """Mass of the atom at zero."""
        places, masses = self.atoms
        return float(masses[places == 0].sum())

    @cached_property
    def _lowest(self) -> float:
        """Where the resolvent is still asked; below there is nothing, or all counts as zero."""
        if self._bulk is None:
            return 0.0
        return self.floor or 0.1 * float(self._bulk.grid.x[0])

    @cached_property
    def floor(self) -> float:
        """Place below which all counts as zero, or zero if nothing does.

        It is some 1e-10 of the largest value, or higher where double precision does not solve the equation further
        down; zero where the law ends above. Atoms, which are not solved for, keep their places.
        """
        return float(self._bulk.grid.x[0]) if self._bulk is not None and self._bulk.reaches_zero else 0.0

    @cached_property
    def _power_at_zero(self) -> float:
        """Power of s with which the distribution function starts at zero: 0 with mass there, else infinite off zero."""
        if self._zero or (self._bulk is not None and float(self._bulk.grid.cdf[0]) > 1e-4):
            return 0.0
        if self._bulk is None or not self._bulk.reaches_zero:
            return math.inf
        x, cdf = self._bulk.grid.x, self._bulk.grid.cdf
        # Where neither differences to one nor residuals of the solve are seen.
        low = int(torch.searchsorted(cdf, 1000 * TOLERANCE).clamp(max=len(x) - 2))
        high = int(torch.searchsorted(x, 10 * x[low]).clamp(low + 1, len(x) - 1))
        return float((cdf[high] / cdf[low]).log() / (x[high] / x[low]).log())

    @cached_property
    def edges(self) -> tuple[float, float]:
        """Smallest and largest singular value; 0 if the law reaches down to its floor.

        To three times the regularisation, and less exactly next to zero, or where more than 1e-8 of the law is no
        longer beyond. That a density reaches zero is decided exactly, by whether a layer lacks an inverse.
        """
        ends = self.atoms[0].detach().tolist()
        if self._bulk is not None and self._bulk.mass > 1e-9:
            ends += self._bulk.edges
        return min(ends), max(ends)

    def quantile(self, q: Tensor | float) -> Tensor:
        """Smallest ``s`` with ``cdf(s) >= q``, for ``q`` in [0, 1]; 0 below the floor, NaN where nothing converges."""
        q = as_levels(q)
        flat = q.reshape(-1)
        places, masses = self.atoms
        value = torch.full_like(flat, math.nan)
        below = torch.zeros_like(flat)
        if len(places):
            left = self._atoms_below(places.detach()) - masses
            if self._bulk is not None:
                left = left + self._share * self._bulk.below(places.detach().clamp_min(self._lowest))
            # A level that round-off of the solve puts past an atom is the atom's.
            over = flat.unsqueeze(-1) > left + masses + 10 * TOLERANCE
            on = (flat.unsqueeze(-1) > left) & ~over
            below = torch.where(over, masses, 0).sum(-1)
            value = torch.where(on.any(-1), places[on.to(torch.uint8).argmax(-1)], value)
        ends = (flat == 0) | (flat == 1)
        rest = (value.isnan() & ~ends).nonzero()[:, 0]
        if len(rest) and self._bulk is not None:
            share = ((flat[rest] - below[rest]) / self._share).clamp(0, self._bulk.mass)
            found = self._bulk.quantile(share)
            # Beyond the edges a level is round-off of the solve.
            value = value.index_put((rest,), found + (found.clamp(*self._bulk.edges) - found).detach())
        if ends.any():
            smallest, largest = self.edges
            value = torch.where(flat == 0, smallest, torch.where(flat == 1, largest, value))
        return value.reshape(q.shape)

    def moment(self, k: float) -> Tensor:
        """``E[s^k]``: closed forms for k = 0, 2, 4, else over quantiles of every band; infinite if too much is near 0.

        Below the lowest of them a law that reaches down to zero is a power of s. A moment that is about to diverge and
        whose power is only known as the solve shows it comes with a warning.
        """
        k = as_number("k", k)
        if not math.isfinite(k):
            raise ValueError(f"k: expected a finite number, got {k}")
        if k in (0.0, 2.0, 4.0):
            return (torch.ones((), dtype=torch.float64), *self._low_moments)[int(k) // 2]
        # The power is known to some digits, and next to it the quadrature would not converge.
        if k < 0 and k + exact_power(self._power_at_zero)[0] < 0.01:
            return torch.tensor(math.inf, dtype=torch.float64)
        places, masses = self.atoms
        total = (masses * places.pow(k)).sum()
        if self._bulk is not None:
            power, exact = exact_power(self._power_at_zero) if k < 0 else (math.inf, True)
            total = total + self._share * self._bulk.mass * bulk_moment(self._bulk, k, power, exact)
        return total


@on_host
def predict(
    mixers: Any,
    read: Any = None,
    write: Any = None,
    energy: Any = 1.0,
    branch: str | Branch = "gaussian",
    *,
    regularisation: float = 5e-4,
) -> PredictedLaw:
    """Law of the singular values of ``J_{L-1} ... J_0``, ``J_l = M_l (x) I_C + write_l read_l^T (x) X_l``, as C grows.

    Parameters
    ----------
    mixers : Tensor, shape (L, n, n), or a sequence of L matrices
        Skip matrices, from the first layer to the last.
    read, write : Tensor, shape (L, n) or (n,)
        Weights of the branch's input and output; ``None`` with ``branch="isotropic"``.
    energy : Tensor, shape (L,) or ()
        ``||X_l||_F^2 / C``, the mean squared singular value of the branch's Jacobian. With ``"isotropic"`` that of the
        nC x nC noise.
    branch : {"gaussian", "haar", "relu", "isotropic"} or Branch
        Entries N(0, v / C); sqrt(v) times a rotation; two Gaussian layers around a ReLU's mask with as many hidden
        units as channels (:class:`Hidden` for other widths); the model of the JPmHC paper, ``M_l (x) I`` plus
        independent noise on everything; any other R-diagonal law by its S-transform.
    regularisation : float, default=5e-4
        Distance from the real axis, as an angle, from which results are extrapolated; nearer, down to a hundredth of
        it, in peaks that are narrower.

    Returns
    -------
    PredictedLaw

    Raises
    ------
    ValueError
        Mixers that are not square or of different sizes, no layer, negative energies, anything not finite, a
        regularisation that is not positive.

    Notes
    -----
    Free probability: the branches of different layers are independent, and as C grows the equation for the n x n
    resolvents closes on two complex numbers a layer. Atoms are split off first. One elimination costs O(L n^3) a point;
    25 to 60 of them solve a point. The law is computed when first asked for; ``mean_log``, the moments 2 and 4 and the
    isometry gap are closed forms.

    Everything except ``edges`` carries derivatives with respect to mixers, gates and energies, by the implicit
    function theorem.

    Examples
    --------
    Rotations keep the typical singular value at 1 whatever the depth; averaging does not:

    >>> import torch
    >>> from jpmhc import spectrum
    >>> L, read, write = 24, torch.tensor([0.7, 0.1, 0.1, 0.1]), torch.ones(4)
    >>> rotations = torch.linalg.qr(torch.randn(L, 4, 4, generator=torch.Generator().manual_seed(0)))[0]
    >>> law = spectrum.predict(rotations, read, write, energy=0.02)
    >>> print(f"mean log {law.mean_log.abs():.3f}, median {law.quantile(0.5):.2f}, condition {law.condition:.0f}")
    mean log 0.000, median 1.00, condition 5
    """
    return PredictedLaw(make_model(mixers, read, write, energy, branch), regularisation)
