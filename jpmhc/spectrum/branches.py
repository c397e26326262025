"""Laws of the branch's Jacobian: what free probability needs to know about it."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jpmhc.host import methods_on_host
from jpmhc.kernels.transforms import transform_depth

# Nodes of quadratures over [0, 1].
_NODES = 64
# Where the transform is followed from, and by how much at a step.
_LARGE = 100.0
_RAY_FACTOR = 1.7
# Newton's method has converged where its last move was this small: it squares the error.
_MOVE = 1e-10


class Branch:
    """A branch whose Jacobian X, C x C and of energy ``v = ||X||_F^2 / C``, is R-diagonal as C grows.

    Such a law is that of ``U diag(s) V`` with random rotations U and V. It is known by its S-transform: of ``X X^T``
    it is ``S(f) / v`` with ``S(0) = 1``. Subclasses with closed forms override the methods; this class finds them
    from ``S`` by Newton's method and quadrature.

    Parameters
    ----------
    s_transform : callable
        ``S`` at unit energy: analytic, ``S(0) = 1``, from complex tensors to complex tensors of the same shape and
        made of PyTorch's functions.
    name : str
        For messages and plots.

    Raises
    ------
    ValueError
        If ``S(0)`` is not 1.

    Examples
    --------
    A product of two independent Gaussian matrices, whose S-transform is the product of theirs:

    >>> from jpmhc import spectrum
    >>> spectrum.Branch(lambda f: (1 + f) ** -2, "two layers").fourth_cumulant
    1.0
    """

    # Whether the self-energies need no transform to be inverted.
    closed = False

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        methods_on_host(cls)

    def __init__(self, s_transform: Callable[[Tensor], Tensor], name: str = "R-diagonal") -> None:
        self.s_transform = s_transform
        self.name = name
        at_zero = complex(s_transform(torch.zeros((), dtype=torch.complex128)))
        if not abs(at_zero - 1) < 1e-9:
            raise ValueError(f"s_transform: expected S(0) = 1, the transform at unit energy, got {at_zero:.6g}")

    def __repr__(self) -> str:
        return f"<branch {self.name!r}>"

    @cached_property
    def rank(self) -> float:
        """Share of the singular values of X that are not zero."""
        # E[s^2 / (z - s^2)] goes to its negative as z goes to zero.
        f = -float(self.transform(torch.tensor([-1e-12], dtype=torch.complex128)).real)
        near = Fraction(f).limit_denominator(64)
        return float(near) if abs(near - f) < 1e-4 else f

    def _slope(self, f: Tensor) -> tuple[Tensor, Tensor]:
        """``S`` and its derivative, as numbers."""
        if transform_depth() > 0:
            value, slope = torch.func.jvp(self.s_transform, (f,), (torch.ones_like(f),))[:2]
            return value.detach(), slope.detach()
        # Forward mode takes milliseconds for a division of complex numbers.
        with torch.enable_grad():
            place = f.detach().requires_grad_()
            value = self.s_transform(place)
            if not value.requires_grad:
                return value, torch.zeros_like(value)
            (pulled,) = torch.autograd.grad(value.real.sum(), place)
        return value.detach(), pulled.conj().resolve_conj()

    @property
    def fourth_cumulant(self) -> float:
        """Fourth free cumulant at unit energy, ``E[s^4] - 2``: 0 for Gaussian weights, -1 for a rotation."""
        _, slope = self._slope(torch.zeros((), dtype=torch.complex128))
        return -1.0 - float(slope.real)

    def self_energies(self, gx: Tensor, gy: Tensor, s: Tensor, t: Tensor, energy: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``(s, t)`` from the resolvents around the branch, all (G, L); the old ones choose the sheet."""
        if self._one_sheet:
            # f = s gy = t gx solves f (1 + f) S(f) = v gx gy.
            product = energy * gx * gy
            f, found = self._nearby(product.detach(), (t * gx).detach())
            S, slope = self._slope(f)
            f = f - (f * (1 + f) * S - product) / ((1 + 2 * f) * S + f * (1 + f) * slope)
            f = torch.where(energy > 0, torch.where(found, f, complex(math.nan, math.nan)), 0)
            return f / gy, f / gx
        # The branch alone between 1 / gx + t and 1 / gy + s, followed from where there is one sheet.
        a, b = 1 / gx + t, 1 / gy + s
        f = self._transform(a * b / torch.where(energy > 0, energy, 1), t * gx)
        share = torch.where(energy > 0, f / (1 + f), 0)
        return b * share, a * share

    @cached_property
    def _one_sheet(self) -> bool:
        """Whether ``f (1 + f) S(f)`` rises all the way over (-rank, 0), so that no sheets of its inverse meet there."""
        f = -self.rank * torch.linspace(1e-3, 1 - 1e-3, 200, dtype=torch.float64).to(torch.complex128)
        S, slope = self._slope(f)
        return bool((((1 + 2 * f) * S + f * (1 + f) * slope).real > 1e-3 * S.real).all())

    def _nearby(self, product: Tensor, f: Tensor) -> tuple[Tensor, Tensor]:
        """Solve ``f (1 + f) S(f) = product`` from a guess; also whether that succeeded."""
        with torch.no_grad():
            for _ in range(12):
                S, slope = self._slope(f)
                value, per_f = f * (1 + f) * S, (1 + 2 * f) * S + f * (1 + f) * slope
                move = (value - product) / per_f
                # Large products lie next to a pole, where the reciprocal is straight.
                move = torch.where(product.abs() > 1, move * value / product, move)
                f = f - move
                found = move.abs() <= _MOVE * f.abs()
                if found.all():
                    break
            return f, found

    def confirms(self, gx: Tensor, gy: Tensor, s: Tensor, t: Tensor, energy: Tensor) -> Tensor:
        """Whether a solution is on the sheet of the S-transform that is meant, at each of G points."""
        z = (1 / gx + t) * (1 / gy + s) / torch.where(energy > 0, energy, 1)
        f = self.transform(z)
        near = (f - t * gx).abs() <= 1e-6 * (1 + f.abs())
        return (near | (energy == 0)).all(-1)

    def _transform(self, z: Tensor, guess: Tensor) -> Tensor:
        """``f = E[s^2 / (z - s^2)]`` at unit energy, which solves ``z f S(f) = 1 + f``; NaN where it is not found."""
        with torch.no_grad():
            f, found = self._newton(z, guess, 12)
            lost = ~(found & _of_a_measure(z, f))
            if lost.any():
                f = f.index_put((lost,), self.transform(z[lost]))
            S, slope = self._slope(f)
            per_f = z * (S + f * slope) - 1
        # One more step, which carries the derivative.
        return f - (z * f * S - 1 - f) / per_f

    def transform(self, z: Tensor) -> Tensor:
        """``E[s^2 / (z - s^2)]`` at unit energy and complex z off the positive axis; NaN where it is not found.

        Of the sheets of its equation ``z f S(f) = 1 + f`` only that of large z is meant. It is followed down the ray
        through z, which the support does not cross.
        """
        size = z.abs()
        top = size.clamp_min(_LARGE)
        count = max(1, math.ceil(math.log(float((top / size).nan_to_num(1.0).max())) / math.log(_RAY_FACTOR)))
        factor = (size / top) ** (1 / count)
        target = z * (top / size)
        f, found = self._newton(target, 1 / target, 12)
        for k in range(count):
            S, slope = self._slope(f)
            # In logarithms the transform is nearly straight at both ends.
            rate = -target * S / (target * (S + f * slope) - 1)
            target = target * factor
            f, found = self._newton(target, f * (rate * factor.log()).exp(), 3 if k < count - 1 else 30)
        return torch.where(found & _of_a_measure(z, f), f, complex(math.nan, math.nan))

    def _newton(self, z: Tensor, f: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        """Solve ``z f S(f) = 1 + f`` from a guess; also whether that succeeded."""
        for _ in range(steps):
            S, slope = self._slope(f)
            move = (z * f * S - 1 - f) / (z * (S + f * slope) - 1)
            f = f - move
            found = move.abs() <= _MOVE * f.abs()
            if found.all():
                break
        return f, found

    def _f(self, s: Tensor, t: Tensor, gx: Tensor, energy: Tensor) -> Tensor:
        """``f = t gx`` as a function of the product s t, with its derivative."""
        f = (t * gx).detach()
        S, slope = self._slope(f)
        # s t / v = f / ((1 + f) S(f)).
        per_f = (1 - f * slope / S - f / (1 + f)) / ((1 + f) * S)
        ratio = s * t / torch.where(energy > 0, energy, 1)
        return f + torch.where(energy > 0, (ratio - f / ((1 + f) * S)) / per_f, 0)

    def potential(self, s: Tensor, t: Tensor, gx: Tensor, energy: Tensor) -> Tensor:
        """Return the branch's term of the potential, a function of s t alone whose derivatives are gx and gy."""
        f = self._f(s, t, gx, energy)
        nodes, weights = _quadrature()
        here = f.detach()
        S, slope = self._slope(here.unsqueeze(-1) * nodes)
        integral = here.square() * (nodes * weights * slope / S).sum(-1)
        # The integral of f S' / S, with its derivative.
        S, slope = self._slope(here)
        return torch.log1p(f) - integral - (f - here) * here * slope / S

    def mean_log(self, alpha: Tensor, beta: Tensor, energy: Tensor) -> Tensor:
        """``E log |alpha + beta lambda|`` over the eigenvalues lambda of X, for real (L,) tensors.

        They fill a disc: ``|lambda|^2 <= v / S(tau - 1)`` for a share tau of them (Haagerup and Larsen 2000).
        """
        start = self._share_below(alpha, beta, energy)
        nodes, weights = _quadrature()
        width = 1 - start
        # Nodes crowd at the lower end, where log lambda may be singular.
        tau = start.unsqueeze(-1) + width.unsqueeze(-1) * nodes**2
        # Safe where no eigenvalue counts: a zero behind `where` has a derivative that is none.
        alpha, strength = torch.where(start > 0, alpha, 1), torch.where(width > 0, beta.square() * energy, 1)
        radii = -0.5 * self._real_s(tau - 1).log()
        inner = torch.where(start > 0, start * alpha.abs().log(), 0)
        outer = width * (0.5 * strength.log() + (2 * nodes * weights * radii).sum(-1))
        return inner + torch.where(width > 0, outer, 0)

    def _share_below(self, alpha: Tensor, beta: Tensor, energy: Tensor) -> Tensor:
        """Share of the eigenvalues with ``|beta lambda| <= |alpha|``."""
        with torch.no_grad():
            low, high = torch.zeros_like(alpha), torch.ones_like(alpha)
            for _ in range(60):
                tau = (low + high) / 2
                inside = beta.square() * energy <= alpha.square() * self._real_s(tau - 1)
                low, high = torch.where(inside, tau, low), torch.where(inside, high, tau)
            return torch.where(high == 1, 1, low)

    def _real_s(self, f: Tensor) -> Tensor:
        S = self.s_transform(f.to(torch.complex128)).real
        # A kernel of X: S is infinite or negative beyond it, and the eigenvalues there are zero.
        return torch.where(S > 0, S, math.inf)


def _of_a_measure(z: Tensor, f: Tensor) -> Tensor:
    """Whether both f and z f turn against z, as transforms of measures on the positive axis do."""
    side = z.imag.sign()
    return (f.imag * side <= 1e-9 * f.abs()) & ((z * f).imag * side <= 1e-9 * (z * f).abs())


methods_on_host(Branch)


# Functions of the module, so that a law can be pickled.
def _gaussian_s(f: Tensor) -> Tensor:
    return 1 / (1 + f)


def _hidden_s(active: float, f: Tensor) -> Tensor:
    return active / ((active + f) * (1 + f))


class Gaussian(Branch):
    """Independent entries of variance v / C: a linear layer at its usual initialisation."""

    closed = True

    def __init__(self) -> None:
        super().__init__(_gaussian_s, "gaussian")

    def self_energies(self, gx: Tensor, gy: Tensor, s: Tensor, t: Tensor, energy: Tensor) -> tuple[Tensor, Tensor]:
        """See `Branch.self_energies`."""
        return energy * gx, energy * gy

    def potential(self, s: Tensor, t: Tensor, gx: Tensor, energy: Tensor) -> Tensor:
        """See `Branch.potential`."""
        return torch.where(energy > 0, s * t / torch.where(energy > 0, energy, 1), 0)

    def mean_log(self, alpha: Tensor, beta: Tensor, energy: Tensor) -> Tensor:
        """See `Branch.mean_log`."""
        a, b = alpha.square(), beta.square() * energy
        outside = a >= b
        b_safe, a_safe = torch.where(outside, 1, b), torch.where(outside, a, 1)
        return torch.where(outside, 0.5 * a_safe.log(), 0.5 * (b_safe.log() - 1 + a / b_safe))


class Haar(Branch):
    """A rotation times sqrt(v): an orthogonal initialisation."""

    closed = True

    def __init__(self) -> None:
        super().__init__(torch.ones_like, "haar")

    def self_energies(self, gx: Tensor, gy: Tensor, s: Tensor, t: Tensor, energy: Tensor) -> tuple[Tensor, Tensor]:
        """See `Branch.self_energies`."""
        # The closed square root picks wrong sheets; this form preserves the half-plane.
        return energy / (1 / gx + t), energy / (1 / gy + s)

    def potential(self, s: Tensor, t: Tensor, gx: Tensor, energy: Tensor) -> Tensor:
        """See `Branch.potential`."""
        return -torch.log1p(torch.where(energy > 0, -s * t / torch.where(energy > 0, energy, 1), 0))

    def mean_log(self, alpha: Tensor, beta: Tensor, energy: Tensor) -> Tensor:
        """See `Branch.mean_log`."""
        # Of squares: the root of an energy of zero has no derivative.
        return 0.5 * torch.maximum(alpha.square(), beta.square() * energy).log()


class Hidden(Branch):
    """Two Gaussian layers around a mask, ``W2 D W1``: the Jacobian of a feed-forward branch with a ReLU.

    Parameters
    ----------
    active : float, default=0.5
        Hidden units that are on, per channel: half the ratio of hidden width to C for a ReLU, so 2 for the usual
        factor of four. As it grows the law becomes the Gaussian one.

    Raises
    ------
    ValueError
        If ``active`` is not positive.
    """

    closed = True

    def __init__(self, active: float = 0.5) -> None:
        if not 0 < active < math.inf:
            raise ValueError(f"active: expected a number > 0 of active hidden units per channel, got {active}")
        self.active = float(active)
        super().__init__(functools.partial(_hidden_s, self.active), "relu")

    @property
    def rank(self) -> float:
        """See `Branch.rank`."""
        return min(1.0, self.active)

    def self_energies(self, gx: Tensor, gy: Tensor, s: Tensor, t: Tensor, energy: Tensor) -> tuple[Tensor, Tensor]:
        """See `Branch.self_energies`."""
        # f = E[y d^2 / (1 - y d^2)] over the hidden units, y = v gx gy / active; s = f / gy and t = f / gx.
        common = energy / (1 - energy / self.active * gx * gy)
        return common * gx, common * gy

    def potential(self, s: Tensor, t: Tensor, gx: Tensor, energy: Tensor) -> Tensor:
        """See `Branch.potential`."""
        here = (t * gx).detach()
        ratio = s * t / torch.where(energy > 0, energy, 1)
        # s t / v = f (1 + f / active), a Newton's step that carries the derivative.
        move = (ratio - here * (1 + here / self.active)) / (1 + 2 * here / self.active)
        f = here + torch.where(energy > 0, move, 0)
        # Where a kernel leaves nothing else f goes to -active, and the sum would be round-off.
        near = ((1 + here / self.active).abs() < 0.5) & (energy > 0)
        rest = torch.where(near, ratio / torch.where(near, f, 1), 1)
        return 2 * f - self.active * torch.where(near, rest.log(), torch.log1p(torch.where(near, 0, f) / self.active))

    def mean_log(self, alpha: Tensor, beta: Tensor, energy: Tensor) -> Tensor:
        """See `Branch.mean_log`."""
        a, b = alpha.square(), beta.square() * energy / self.active
        kernel = max(1 - self.active, 0.0)
        # |beta lambda|^2 = b tau (tau - 1 + active), which passes alpha^2 at `start`.
        outside = a >= b * self.active
        b_safe = torch.where(outside, 1, b)
        shift = 1 - self.active
        square = shift * shift + 4 * a / b_safe
        start = 0.5 * (shift + torch.where(square > 0, torch.where(square > 0, square, 1).sqrt(), 0))
        start = torch.where(outside, 1, start.clamp(min=kernel, max=1))
        log_a = torch.where(a > 0, torch.where(a > 0, a, 1).log(), torch.where(start > 0, -math.inf, 0))
        inner = torch.where(start > 0, start * log_a, 0)
        one = torch.ones_like(start)
        logs = _x_log_x(one) - _x_log_x(start) + _x_log_x(one - shift) - _x_log_x(start - shift) - 2 * (1 - start)
        return 0.5 * (inner + torch.where(outside, 0, (1 - start) * b_safe.log() + logs))


def _x_log_x(x: Tensor) -> Tensor:
    positive = x > 0
    return torch.where(positive, x * torch.where(positive, x, 1).log(), 0)


@functools.cache
def _quadrature() -> tuple[Tensor, Tensor]:
    """Gauss-Legendre nodes and weights on [0, 1]."""
    nodes, weights = map(torch.from_numpy, np.polynomial.legendre.leggauss(_NODES))
    return (nodes + 1) / 2, weights / 2


def make_branch(branch: str | Branch) -> Branch:
    """Return the branch law of that name: ``"gaussian"``, ``"haar"``, ``"relu"``; or the one that is given."""
    named: dict[str, Callable[[], Branch]] = {"gaussian": Gaussian, "haar": Haar, "relu": Hidden}
    if isinstance(branch, Branch):
        return branch
    if isinstance(branch, str):
        if branch in named:
            return named[branch]()
        raise ValueError(f"branch: expected one of {', '.join(named)}, isotropic or a spectrum.Branch, got {branch!r}")
    raise TypeError(f"branch: expected a name or a spectrum.Branch, got {type(branch).__name__}")
