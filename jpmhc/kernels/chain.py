"""Elimination of a chain of layers, a matrix and a random branch or noise each, at many complex points.

Complex numbers are pairs of real ones in a last dimension of two (`torch.view_as_real`).
"""

from typing import Any

import torch
from torch import Tensor

from jpmhc.kernels.primitive import primitive, repeated

Four = tuple[Tensor, Tensor, Tensor, Tensor]


def _shapes(mixers: Tensor, read: Tensor, write: Tensor, w: Tensor, s: Tensor, t: Tensor) -> Four:
    return w.new_empty(w.shape), w.new_empty(s.shape), w.new_empty(s.shape), w.new_empty(len(w), sum(read.shape), 2)


def _noisy_shapes(mixers: Tensor, w: Tensor, s: Tensor, t: Tensor) -> Four:
    L, m = mixers.shape[:2]
    return w.new_empty(w.shape), w.new_empty(s.shape), w.new_empty(s.shape), w.new_empty(len(w), (L + 1) * m, 2)


@primitive("chain_sweeps", fake=_shapes, vmap=repeated)
def chain_sweeps(mixers: Tensor, read: Tensor, write: Tensor, w: Tensor, s: Tensor, t: Tensor) -> Four:
    """Eliminate the linearised product of L layers on m streams at G points: O(G L m^3).

    Parameters
    ----------
    mixers : Tensor, shape (L, m, m)
        Skip matrices M.
    read, write : Tensor, shape (L, m)
        Vectors p and q.
    w : Tensor, shape (G, 2)
        Points of the upper half-plane.
    s, t : Tensor, shape (G, L, 2)
        Self-energies at the inputs and at the outputs of the branches.

    Returns
    -------
    g : Tensor, shape (G, 2)
        ``tr G / m`` of the resolvent at the input.
    gx, gy : Tensor, shape (G, L, 2)
        ``q^T G q`` at each branch's output and ``p^T G p`` at its input.
    pivots : Tensor, shape (G, L + m, 2)
        Of the elimination: what each read leaves of one, then those of ``I - C_L / w``. Their product is the
        determinant of the linearisation over its value without layers; each is a quotient of two numbers of one
        half-plane, so the sum of their logarithms is the continuous one.

    Notes
    -----
    The linearisation has the unknowns ``y_0, x_1, y_1, ..., x_L, y_L``. A sweep from the front leaves ``C_l`` at
    ``y_l``, what the layers up to it make of ``1 / w``. One from the back leaves ``K_l``, with which the resolvent at
    ``y_l`` is ``C_l + C_l K_l C_l`` and that at ``x_l`` is ``K_l``: the adjoint of the first sweep, as in smoothing
    after a Kalman filter. It has no inverse inside and needs of each layer one vector of the first.
    """
    return _real(sweeps(mixers, read, write, *map(torch.view_as_complex, (w, s, t))))


@primitive("noisy_chain_sweeps", fake=_noisy_shapes, vmap=repeated)
def noisy_chain_sweeps(mixers: Tensor, w: Tensor, s: Tensor, t: Tensor) -> Four:
    """Eliminate a chain with noise on every stream, layers ``M_l (x) I + X_l``: O(G L m^3).

    Parameters
    ----------
    mixers, w, s, t : Tensor
        As for `chain_sweeps`; the self-energies are multiples of the identity.

    Returns
    -------
    g, gx, gy, pivots : Tensor
        As there, with traces over m in ``gx`` and ``gy`` and m pivots a layer: (G, L m + m, 2).
    """
    return _real(noisy_sweeps(mixers, *map(torch.view_as_complex, (w, s, t))))


