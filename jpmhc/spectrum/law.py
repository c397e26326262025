"""A law: the distribution of the singular values of a Jacobian, however it was found."""

from __future__ import annotations

import abc
import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from jpmhc.host import methods_on_host
from jpmhc.spectrum.closed_forms import gap
from jpmhc.spectrum.pyplot import pyplot
from jpmhc.spectrum.ticks import name_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class Law(abc.ABC):
    """Distribution of singular values ``s >= 0``, predicted or measured.

    Subclasses define :meth:`stieltjes`, :meth:`density`, :meth:`cdf`, :meth:`quantile`, :meth:`moment`,
    :attr:`mean_log` and :attr:`edges`, and :attr:`atoms` where they have any; the rest follows. Arguments are numbers
    or tensors of any shape, results tensors of that shape in float64 (complex128 for the transform), on the CPU.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        methods_on_host(cls)

    @abc.abstractmethod
    def stieltjes(self, w: Tensor | complex) -> Tensor:
        """``E[w / (w^2 - s^2)]`` at complex ``w`` off the real axis."""

    @abc.abstractmethod
    def density(self, s: Tensor | float) -> Tensor:
        """Density with respect to ``ds`` of the part of the law without atoms."""

    @abc.abstractmethod
    def cdf(self, s: Tensor | float) -> Tensor:
        """Probability of a singular value at most ``s``, atoms included."""

    @abc.abstractmethod
    def quantile(self, q: Tensor | float) -> Tensor:
        """Smallest ``s`` with ``cdf(s) >= q``, for ``q`` in [0, 1]."""

    @abc.abstractmethod
    def moment(self, k: float) -> Tensor:
        """``E[s^k]``."""

    @property
    @abc.abstractmethod
    def mean_log(self) -> Tensor:
        """``E[log s]``, the mean exponent; minus infinity if ``s = 0`` has mass."""

    @property
    @abc.abstractmethod
    def edges(self) -> tuple[float, float]:
        """Smallest and largest singular value: the ends of the support."""

    @property
    def atoms(self) -> tuple[Tensor, Tensor]:
        """Places and masses of the atoms, two tensors of shape (k,), places ascending; empty unless overridden."""
        return torch.zeros(0, dtype=torch.float64), torch.zeros(0, dtype=torch.float64)

    @property
    def floor(self) -> float:
        """Place below which all counts as zero to this law; 0 unless overridden."""
        return 0.0

    @property
    def condition(self) -> float:
        """Condition number: largest over smallest singular value, infinite where the smallest is zero."""
        smallest, largest = self.edges
        return largest / smallest if smallest > 0 else math.inf

    @property
    def isometry_gap(self) -> Tensor:
        """``log E[s^2] - 2 E[log s] >= 0``, zero only if all singular values are equal; infinite if s = 0 has mass."""
        return gap(self.moment(2), self.mean_log)

    def mass_below(self, threshold: float) -> Tensor:
        """Share of the singular values at most ``threshold``: directions in which signal or gradient is lost."""
        return self.cdf(threshold)

    def plot(self, ax: Axes | None = None, *, log: bool = False, points: int = 400, **style: Any) -> Axes:
        """Draw the density, and every atom as a stem whose label is its mass.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, optional
            Where to draw; a new figure by default.
        log : bool, default=False
            Density of ``log s`` over a logarithmic axis, for spectra that span decades. Zeros, which it cannot show,
            are named in the label.
        points : int, default=400
            Points of the curve.
        **style
            Passed to ``Axes.plot``: ``label``, ``color``, ``linewidth``.

        Returns
        -------
        matplotlib.axes.Axes

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        ValueError
            With ``log``, if all singular values are zero.
        """
        plt = pyplot()

        smallest, largest = self.edges
        if log and not largest > 0:
            raise ValueError("log: expected a law with singular values above zero, got one of zeros; pass log=False")
        if ax is None:
            _, ax = plt.subplots(layout="constrained")
        if log:
            zero = float(self.cdf(0.0).detach())
            if zero >= 0.005:
                style["label"] = f"{style.get('label', 'predicted')} ({100 * zero:.0f} % zero)"
            if not smallest > 0:
                # A decade below all but a thousandth of the rest, and no further than double precision goes.
                smallest = max(0.1 * float(self.quantile(zero + 1e-3 * (1 - zero)).detach()), 1e-12 * largest)
            s = torch.logspace(math.log10(smallest) - 0.02, math.log10(largest) + 0.02, points, dtype=torch.float64)
        else:
            s = torch.linspace(max(smallest - 0.02 * largest, 0), 1.02 * largest, points, dtype=torch.float64)
        density = self.density(s).detach()
        (line,) = ax.plot(s.numpy(), (s * density if log else density).numpy(), **style)
        for place, mass in zip(*self.atoms, strict=True):
            if log and not place > 0:
                continue
            height = ax.get_ylim()[1]
            ax.vlines(float(place), 0, height, colors=line.get_color(), linewidths=2)
            ax.annotate(f"{float(mass):.2f}", (float(place), height), ha="center", va="bottom", fontsize="small")
        ax.set_xlabel("singular value s")
        ax.set_ylabel("density of log s" if log else "density")
        if log:
            ax.set_xscale("log")
            name_ticks(ax.xaxis, *ax.get_xlim())
        # Another law may follow in the same axes.
        ax.set_ylim(bottom=0, auto=None)
        return ax


def as_places(s: Tensor | float) -> Tensor:
    """Return places in float64; NaN is none."""
    s = _numbers("s", s)
    if s.isnan().any():
        raise ValueError("s: expected numbers, got NaN")
    return s


def as_levels(q: Tensor | float) -> Tensor:
    """Return levels in float64, which must lie in [0, 1]."""
    q = _numbers("q", q)
    if not ((q >= 0) & (q <= 1)).all():
        raise ValueError(f"q: expected numbers in [0, 1], got {q.reshape(-1).tolist()[:8]}")
    return q


def _numbers(name: str, value: Any) -> Tensor:
    try:
        return torch.as_tensor(value, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name}: expected a tensor or numbers, got {type(value).__name__}") from error


methods_on_host(Law)
