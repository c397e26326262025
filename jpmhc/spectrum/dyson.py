"""The self-consistent equation for the 2 L self-energies of a chain, solved at many points at once."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from jpmhc.autodiff import GMRES, Implicit, Picard, fixed_point
from jpmhc.spectrum.chain import Chain

_MEMORY = 8
_STEPS = 60
_PATIENT_STEPS = 600
# Entries of one stack of resolvents: bounds the memory of an elimination to a few hundred megabytes.
_CHUNK = 1 << 21


@dataclass(frozen=True)
class SelfEnergies:
    """Solution at G points.

    Attributes
    ----------
    s, t : Tensor, shape (G, L), complex
        Self-energies at the inputs and outputs of the branches.
    residual : Tensor, shape (G,)
        Largest change by one more step, in the unit in which the branches' shares of the potential are measured.
    steps : Tensor, shape (G,), int64
        Eliminations it took.
    """

    s: Tensor
    t: Tensor
    residual: Tensor
    steps: Tensor

    def __getitem__(self, index: Tensor | slice) -> SelfEnergies:
        return SelfEnergies(self.s[index], self.t[index], self.residual[index], self.steps[index])

    def replaced(self, index: Tensor, by: SelfEnergies) -> SelfEnergies:
        """Return the solution with other points at those places."""
        return SelfEnergies(*(old.index_put((index,), new) for old, new in zip(self._fields, by._fields, strict=True)))

    def joined(self, more: SelfEnergies) -> SelfEnergies:
        """Return the points of both."""
        return SelfEnergies(*(torch.cat(pair) for pair in zip(self._fields, more._fields, strict=True)))

    def between(self, right: Tensor, weight: Tensor) -> SelfEnergies:
        """Weighted geometric means of points and their left neighbours: a start, which lies in their half-plane."""
        a, b, share = self[right - 1], self[right], weight.unsqueeze(-1)
        return SelfEnergies(_power(a.s, b.s, share), _power(a.t, b.t, share), b.residual, 0 * b.steps)

    def continued(self, x: Tensor, to: Tensor) -> SelfEnergies:
        """Power laws through two points at x (2,), at places beyond the second: a start, as they hold next to zero."""
        share = ((to / x[0]).log() / (x[1] / x[0]).log()).unsqueeze(-1)
        parts = [_power(values[0], values[1], share) for values in (self.s, self.t)]
        inside = torch.stack([(part.imag <= 0).all(1) & part.isfinite().all(1) for part in parts]).all(0).unsqueeze(-1)
        s, t = (torch.where(inside, part, values[1]) for part, values in zip(parts, (self.s, self.t), strict=True))
        zero = torch.zeros(len(to), dtype=torch.int64)
        return SelfEnergies(s, t, self.residual[1].expand(len(to)), zero)

    @property
    def _fields(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.s, self.t, self.residual, self.steps


def _power(a: Tensor, b: Tensor, share: Tensor) -> Tensor:
    """``a^(1 - share) b^share``: of two numbers of the lower half-plane, one of it where the share is in [0, 1]."""
    known = (a != 0) & (b != 0)
    ratio = torch.where(known, b / a, 1)
    return torch.where(known, a * (share * ratio.log()).exp(), torch.lerp(a, b, share.to(a)))


def step(chain: Chain, w: Tensor, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One application of the map whose fixed point is the solution, with the resolvents gx and gy on the way."""
    found = chain.resolvent(w, s, t)
    return *chain.branch.self_energies(found.gx, found.gy, s, t, chain.energy), found.gx, found.gy


