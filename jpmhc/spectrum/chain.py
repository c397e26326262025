"""The resolvent of a product of layers, by one elimination from either end."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from jpmhc.kernels.chain import chain_sweeps, noisy_chain_sweeps, noisy_sweeps, sweeps
from jpmhc.kernels.transforms import transform_depth
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
    pivots : Tensor, shape (G, K)
        Quotients of two numbers of one half-plane, whose product is the determinant of the linearisation over its value
        without layers.
    """

    g: Tensor
    gx: Tensor
    gy: Tensor
    pivots: Tensor


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
    frozen : bool
        Whether its resolvents are asked for without derivatives.
    """

    mixers: Tensor
    read: Tensor | None
    write: Tensor | None
    energy: Tensor
    branch: Branch
    frozen: bool = False

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The tensors that derivatives may be asked for."""
        gates = () if self.read is None or self.write is None else (self.read, self.write)
        return self.mixers, self.energy, *gates

    @property
    def differentiated(self) -> bool:
        """Whether somebody may want derivatives: in reverse, or in a transform, which does not say of what."""
        wanted = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in self.tensors)
        return not self.frozen and (transform_depth() > 0 or wanted)

    def detached(self) -> Chain:
        """Return the same chain as numbers, to solve with."""
        return replace(self.with_tensors(*(tensor.detach() for tensor in self.tensors)), frozen=True)

    def with_tensors(self, mixers: Tensor, energy: Tensor, *gates: Tensor) -> Chain:
        """Return the same chain with other tensors, in the order of :attr:`tensors`."""
        read, write = gates or (None, None)
        return Chain(mixers, read, write, energy, self.branch)

    def resolvent(self, w: Tensor, s: Tensor, t: Tensor) -> Resolvent:
        """Eliminate at points w of shape (G,) with self-energies s, t of shape (G, L): O(G L m^3).

        Notes
        -----
        The linearisation has the unknowns ``y_0, x_1, y_1, ..., x_L, y_L``. A sweep from the front leaves ``C_l`` at
        ``y_l``, what the layers up to it make of ``1 / w``; one from the back leaves ``K_l``, with which the resolvent
        at ``y_l`` is ``C_l + C_l K_l C_l`` and that at ``x_l`` is ``K_l``.
        """
        M, p, q = self.mixers, self.read, self.write
        if self.differentiated or (torch.is_grad_enabled() and s.requires_grad):
            # In plain operations, which carry derivatives.
            plain = noisy_sweeps(M, w, s, t) if p is None or q is None else sweeps(M, p, q, w, s, t)
            return Resolvent(*plain)
        w, s, t = (torch.view_as_real(value.resolve_conj()) for value in (w, s, t))
        found = noisy_chain_sweeps(M, w, s, t) if p is None or q is None else chain_sweeps(M, p, q, w, s, t)
        return Resolvent(*map(torch.view_as_complex, found))

    def potential(self, w: Tensor, s: Tensor, t: Tensor, resolvent: Resolvent) -> Tensor:
        """``E log(w^2 - s^2)`` of shape (G,), stationary in the self-energies: their errors enter squared.

        Every logarithm in it is of a quotient of two numbers of one half-plane, so its principal value is the
        continuous one.
        """
        m = self.mixers.shape[-1]
        terms = self.branch.potential(s, t, resolvent.gx, self.energy)
        share = 1.0 if self.read is None else 1 / m
        return 2 * w.log() + resolvent.pivots.log().sum(-1) / m + share * terms.sum(-1)
