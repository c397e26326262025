"""The scalar law: what the spectrum of a deep product is if its branches act alike in all directions."""

from __future__ import annotations

import math
from functools import cached_property

import torch
from torch import Tensor

from jpmhc.spectrum.arguments import as_number
from jpmhc.spectrum.branches import Branch
from jpmhc.spectrum.closed_forms import scalar_condition
from jpmhc.spectrum.law import Law, as_levels, as_places

# Halvings of an interval: to the last digit.
_HALVINGS = 60
_NODES = 256


class ScalarLaw(Law):
    """Law of the singular values of infinitely many layers that spread a total load over all directions alike.

    One number decides it: ``c = (1 / n) sum_l v_l |read_l|^2 |write_l|^2``, what the branches add to the square of a
    singular value over the depth. Mixers that rotate the streams come close to it. With others, and with gates that
    favour a stream, the spectrum is wider; in few layers it may be wider (Gaussian branches) or narrower (rotations).

    Parameters
    ----------
    load : float
        c > 0. At 0 all singular values are 1.

    Raises
    ------
    ValueError
        If the load is not a finite number > 0, or so large that the condition number is none.

    Notes
    -----
    The squares have the S-transform ``exp(-c (1 + 2 f))`` (Tarnowski, Warchol, Jastrzebski, Tabor and Nowak,
    arXiv 1809.08848): ``log s^2`` is the free sum of a semicircle of variance 2c and a uniform law on [-c, c]. A number
    w of the upper half-plane, from which [-c, c] is seen under an angle equal to its height v, belongs to the place
    ``x = w + log((w + c) / (w - c))``, real there, at which the density of ``log s^2`` is ``v / (2 pi c)``. All follows
    from that curve; nothing is solved but v by halving.

    Examples
    --------
    >>> from jpmhc import spectrum
    >>> law = spectrum.ScalarLaw(0.5)
    >>> print(f"{law.condition:.3f} {law.moment(2):.3f} {law.quantile(0.5):.3f}")
    8.008 1.649 1.000
    """

    def __init__(self, load: float) -> None:
        load = as_number("load", load)
        if not (math.isfinite(load) and load > 0):
            raise ValueError(f"load: expected a finite number > 0 (at 0 all singular values are 1), got {load:g}")
        if not math.isfinite(scalar_condition(load)):
            raise ValueError(f"load: expected one whose condition number float64 holds, up to some 690, got {load:g}")
        self.load = load

    def __repr__(self) -> str:
        return f"ScalarLaw({self.load:g})"

    @cached_property
    def _largest(self) -> float:
        """Largest ``log s^2``; the smallest is its negative."""
        return math.log(scalar_condition(self.load))

    @cached_property
    def _summit(self) -> float:
        """Largest height of the curve, over x = 0."""
        low, high = 0.0, math.pi
        for _ in range(_HALVINGS):
            v = (low + high) / 2
            low, high = (v, high) if 2 * math.atan2(self.load, v) > v else (low, v)
        return low

    def _curve(self, v: Tensor) -> Tensor:
        """Return the number on the curve at that height whose real part is not negative."""
        c = self.load
        u2 = c * c + 2 * c * v / v.tan() - v.square()
        return torch.complex(u2.clamp_min(0).sqrt(), v)

    def _seen(self, x: Tensor) -> Tensor:
        """Numbers w of the places |x| within the support."""
        low, high = torch.zeros_like(x), torch.full_like(x, self._summit)
        x = x.abs()
        for _ in range(_HALVINGS):
            v = ((low + high) / 2).clamp_min(1e-300)
            w = self._curve(v)
            beyond = w.real + ((w + self.load) / (w - self.load)).abs().log() > x
            low, high = torch.where(beyond, v, low), torch.where(beyond, high, v)
        return self._curve(((low + high) / 2).clamp_min(1e-300))

    def _of_logarithm(self, x: Tensor) -> Tensor:
        """Density of ``log s^2``."""
        return torch.where(x.abs() < self._largest, self._seen(x).imag / (2 * math.pi * self.load), 0.0)

    def stieltjes(self, w: Tensor | complex) -> Tensor:
        """``E[w / (w^2 - s^2)]`` at complex ``w`` off the real axis."""
        w = torch.as_tensor(w, dtype=torch.complex128)
        if not (w.isfinite().all() and (w.imag != 0).all()):
            raise ValueError("w: expected finite complex numbers off the real axis; on it there is density(s)")
        # Of the squares at unit energy; below the axis and on the imaginary one by reflection and continuity.
        branch = Branch(lambda f: torch.exp(-2 * self.load * f), "scalar")
        flat = w.reshape(-1)
        z = flat.square() * math.exp(-self.load)
        return ((1 + branch.transform(z)) / flat).reshape(w.shape)

    def density(self, s: Tensor | float) -> Tensor:
        """Density with respect to ``ds``."""
        s = as_places(s)
        inside = s > 0
        safe = torch.where(inside, s, 1)
        return torch.where(inside, 2 * self._of_logarithm(2 * safe.log()) / safe, 0.0)

    def cdf(self, s: Tensor | float) -> Tensor:
        """Probability of a singular value at most ``s``."""
        s = as_places(s)
        x = 2 * torch.where(s > 0, s, 1).log()
        x = x.clamp(-self._largest, self._largest)
        c, w = self.load, self._seen(x)
        # The imaginary part of E log(x - log s^2) is pi times the mass above x.
        high, low = (w + c).log(), (w - c).log()
        potential = ((w + c) * high - (w - c) * low) / (2 * c) + (high - low).square() / (4 * c)
        above = potential.imag / math.pi
        value = torch.where(x >= 0, 1 - above, above)
        ends = torch.where(s >= math.exp(self._largest / 2), 1.0, 0.0)
        return torch.where((s > math.exp(-self._largest / 2)) & (s < math.exp(self._largest / 2)), value, ends)

    def quantile(self, q: Tensor | float) -> Tensor:
        """Smallest ``s`` with ``cdf(s) >= q``, for ``q`` in [0, 1]."""
        q = as_levels(q)
        low, high = torch.full_like(q, -self._largest), torch.full_like(q, self._largest)
        for _ in range(_HALVINGS):
            x = (low + high) / 2
            short = self.cdf((x / 2).exp()) < q
            low, high = torch.where(short, x, low), torch.where(short, high, x)
        return ((low + high) / 4).exp()

    def moment(self, k: float) -> Tensor:
        """``E[s^k] = E[s^-k]``: closed for even k, otherwise a quadrature to round-off."""
        k = as_number("k", k)
        if not math.isfinite(k):
            raise ValueError(f"k: expected a finite number, got {k}")
        half, c = abs(k) / 2, self.load
        if half == 0:
            return torch.ones((), dtype=torch.float64)
        if half == int(half) and half < 64:
            order = int(half)
            terms = (math.comb(order, order - 1 - j) * (2 * half * c) ** j / math.factorial(j) for j in range(order))
            return torch.tensor(math.exp(half * c) / half * math.fsum(terms), dtype=torch.float64)
        # In this angle the density, which ends like a square root, is smooth.
        angle = math.pi * ((torch.arange(_NODES, dtype=torch.float64) + 0.5) / _NODES - 0.5)
        x = self._largest * angle.sin()
        weights = self._of_logarithm(x) * angle.cos()
        return (weights * (half * x).exp()).sum() / weights.sum()

    @property
    def mean_log(self) -> Tensor:
        """``E[log s] = 0``."""
        return torch.zeros((), dtype=torch.float64)

    @property
    def variance_log(self) -> float:
        """Variance of ``log s``, ``c / 2 + c^2 / 12``."""
        return self.load / 2 + self.load**2 / 12

    @property
    def edges(self) -> tuple[float, float]:
        """Smallest and largest singular value; their product is 1."""
        largest = math.exp(self._largest / 2)
        return 1 / largest, largest