def solve(
    chain: Chain, w: Tensor, start: SelfEnergies | None = None, tol: float = 1e-8, patient: bool = True
) -> SelfEnergies:
    """Solve at points w (G,) of the upper half-plane, from a start or from that of large ``|w|``.

    The map sends the lower half-plane (of all 2 L numbers) into itself and has one fixed point there (Helton, Rashidi
    Far and Speicher 2007): whatever solves the equation with imaginary parts of the right sign is the solution.
    Anderson acceleration finds it; points where it fails take a damped one with ten times the steps if ``patient``.
    """
    with torch.no_grad():
        if start is None:
            guess = chain.energy / w[:, None]
            zero = torch.zeros(len(w), dtype=torch.int64)
            start = SelfEnergies(guess, guess.clone(), torch.full(w.shape, math.inf, dtype=torch.float64), zero)
        L, m = chain.mixers.shape[:2]
        size = max(1, _CHUNK // max(1, L * m * m))
        parts = [_solve(chain, w[i : i + size], start[i : i + size], tol, patient) for i in range(0, len(w), size)]
        if not parts:
            return start
        return functools.reduce(SelfEnergies.joined, parts)


def _solve(chain: Chain, w: Tensor, start: SelfEnergies, tol: float, patient: bool) -> SelfEnergies:
    found = _anderson(chain, w, start, tol, _STEPS, damping=1.0)
    left = (~(found.residual <= tol)).nonzero()[:, 0]
    if patient and len(left):
        slow = _anderson(chain, w[left], start[left], tol, _PATIENT_STEPS, damping=0.5, memory=3)
        found = found.replaced(left, slow)
    return _confirmed(chain, w, found)


def _confirmed(chain: Chain, w: Tensor, found: SelfEnergies) -> SelfEnergies:
    """Take points on a wrong sheet of the branch's transform for what they are: not solved."""
    if chain.branch.closed:
        return found
    resolvent = chain.resolvent(w, found.s, found.t)
    right = chain.branch.confirms(resolvent.gx, resolvent.gy, found.s, found.t, chain.energy)
    return SelfEnergies(found.s, found.t, torch.where(right, found.residual, math.inf), found.steps)


def _anderson(
    chain: Chain, w: Tensor, start: SelfEnergies, tol: float, max_steps: int, damping: float, memory: int = _MEMORY
) -> SelfEnergies:
    """Anderson acceleration on complex vectors; points leave the batch when they have converged."""
    L = chain.mixers.shape[0]
    z = torch.cat([start.s, start.t], dim=1)
    result, residual, steps = z.clone(), torch.full(w.shape, math.inf, dtype=torch.float64), start.steps.clone()
    index = torch.arange(len(w))
    moves: list[Tensor] = []
    changes: list[Tensor] = []
    unit = z_before = change_before = z
    for k in range(max_steps):
        new_s, new_t, gx, gy = step(chain, w[index], z[:, :L], z[:, L:])
        change = torch.cat([new_s, new_t], dim=1) - z
        # In this unit an error is one of t gx and s gy, without dimension and of order one.
        scale = torch.cat([gy, gx], dim=1)
        error = (change * scale).abs().amax(1)
        error = torch.where(error.isfinite(), error, math.inf)
        good = (z.imag <= 1e-12 * z.abs()).all(1)
        done = (error <= tol) & good
        result[index], residual[index] = z + change, torch.where(good, error, math.inf)
        steps[index] += 1
        keep = ~done & error.isfinite()
        if not keep.any() or k == max_steps - 1:
            break
        if k == 0:
            unit = scale
        else:
            moves, changes = [*moves, z - z_before][-memory:], [*changes, change - change_before][-memory:]
        proposal = z + (damping if moves else 0.5) * change
        if moves:
            proposal = proposal - _correction(moves, changes, change, unit, damping)
            # A layer without energy stays at zero.
            outside = ~((proposal.imag < 0) | (scale.abs() == 0) | (proposal == 0)).all(1) | ~proposal.isfinite().all(1)
            proposal = torch.where(outside[:, None], z + 0.5 * change, proposal)
        z_before, change_before, unit = z[keep], change[keep], unit[keep]
        z, index = proposal[keep], index[keep]
        moves, changes = [a[keep] for a in moves], [a[keep] for a in changes]
    return SelfEnergies(result[:, :L], result[:, L:], residual, steps)


def _correction(moves: list[Tensor], changes: list[Tensor], change: Tensor, unit: Tensor, damping: float) -> Tensor:
    """Return what cancels ``change`` if the map were affine on the last iterates."""
    A = torch.stack(changes, dim=-1)
    scaled = A * unit.unsqueeze(-1)
    norm = scaled.norm(dim=1, keepdim=True)
    inverse = torch.where(norm > 0, 1 / norm, 0)
    columns = scaled * inverse
    gram = columns.mH @ columns + 1e-12 * torch.eye(A.shape[-1], dtype=A.dtype)
    weights = torch.linalg.solve_ex(gram, columns.mH @ (change * unit).unsqueeze(-1))[0] * inverse.mT
    weights = torch.where(weights.isfinite(), weights, 0)
    return ((torch.stack(moves, dim=-1) + damping * A) @ weights).squeeze(-1)


def descend(
    chain: Chain, x: Tensor, angles: tuple[float, ...], start: SelfEnergies | None = None, tol: float = 1e-8
) -> list[SelfEnergies]:
    """Solve at ``x e^{i a}`` for real x > 0 (G,) and every angle of a descending list, each from the one before."""
    found: list[SelfEnergies] = []
    for angle in angles:
        start = solve(chain, point(x, angle), start, tol, patient=False)
        found.append(start)
    return found


def point(x: Tensor, angle: float) -> Tensor:
    """``x e^{i angle}``: on a logarithmic axis, the distance from the real one is the same everywhere."""
    return x * complex(math.cos(angle), math.sin(angle))


def attach(chain: Chain, w: Tensor, found: SelfEnergies) -> tuple[Tensor, Tensor]:
    """Self-energies that carry the derivative of the equation with respect to the chain's tensors.

    Points that did not converge have no derivative: pass only those that did.
    """
    if not chain.differentiated:
        return found.s, found.t
    L = chain.mixers.shape[0]
    with torch.no_grad():
        resolvent = chain.detached().resolvent(w, found.s, found.t)
        # Dimensionless unknowns, so that one tolerance fits all.
        unit = torch.cat([resolvent.gy, resolvent.gx], dim=1)

    def equation(state: Tensor, *tensors: Tensor) -> Tensor:
        z = torch.view_as_complex(state) / unit
        new_s, new_t, _, _ = step(chain.with_tensors(*tensors), w, z[:, :L], z[:, L:])
        return torch.view_as_real(torch.cat([new_s, new_t], dim=1) * unit)

    start = torch.view_as_real(torch.cat([found.s, found.t], dim=1) * unit)
    solution = fixed_point(
        equation,
        start,
        *chain.tensors,
        solver=Picard(tol=1e-5, max_steps=1),
        adjoint=Implicit(GMRES(tol=1e-8, max_steps=400)),
    )
    z = torch.view_as_complex(solution.value.contiguous()) / unit
    return z[:, :L], z[:, L:]
