"""A measured law: the singular values of a Jacobian, all of them or a quadrature of their distribution."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from jpmhc.spectrum.arguments import as_number
from jpmhc.spectrum.law import Law, as_levels, as_places
from jpmhc.spectrum.pyplot import pyplot

# Rounding left at most 2.5 times a product's precision of zero, in Jacobians of 30 to 600 rows without full rank.
_ZEROS = 4
# Precisions from here on are those of half precision.
_HALF = 1e-4
# Relative residual at which a node of a quadrature is a singular value, and its weight all that there is of it.
_FOUND = 1e-4

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class MeasuredLaw(Law):
    """Distribution of the singular values that :func:`~jpmhc.spectrum.measure` found.

    A Jacobian of shape (outputs, inputs) has ``min(outputs, inputs)`` of them, zeros of a rank-deficient one included;
    those of several samples are pooled with equal shares.

    Parameters
    ----------
    values, weights : Tensor, shape (P, B, k)
        Singular values and their shares, which sum to one along k, for P probes and B samples. The exact method has one
        probe and equal shares.
    shape : tuple of (int, int)
        Outputs and inputs of the Jacobian of one sample.
    method : str
        ``"exact"`` or ``"lanczos"``.
    extremes : tuple of (Tensor, Tensor), each of shape (B,), optional
        Smallest and largest singular value of every sample; those of ``values`` unless given.
    extremes_error : tuple of (Tensor, Tensor), each of shape (B,), optional
        Their estimated errors, absolute; zero unless given.
    converged : bool
        Whether the extremes are as exact as was asked for.
    precision : float
        Round-off of a product relative to the largest singular value; float64's unless given. What lies below
        :attr:`floor`, four times that, is noise.
    residual : Tensor, shape (P, B, k), optional
        How far from a singular value each of ``values`` is at most; zero unless given.
    """

    def __init__(
        self,
        values: Tensor,
        weights: Tensor,
        *,
        shape: tuple[int, int],
        method: str,
        extremes: tuple[Tensor, Tensor] | None = None,
        extremes_error: tuple[Tensor, Tensor] | None = None,
        converged: bool = True,
        precision: float = torch.finfo(torch.float64).eps,
        residual: Tensor | None = None,
    ) -> None:
        self.values = values.double().cpu()
        self.weights = weights.double().cpu()
        self.shape, self.method, self.converged, self.precision = shape, method, converged, precision
        zero = torch.zeros(values.shape[1], dtype=torch.float64)
        found = extremes or (self.values.amin((0, 2)), self.values.amax((0, 2)))
        self.extremes = (found[0].double().cpu(), found[1].double().cpu())
        errors = extremes_error or (zero, zero)
        self.extremes_error = (errors[0].double().cpu(), errors[1].double().cpu())
        self.residual = torch.zeros_like(self.values) if residual is None else residual.double().cpu()
        used = self.weights.flatten() > 0
        # Of each sample's own largest: another one may be smaller altogether.
        noise = self._round_off * self.extremes[1].unsqueeze(-1)
        self._counted = torch.where(self.values <= noise, 0, self.values)
        order = self._counted.flatten()[used].argsort()
        self._sorted = self._counted.flatten()[used][order]
        shares = self.weights.flatten()[used][order] / self.weights.sum()
        self._below = shares.cumsum(0)
        self._shares = shares

    @property
    def singular_values(self) -> Tensor:
        """Singular values (B, k), ascending, of every sample.

        Raises
        ------
        ValueError
            If they come from the Lanczos method, which knows their distribution and extremes only.
        """
        if self.method != "exact":
            raise ValueError(
                "singular_values: the lanczos method knows their distribution; measure with method='exact'"
            )
        return self.values[0].sort(-1).values

    def expectation(self, fn: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """Return ``E[fn(s)]`` and its standard error over the probes, zero for the exact method.

        The probes are orthogonal to one another, which makes the true error a little smaller.

        Parameters
        ----------
        fn : Callable
            From singular values (P, B, k) to numbers (..., P, B, k).

        Returns
        -------
        mean, error : Tensor, shape (...)
            The error is NaN with a single probe of the Lanczos method.
        """
        # A weight of zero belongs to no singular value, whatever fn makes of it.
        terms = torch.where(self.weights > 0, fn(self._counted) * self.weights, 0)
        per_probe = terms.sum(-1).mean(-1)
        mean, count = per_probe.mean(-1), per_probe.shape[-1]
        if self.method == "exact":
            return mean, torch.zeros_like(mean)
        spread = (per_probe - mean.unsqueeze(-1)).square().sum(-1)
        return mean, (spread / (count * (count - 1))).sqrt() if count > 1 else torch.full_like(mean, math.nan)

    def stieltjes(self, w: Tensor | complex) -> Tensor:
        """``E[w / (w^2 - s^2)]`` at complex ``w`` off the real axis."""
        w = torch.as_tensor(w, dtype=torch.complex128)
        if not (w.isfinite().all() and (w.imag != 0).all()):
            raise ValueError("w: expected finite complex numbers off the real axis; on it there is density(s)")
        point = w.reshape(-1, 1)
        return (self._shares * point / (point.square() - self._sorted.square())).sum(-1).reshape(w.shape)

    def density(self, s: Tensor | float) -> Tensor:
        """Density with respect to ``ds``, smoothed by a Gaussian of :attr:`bandwidth` and reflected at zero."""
        s = as_places(s)
        point = s.reshape(-1, 1)
        kernel = self._kernel(point - self._sorted) + self._kernel(point + self._sorted)
        return torch.where(point[:, 0] >= 0, (self._shares * kernel).sum(-1), 0.0).reshape(s.shape)

    def density_error(self, s: Tensor | float) -> Tensor:
        """Return the standard error over the probes of :meth:`density`; zero for the exact method.

        It is the scatter of the probes at one :attr:`bandwidth`, that of all of them together. What another draw would
        make of the bandwidth is not in it, nor what the smoothing hides, nor that few steps lump together what lies
        below the upper end of a wide spectrum; :meth:`cdf_error` bounds the last.
        """
        s = torch.as_tensor(s, dtype=torch.float64)
        point = s.reshape(-1, 1, 1, 1)
        return self.expectation(lambda v: self._kernel(point - v) + self._kernel(point + v))[1].reshape(s.shape)

    def _share_errors(self, bins: Tensor, lowest: float) -> Tensor:
        """Return standard errors over the probes of the shares in bins, of values not smaller than the lowest."""
        numbers = torch.arange(len(bins) - 1).reshape(-1, 1, 1, 1)
        return self.expectation(lambda v: ((_bins_of(v, bins) == numbers) & (v >= lowest)).double())[1]

    @property
    def bandwidth(self) -> float:
        """Width of the Gaussian that smooths the density: Silverman's rule, ``0.9 min(std, IQR / 1.34) N^(-1/5)``."""
        quartiles = self.quantile(torch.tensor([0.25, 0.75]))
        deviation = (self.moment(2) - self.moment(1).square()).clamp_min(0).sqrt()
        spread = float(min(deviation, (quartiles[1] - quartiles[0]) / 1.34) or deviation)
        # All values equal: anything narrow shows the one peak.
        return 0.9 * spread * len(self._sorted) ** -0.2 or max(1e-3 * self.edges[1], 1e-12)

    def _kernel(self, distance: Tensor) -> Tensor:
        width = self.bandwidth
        return torch.exp(-0.5 * (distance / width).square()) / (width * math.sqrt(2 * math.pi))

    def cdf(self, s: Tensor | float) -> Tensor:
        """Share of the singular values at most ``s``."""
        s = as_places(s)
        index = torch.searchsorted(self._sorted, s.contiguous(), right=True)
        return torch.cat([torch.zeros(1, dtype=torch.float64), self._below])[index]

    def cdf_error(self, s: Tensor | float) -> Tensor:
        """Return how far :meth:`cdf` may be off: zero for the exact method, else a bound and a standard error.

        A Gauss quadrature knows a distribution function up to the weight of its nodes next to ``s`` (the inequality of
        Chebyshev, Markov and Stieltjes); nodes that are singular values are known to the end. Where the spectrum spans
        decades, few steps leave much of it in one node. The standard error over the probes is added: NaN with one.

        Parameters
        ----------
        s : Tensor or float, any shape

        Returns
        -------
        Tensor
            Of that shape. O(P B (k + G log k)) for G places.
        """
        s = torch.as_tensor(s, dtype=torch.float64)
        if self.method == "exact":
            return torch.zeros_like(s)
        flat = s.reshape(-1)
        scale = torch.maximum(_FOUND * self.values, torch.full_like(self.values, 10 * self.floor))
        bounds = [
            _next_weights(values[open_], weights[open_], flat)
            for values, weights, open_ in zip(
                self.values.flatten(0, 1),
                self.weights.flatten(0, 1),
                ((self.residual > scale) & (self.weights > 0)).flatten(0, 1),
                strict=True,
            )
        ]
        spread = self.expectation(lambda v: (v <= flat.reshape(-1, 1, 1, 1)).double())[1]
        return (torch.stack(bounds).mean(0) + spread).reshape(s.shape)

    def quantile(self, q: Tensor | float) -> Tensor:
        """Smallest singular value with at least a share ``q`` at or below it, for ``q`` in [0, 1]."""
        # A level in single precision is rounded to it: 0.1 is more than a tenth there. In half precision a level is
        # what it is, or whole singular values would lie between.
        single = isinstance(q, Tensor) and q.dtype == torch.float32
        rounding = 0.5 * torch.finfo(torch.float32).eps if single else 0.0
        q = as_levels(q)
        # The last sum is one but for round-off.
        index = torch.searchsorted(self._below, (q - (1e-12 + rounding * q)).contiguous())
        return self._sorted[index.clamp(max=len(self._sorted) - 1)]

    def moment(self, k: float) -> Tensor:
        """``E[s^k]``."""
        return (self._shares * self._sorted ** as_number("k", k)).sum()

    def moment_error(self, k: float) -> Tensor:
        """Return the standard error of ``E[s^k]`` over the probes; zero for the exact method."""
        return self.expectation(lambda s: s**k)[1]

    @property
    def mean_log(self) -> Tensor:
        """``E[log s]``; minus infinity if a singular value is zero."""
        return (self._shares * self._sorted.log()).sum()

    @property
    def mean_log_error(self) -> Tensor:
        """Standard error of ``E[log s]`` over the probes; zero for the exact method.

        The quadrature converges slowly at the logarithm's singularity: with small singular values its bias can exceed
        this error.
        """
        return self.expectation(torch.log)[1]

    @property
    def edges(self) -> tuple[float, float]:
        """Smallest and largest singular value of all samples."""
        return float(self.extremes[0].min()), float(self.extremes[1].max())

    @property
    def floor(self) -> float:
        """Place up to which singular values are round-off of the Jacobian's products, and count as zero.

        Four times the precision, of the largest, and at least ``max(outputs, inputs)`` times that of float64, in which
        they are computed. In quantiles, the distribution function, moments and ``mean_log`` they are zero, and the
        condition number is infinite with one of them; ``singular_values`` and ``edges`` have them as they were found.
        In half precision the bound is percents of the largest, and what lies below is known to some digits as a rule:
        there it counts as it was found.
        """
        return self._bound(self.precision) * self.edges[1]

    @property
    def _round_off(self) -> float:
        return self._bound(self.precision if self.precision < _HALF else 0.0)

    def _bound(self, precision: float) -> float:
        return max(_ZEROS * precision, max(self.shape) * torch.finfo(torch.float64).eps)

    @property
    def condition(self) -> float:
        """Condition number: largest over smallest singular value; infinite where the smallest is zero or round-off."""
        smallest, largest = self.extremes
        return math.inf if (smallest <= self._round_off * largest).any() else super().condition

    def __str__(self) -> str:
        samples = f"{self.values.shape[1]} x " if self.values.shape[1] > 1 else ""
        how = "all" if self.method == "exact" else f"lanczos, {len(self.values)} probes"
        smallest, largest = self.edges
        quantiles = ", ".join(
            f"{v:.4g}" for v in self.quantile(torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)).tolist()
        )
        doubt = "" if self.converged else " (extremes not converged)"
        size = f"{samples}{self.shape[0]} x {self.shape[1]}"
        errors = [f" +- {float(e):.1g}" if e > 0 else "" for e in (self.mean_log_error, self.moment_error(2))]
        return (
            f"Jacobian {size} ({how}): s from {smallest:.4g} to {largest:.4g}{doubt}, "
            f"10/50/90 % {quantiles}, E[log s] {float(self.mean_log):.4g}{errors[0]}, "
            f"E[s^2] {float(self.moment(2)):.4g}{errors[1]}"
        )

    def plot(self, ax: Axes | None = None, *, log: bool = False, points: int = 60, **style: Any) -> Axes:
        """Draw a histogram of the singular values, with standard errors where it is a quadrature from several probes.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, optional
            Where to draw; a new figure by default.
        log : bool, default=False
            Histogram of ``log s`` over a logarithmic axis; what lies below :attr:`floor`, or 1e-12 of the largest, is
            named in the label.
        points : int, default=60
            Bins.
        **style
            Passed to ``Axes.hist``: ``label``, ``color``, ``alpha``.

        Returns
        -------
        matplotlib.axes.Axes

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        """
        plt = pyplot()

        if ax is None:
            _, ax = plt.subplots(layout="constrained")
        style = {"color": "0.75", "edgecolor": "none", **style}
        smallest, largest = self.edges
        values, shares = self._sorted, self._shares
        if log:
            floor = max(self.floor, 1e-12 * largest)
            zero = float(shares[values <= floor].sum())
            values, shares = values[values > floor], shares[values > floor]
            if zero > 0:
                style["label"] = f"{style.get('label', 'measured')} ({100 * zero:.0f} % zero)"
            low = max(smallest, float(values.min()) if len(values) else 1.0)
            first, last = math.log10(0.98 * low), math.log10(1.02 * max(largest, low))
            bins = torch.logspace(first, last, points + 1, dtype=torch.float64)
            # Area one over log s, the axis that is seen.
            widths = bins.log().diff()
        else:
            bins = torch.linspace(0, 1.02 * largest or 1.0, points + 1, dtype=torch.float64)
            widths = bins.diff()
        heights = _shares_in(values, shares, bins) / widths
        ax.stairs(heights.numpy(), bins.numpy(), fill=True, **style)
        if self.method == "lanczos" and len(self.values) > 1:
            error = self._share_errors(bins, float(values.min()) if len(values) else 0.0) / widths
            ax.errorbar(
                (bins[1:] * bins[:-1]).sqrt() if log else (bins[1:] + bins[:-1]) / 2,
                heights,
                # Down to zero at most, which a share cannot pass.
                torch.stack([torch.minimum(error, heights), error]),
                fmt="none",
                ecolor="0.4",
                elinewidth=0.8,
            )
        ax.set_xlabel("singular value s")
        ax.set_ylabel("density of log s" if log else "density")
        if log:
            ax.set_xscale("log")
        return ax


def _next_weights(values: Tensor, weights: Tensor, s: Tensor) -> Tensor:
    """Return the larger of the weights of the nodes before and after each of places s."""
    order = values.argsort()
    padded = torch.nn.functional.pad(weights[order], (1, 1))
    after = torch.searchsorted(values[order], s, right=True)
    return torch.maximum(padded[after], padded[after + 1])


def _bins_of(values: Tensor, bins: Tensor) -> Tensor:
    return torch.bucketize(values.contiguous(), bins, right=True).clamp(1, len(bins) - 1) - 1


def _shares_in(values: Tensor, shares: Tensor, bins: Tensor) -> Tensor:
    return torch.zeros(len(bins) - 1, dtype=torch.float64).index_add_(0, _bins_of(values, bins), shares)
