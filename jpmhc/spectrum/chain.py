"""The resolvent of a product of layers, by one elimination from either end."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from jpmhc.spectrum.branches import Branch


@dataclass(frozen=True)
class Resolvent:
    """What an elimination of the linearised product finds at G points for L layers on m streams.

    Attributes
    ----------
    g : Tensor, shape (G,)
        ``tr G / m`` at the input: the Stieltjes transform of the symmetrised law.
    gx, gy : Tensor, shape (G, L)
        Resolvent seen by each branch at its output (``q^T G q``) and at its input (``p^T G p``).
    log_det : Tensor, shape (G,)
        Logarithm of the determinant of the linearisation over its value without layers.
    """

    g: Tensor
    gx: Tensor
    gy: Tensor
    log_det: Tensor


@dataclass(frozen=True)
class Chain:
    """Layers ``M_l (x) I + q_l p_l^T (x) X_l`` with unit vectors p and q, or ``M_l (x) I + noise``.

    Attributes
    ----------
    mixers : Tensor, shape (L, m, m)
        Skip matrices M.
    read, write : Tensor, shape (L, m), or None
        Unit vectors p and q; ``None`` for noise on every stream.
    energy : Tensor, shape (L,)
        ``|p|^2 |q|^2 ||X||_F^2 / C``, or the energy of the noise.
    branch : Branch
        Law of X.
    """

    mixers: Tensor
    read: Tensor | None
    write: Tensor | None
    energy: Tensor
    branch: Branch

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The tensors that derivatives may be asked for."""
        gates = () if self.read is None or self.write is None else (self.read, self.write)
        return self.mixers, self.energy, *gates

    def with_tensors(self, mixers: Tensor, energy: Tensor, *gates: Tensor) -> Chain:
        """Return the same chain with other tensors, in the order of :attr:`tensors`."""
        read, write = gates or (None, None)
        return Chain(mixers, read, write, energy, self.branch)

    def resolvent(self, w: Tensor, s: Tensor, t: Tensor) -> Resolvent:
        """Eliminate at points w of shape (G,) with self-energies s, t of shape (G, L): O(G L m^3).

        Notes
        -----
        The linearisation has the unknowns ``y_0, x_1, y_1, ..., x_L, y_L``. Elimination from the front leaves the
        covariance-like ``C_l`` at ``y_l``, from the back ``-D_l``. Both obey the same recursion with read and write,
        s and t, and the order of the layers exchanged: they run as one batch.
        """
        (L, m), G = self.mixers.shape[:2], w.shape[0]
        # Layers last to first in the second half: its product is the transposed one.
        steps = torch.stack([self.mixers.mT, self.mixers.flip(0)]).to(w.dtype)
        absorbed = torch.stack([s, t.flip(1)]).unsqueeze(-1)  # (2, G, L, 1)
        emitted = torch.stack([t, s.flip(1)]).unsqueeze(-1)
        eye = torch.eye(m, dtype=w.dtype, device=w.device)
        C = (eye / w[:, None, None]).expand(2, G, m, m)
        states, logs = [C], []
        if self.read is not None and self.write is not None:
            p, q = self.read.to(w.dtype), self.write.to(w.dtype)
            enter = torch.stack([p, q.flip(0)]).unsqueeze(-1)  # (2, L, m, 1)
            leave = torch.stack([q, p.flip(0)])
            leave = (leave.unsqueeze(-1) * leave.unsqueeze(-2)).reshape(2, L, 1, m * m)
            columns = []
            for l in range(L):
                column = (C.reshape(2, G * m, m) @ enter[:, l]).reshape(2, G, m)
                pivot = 1 - absorbed[:, :, l] * (column @ enter[:, l])
                scaled = column * (absorbed[:, :, l] / pivot)
                C = C + scaled.unsqueeze(-1) * column.unsqueeze(-2)
                C = (C.reshape(2, G * m, m) @ steps[:, l]).view(2, G, m, m).mT
                C = (C.reshape(2, G * m, m) @ steps[:, l]).view(2, G, m * m)
                C = (C + emitted[:, :, l] * leave[:, l]).view(2, G, m, m)
                states.append(C)
                columns.append(column)
                logs.append(pivot[0, :, 0].log())
            into = torch.stack(columns, dim=2)  # (2, G, L, m)
        else:
            for l in range(L):
                strength = absorbed[:, :, l].unsqueeze(-1)
                C = torch.linalg.solve_ex(eye - strength * C, C)[0]
                # Symmetric to round-off only; the recursion amplifies what is not.
                C = (C + C.mT) / 2
                C = (C.reshape(2, G * m, m) @ steps[:, l]).view(2, G, m, m).mT
                C = (C.reshape(2, G * m, m) @ steps[:, l]).view(2, G, m, m)
                logs.append(_log_det_ratio(1 / strength[0, :, 0, 0], states[-1][0]))
                C = C + emitted[:, :, l].unsqueeze(-1) * eye
                states.append(C)
        both = torch.stack(states, dim=2)  # (2, G, L + 1, m, m)
        C, D = both[0], both[1].flip(1)
        system = eye - C @ D
        if self.read is not None and self.write is not None:
            none = into.new_zeros(G, 1, m)
            targets = torch.cat([none, q.expand(G, L, m)], dim=1)
            rhs = torch.stack([torch.cat([into[0], none], dim=1), targets], dim=-1)
            solved = torch.linalg.solve_ex(system, rhs)[0]
            gy = (solved[:, :-1, :, 0] * p).sum(-1)
            gx = (solved[:, 1:, :, 1] * into[1].flip(1)).sum(-1)
        else:
            gy = torch.linalg.solve_ex(system[:, :-1], C[:, :-1])[0].diagonal(dim1=-2, dim2=-1).mean(-1)
            gx = torch.linalg.solve_ex(system[:, 1:], D[:, 1:])[0].diagonal(dim1=-2, dim2=-1).mean(-1)
        wide = w[:, None, None] * eye
        g = torch.linalg.solve_ex(wide - D[:, 0], eye.expand(G, m, m))[0].diagonal(dim1=-2, dim2=-1).mean(-1)
        log_det = torch.stack(logs, dim=-1).sum(-1) + _log_det_ratio(w, C[:, -1])
        return Resolvent(g, gx, gy, log_det)

    def potential(self, w: Tensor, s: Tensor, t: Tensor, resolvent: Resolvent) -> Tensor:
        """``E log(w^2 - s^2)`` of shape (G,), stationary in the self-energies: their errors enter squared.

        Every logarithm in it is of a quotient of two numbers, or matrices, of one half-plane, so its principal value is
        the continuous one.
        """
        m = self.mixers.shape[-1]
        terms = self.branch.potential(s, t, resolvent.gx, self.energy)
        share = 1.0 if self.read is None else 1 / m
        return 2 * w.log() + resolvent.log_det / m + share * terms.sum(-1)


def _log_det_ratio(w: Tensor, matrix: Tensor) -> Tensor:
    """``log det(I - matrix / w)`` for symmetric (G, m, m) with ``-matrix`` and w (G,) in one half-plane.

    Elimination without pivoting: every pivot stays in the half-plane, which also makes it stable.
    """
    m = matrix.shape[-1]
    rest = w[:, None, None] * torch.eye(m, dtype=matrix.dtype, device=matrix.device) - matrix
    total = torch.zeros_like(w)
    for _ in range(m):
        pivot, column = rest[:, 0, 0], rest[:, 1:, 0]
        total = total + pivot.log() - w.log()
        rest = rest[:, 1:, 1:] - column.unsqueeze(-1) * (column / pivot.unsqueeze(-1)).unsqueeze(-2)
    return total
