"""Comparison of two laws of singular values: distances, a table of quantiles, an overlay."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from jpmhc.host import on_host
from jpmhc.spectrum.law import Law
from jpmhc.spectrum.measured import MeasuredLaw
from jpmhc.spectrum.pyplot import pyplot

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LEVELS = (0.01, 0.1, 0.5, 0.9, 0.99)

# Singular values this close, relative, are one: an atom at 1 and measured values 1 +- round-off must meet.
_EQUAL = 1e-6
# Below this share of the largest singular value lies zero: neither a decomposition nor a prediction tells more.
_ZERO = 1e-9
# Places at which the distribution functions are compared: quantiles of each law that has them at hand, and a grid.
_QUANTILES, _GRID = 256, 64


@dataclass(frozen=True)
class Comparison:
    """How far a predicted law is from a measured one.

    Attributes
    ----------
    kolmogorov : float
        Largest difference of the distribution functions, found to within 1/256 at a few hundred places. Singular values
        within 1e-6 of one another, relative, count as equal, so that atoms meet the measured values around them.
    wasserstein_log : float
        Wasserstein distance of the laws of log s, the integral of that difference's magnitude over log s: the mean
        relative error of a singular value. What lies below 1e-9 of the largest, or below a law's floor, is taken there.
    uncertainty : float
        How far the distribution functions of measured laws may be off at these places, the largest of
        :meth:`MeasuredLaw.cdf_error <jpmhc.spectrum.MeasuredLaw.cdf_error>`: 0 for the exact method. A Kolmogorov
        distance below it says nothing against the prediction. NaN for a single probe.
    lost : int
        Places left out because a prediction did not converge there.
    levels : tuple of float
        Levels of the quantiles.
    predicted_quantiles, measured_quantiles : tuple of float
        Of the two laws.
    predicted, measured : Law
        The laws themselves.
    """

    kolmogorov: float
    wasserstein_log: float
    uncertainty: float
    lost: int
    levels: tuple[float, ...]
    predicted_quantiles: tuple[float, ...]
    measured_quantiles: tuple[float, ...]
    predicted: Law = field(repr=False)
    measured: Law = field(repr=False)

    def table(self) -> list[dict[str, float]]:
        """Return one dict a quantile: level, predicted, measured, and the error of the first over the second.

        What both laws have below 1e-9 of the largest, or below the floor of one, is zero in both: an error of 0.
        """
        rows = zip(self.levels, self.predicted_quantiles, self.measured_quantiles, strict=True)
        zero = _zero(self.predicted, self.measured)
        return [{"level": u, "predicted": a, "measured": b, "error": _error(a, b, zero)} for u, a, b in rows]

    def __str__(self) -> str:
        lost = f" ({self.lost} places did not converge)" if self.lost else ""
        doubt = "" if self.uncertainty == 0 else f" (the quadrature is within {self.uncertainty:.2g})"
        lines = [f"Kolmogorov distance {self.kolmogorov:.4f}{doubt}, mean |log error| {self.wasserstein_log:.4f}{lost}"]
        lines.append(f"{'quantile':>9} {'predicted':>11} {'measured':>11} {'error':>8}")
        for row in self.table():
            error = f"{100 * row['error']:.1f} %"
            lines.append(f"{100 * row['level']:>7.3g} % {row['predicted']:>11.4g} {row['measured']:>11.4g} {error:>8}")
        return "\n".join(lines)

    def plot(self, ax: Axes | None = None, *, log: bool = False, **options: Any) -> Axes:
        """Draw the predicted density over the measured one, with the distance.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, optional
            Where to draw; a new figure by default.
        log : bool, default=False
            Densities of log s over a logarithmic axis.
        **options
            As for :func:`jpmhc.spectrum.figures.densities`.

        Returns
        -------
        matplotlib.axes.Axes

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        """
        plt = pyplot()

        from jpmhc.spectrum import figures

        if ax is None:
            _, ax = plt.subplots(figsize=(5.2, 3.4), layout="constrained")
        figures.densities(ax, self.measured, {"predicted": self.predicted}, log=log, **options)
        ax.legend(frameon=False, fontsize=8, title=f"Kolmogorov {self.kolmogorov:.3f}", title_fontsize=8)
        return ax


def _zero(first: Law, second: Law) -> float:
    """Where zero ends to both laws."""
    return max(_ZERO * max(first.edges[1], second.edges[1]), first.floor, second.floor)


def _error(predicted: float, measured: float, zero: float) -> float:
    if predicted == measured or max(predicted, measured) <= zero:
        return 0.0
    return predicted / measured - 1 if measured else math.inf


@on_host
def compare(predicted: Law, measured: Law, levels: Sequence[float] = LEVELS) -> Comparison:
    """Compare a predicted law with a measured one, or any two laws.

    Parameters
    ----------
    predicted, measured : Law
        From :func:`~jpmhc.spectrum.predict` and :func:`~jpmhc.spectrum.measure`, for example.
    levels : sequence of float
        Levels in [0, 1] of the table of quantiles.

    Returns
    -------
    Comparison
        ``print(comparison)``, ``comparison.table()``, ``comparison.plot()``.

    Raises
    ------
    TypeError
        If one is no law.
    ValueError
        For levels outside [0, 1].

    Examples
    --------
    >>> import torch
    >>> from jpmhc import spectrum
    >>> one, two = (spectrum.measure(lambda x, c=c: c * x, torch.zeros(4)) for c in (1.0, 1.1))
    >>> print(spectrum.compare(one, two, levels=[0.5]))
    Kolmogorov distance 1.0000, mean |log error| 0.0953
     quantile   predicted    measured    error
         50 %           1         1.1   -9.1 %
    """
    for name, law in (("predicted", predicted), ("measured", measured)):
        if not isinstance(law, Law):
            raise TypeError(f"{name}: expected a law, got {type(law).__name__}")
    chosen = torch.tensor(list(levels), dtype=torch.float64)
    if not ((chosen >= 0) & (chosen <= 1)).all():
        raise ValueError(f"levels: expected numbers in [0, 1], got {list(levels)}")
    kolmogorov, wasserstein, uncertainty, lost = _distances(predicted, measured)
    return Comparison(
        kolmogorov,
        wasserstein,
        uncertainty,
        lost,
        tuple(chosen.tolist()),
        tuple(predicted.quantile(chosen).detach().tolist()),
        tuple(measured.quantile(chosen).detach().tolist()),
        predicted,
        measured,
    )


def _distances(first: Law, second: Law) -> tuple[float, float, float, int]:
    ends = torch.tensor([first.edges, second.edges], dtype=torch.float64)
    top = float(ends.max())
    if top == 0:
        return 0.0, 0.0, 0.0, 0
    floor = _zero(first, second)
    low = max(float(ends.min()), floor)
    levels = (torch.arange(_QUANTILES, dtype=torch.float64) + 0.5) / _QUANTILES
    knots = [torch.logspace(math.log10(low), math.log10(top), _GRID, dtype=torch.float64), ends.flatten()]
    for law in (first, second):
        knots.append(law.atoms[0].detach())
        if isinstance(law, MeasuredLaw):
            knots.append(law.quantile(levels))
    places = torch.cat(knots).clamp_min(floor).unique()
    at = [law.cdf(places).detach() for law in (first, second)]
    found = at[0].isfinite() & at[1].isfinite()
    places, at = places[found], [cdf[found] for cdf in at]

    def near(which: int, factor: float) -> Tensor:
        law = (first, second)[which]
        if isinstance(law, MeasuredLaw):
            return law.cdf(places * factor)
        # Only atoms make a difference so close by.
        atoms, masses = (value.detach() for value in law.atoms)
        step = (atoms <= places.unsqueeze(-1) * factor).double() - (atoms <= places.unsqueeze(-1)).double()
        return at[which] + (step * masses).sum(-1)

    # The supremum is at a jump of the larger function, or just before one of the smaller.
    later, before = 1 + 2 * _EQUAL, 1 - 2 * _EQUAL
    differences = [at[0] - near(1, later), at[1] - near(0, later)]
    differences += [near(0, before**2) - near(1, before), near(1, before**2) - near(0, before)]
    kolmogorov = float(torch.stack(differences).max().clamp_min(0))
    # From just after one place to just before the next, where nothing jumps.
    after, until = (at[0] - at[1]).abs(), (near(0, before) - near(1, before)).abs()
    wasserstein = float(((after[:-1] + until[1:]) / 2 * places.log().diff()).sum())
    errors = [law.cdf_error(places) for law in (first, second) if isinstance(law, MeasuredLaw)]
    uncertainty = float(torch.stack(errors).sum(0).max()) if errors and len(places) else 0.0
    return kolmogorov, wasserstein, uncertainty, int((~found).sum())