def sweeps(mixers: Tensor, read: Tensor, write: Tensor, w: Tensor, s: Tensor, t: Tensor) -> Four:
    """Do the same in complex numbers and in plain operations, which carry derivatives."""
    L, m = read.shape
    # Points last, so that every operation of a layer runs along memory.
    s, t = s.mT.contiguous(), t.mT.contiguous()
    eye = torch.eye(m, dtype=mixers.dtype, device=mixers.device)
    squares = write.unsqueeze(-1) * write.unsqueeze(-2)
    C = eye.unsqueeze(-1) / w
    columns, reads, pivots = [], [], []
    for l in range(L):
        column = _times(read[l : l + 1], C)[0]
        seen = _times(read[l : l + 1], column)[0]
        pivot = 1 - s[l] * seen
        C = C + (column * (s[l] / pivot)).unsqueeze(1) * column
        C = _congruent(mixers[l], C) + squares[l].unsqueeze(-1) * t[l]
        columns.append(column)
        reads.append(seen)
        pivots.append(pivot)
    inverse, ends = _inverse(eye - C.permute(2, 0, 1) / w[:, None, None])
    K = inverse.permute(1, 2, 0) / w
    gx, gy = [], []
    for l in reversed(range(L)):
        gx.append(_times(write[l : l + 1], _times(write[l : l + 1], K)[0])[0])
        K = _congruent(mixers[l].mT, K)
        met = (K * columns[l]).sum(1)
        both = (columns[l] * met).sum(0) / pivots[l]
        gy.append((reads[l] + both) / pivots[l])
        share = s[l] / pivots[l]
        half = share * met + (0.5 * share * (1 + s[l] * both)) * read[l].unsqueeze(-1)
        half = read[l, :, None, None] * half
        K = K + half + half.transpose(0, 1)
    g = (1 + K.diagonal().sum(-1) / (m * w)) / w
    return g, torch.stack(gx[::-1], -1), torch.stack(gy[::-1], -1), torch.cat([torch.stack(pivots, -1), ends], -1)


def noisy_sweeps(mixers: Tensor, w: Tensor, s: Tensor, t: Tensor) -> Four:
    """Do the same with noise, as `sweeps` does."""
    L, m = mixers.shape[:2]
    eye = torch.eye(m, dtype=w.dtype, device=w.device)
    skips = mixers.to(w.dtype)
    C = eye / w[:, None, None]
    factors, seen, pivots = [], [], []
    for l in range(L):
        factor, left = _inverse(eye - s[:, l, None, None] * C)
        C = _symmetric(factor @ C)
        factors.append(factor)
        seen.append(C)
        pivots.append(left)
        C = _symmetric(skips[l] @ C @ skips[l].mT) + t[:, l, None, None] * eye
    inverse, ends = _inverse(eye - C / w[:, None, None])
    K = inverse / w[:, None, None]
    gx, gy = [], []
    for l in reversed(range(L)):
        gx.append(_trace(K) / m)
        K = skips[l].mT @ K @ skips[l]
        gy.append((_trace(seen[l]) + ((seen[l] @ K) * seen[l].mT).sum((-2, -1))) / m)
        K = _symmetric(factors[l] @ K @ factors[l].mT + s[:, l, None, None] * factors[l])
    g = (1 + _trace(K) / (m * w)) / w
    return g, torch.stack(gx[::-1], -1), torch.stack(gy[::-1], -1), torch.cat([*pivots, ends], -1)


def _inverse(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Inverse ``T^T D^-1 T`` of symmetric matrices (G, m, m), and D (G, m), by an elimination without exchanges.

    The pivots D stay in one half-plane with the numerical range. One symmetric form for all columns keeps K q exact
    where a matrix has large and small values, next to an atom; a solve for each column loses it.
    """
    m = matrices.shape[-1]
    rest, rows, pivots = matrices, [], []
    T = torch.eye(m, dtype=matrices.dtype, device=matrices.device).expand_as(matrices)
    for _ in range(m):
        pivot = rest[:, 0, 0]
        factor = (rest[:, 1:, 0] / pivot.unsqueeze(-1)).unsqueeze(-1)
        rest = rest[:, 1:, 1:] - factor * rest[:, :1, 1:]
        rows.append(T[:, 0])
        pivots.append(pivot)
        T = T[:, 1:] - factor * T[:, :1]
    L, D = torch.stack(rows, 1), torch.stack(pivots, -1)
    return L.mT @ (L / D.unsqueeze(-1)), D


def _symmetric(matrices: Tensor) -> Tensor:
    """Symmetric to round-off only; the recursion amplifies what is not."""
    return (matrices + matrices.mT) / 2


def _trace(matrices: Tensor) -> Tensor:
    return matrices.diagonal(dim1=-2, dim2=-1).sum(-1)


def _real(tensors: tuple[Tensor, ...]) -> Any:
    return tuple(torch.view_as_real(tensor.contiguous()) for tensor in tensors)


def _times(matrix: Tensor, vectors: Tensor) -> Tensor:
    """Real (r, m) times complex (m, ...)."""
    real = torch.view_as_real(vectors)
    return torch.view_as_complex((matrix @ real.flatten(1)).view(len(matrix), *real.shape[1:]))


def _congruent(matrix: Tensor, symmetric: Tensor) -> Tensor:
    """Return ``A X A^T`` for real A (m, m) and complex symmetric X (m, m, G)."""
    return _times(matrix, _times(matrix, symmetric).transpose(0, 1).contiguous())
