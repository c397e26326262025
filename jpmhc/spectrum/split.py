"""Directions that no branch reads or writes: the atoms of a law, split off exactly."""

from __future__ import annotations

import torch
from torch import Tensor

from jpmhc.spectrum.chain import Chain
from jpmhc.spectrum.model import Model

_RANK_TOLERANCE = 1e-10
# Of a layer's size: what it leaves of a direction below that is round-off.
_COLLAPSE = 1e-12


def split(model: Model) -> tuple[Chain | None, Tensor]:
    """Return the chain on the remaining streams (``None`` if none remain) and the places of the atoms (k,).

    Notes
    -----
    With the skip product ``A = M_L ... M_1``, a subspace U of the streams that (i) no read sees on its way through the
    layers, (ii) ends orthogonal to all that was ever written, and (iii) is invariant under ``A^T A`` is a block of its
    own: ``J`` restricted to it is ``A (x) I``, so every singular value of ``A|U`` has multiplicity C. The largest such
    U is a null space. The other block is the product of the layers seen modulo the images of U.

    What A takes to zero stays in the other block, so that U's images keep their dimension; the rank tells of it there.
    """
    if not (model.load > 0).any():
        return None, _of_mixers(model.mixers)
    if model.read is None or model.write is None:
        return Chain(model.mixers, None, None, model.energy, model.branch), model.mixers.new_zeros(0)
    U = _kept(model.mixers.detach(), _untouched(model))
    frames = _images(model.mixers.detach(), U) if U.shape[1] else None
    if frames is None:
        return _normalised(model.mixers, model.read, model.write, model), model.mixers.new_zeros(0)
    ends, rests = frames
    product = torch.eye(U.shape[1], dtype=U.dtype)
    for l in range(model.layers):
        product = ends[l + 1].mT @ model.mixers[l] @ ends[l] @ product
    atoms = torch.linalg.svdvals(product).flip(0)
    before, after = torch.stack(rests[:-1]), torch.stack(rests[1:])
    mixers = after.mT @ model.mixers @ before
    read = (before.mT @ model.read.unsqueeze(-1)).squeeze(-1)
    write = (after.mT @ model.write.unsqueeze(-1)).squeeze(-1)
    return _normalised(mixers, read, write, model), atoms


def _of_mixers(mixers: Tensor) -> Tensor:
    """Singular values (n,), ascending, of the product of mixers (L, n, n), zero in what a single one takes to zero."""
    n = mixers.shape[-1]
    product = _kept(mixers.detach(), torch.eye(n, dtype=mixers.dtype))
    kept = product.shape[1]
    for matrix in mixers:
        product = matrix @ product
    return torch.cat([mixers.new_zeros(n - kept), torch.linalg.svdvals(product).flip(0)])


def _normalised(mixers: Tensor, read: Tensor, write: Tensor, model: Model) -> Chain:
    lengths = [gate.norm(dim=-1, keepdim=True) for gate in (read, write)]
    # A gate that is zero counts by its energy; its direction must still be one.
    one = torch.eye(read.shape[-1], dtype=read.dtype)[0]
    read, write = (
        torch.where(length > 0, gate / torch.where(length > 0, length, 1), one)
        for gate, length in zip((read, write), lengths, strict=True)
    )
    energy = model.energy * (lengths[0] * lengths[1]).squeeze(-1).square()
    return Chain(mixers, read, write, energy, model.branch)


def _untouched(model: Model) -> Tensor:
    """Orthonormal basis (n, k) of the largest subspace that the branches leave alone."""
    M, n = model.mixers.detach(), model.streams
    eye = torch.eye(n, dtype=M.dtype)
    assert model.read is not None
    assert model.write is not None
    live = (model.load > 0).tolist()
    seen, A = [], eye
    for l in range(model.layers):
        if live[l]:
            seen.append(model.read[l].detach() @ A)
        A = M[l] @ A
        A = A / A.norm().clamp_min(1e-300)
    written, tail = [], eye
    for l in reversed(range(model.layers)):
        if live[l]:
            written.append(model.write[l].detach() @ tail.mT)
        tail = tail @ M[l]
        tail = tail / tail.norm().clamp_min(1e-300)
    # `written @ A` pulled back to the input, in the unit of A.
    rows = torch.stack([*(_unit(row) for row in seen), *(_unit(row) @ A for row in written)])
    gram = A.mT @ A
    space = _row_space(rows)
    while True:
        grown = _row_space(torch.cat([space, space @ gram]))
        if grown.shape[0] == space.shape[0]:
            break
        space = grown
    if space.shape[0] == n:
        return eye[:, :0]
    return torch.linalg.qr(space.mT, mode="complete")[0][:, space.shape[0] :]


def _kept(M: Tensor, U: Tensor) -> Tensor:
    """Orthonormal basis of the part of U (n, k) that the layers do not take to zero: U less the kernel of A there.

    One layer after the other, which decides about the values of a layer and not about those of the product: frames of
    U's images forward, then the row space of the map between them back.
    """
    steps, frame = [], U
    for matrix in M:
        image = matrix @ frame
        left, values, _ = torch.linalg.svd(image, full_matrices=False)
        reached = left[:, values > _COLLAPSE * matrix.norm()]
        steps.append(reached.mT @ image)
        frame = reached
    if frame.shape[1] == U.shape[1]:
        return U
    space = torch.eye(frame.shape[1], dtype=M.dtype)
    for matrix in reversed(steps):
        space = torch.linalg.qr(matrix.mT @ space)[0]
    return U @ space


def _unit(row: Tensor) -> Tensor:
    return row / row.norm().clamp_min(1e-300)


def _row_space(rows: Tensor) -> Tensor:
    _, values, basis = torch.linalg.svd(rows, full_matrices=False)
    # Where the mixers take all to zero there is no row.
    return basis[values > _RANK_TOLERANCE * values[:1].clamp_min(1e-300)]


def _images(M: Tensor, U: Tensor) -> tuple[list[Tensor], list[Tensor]] | None:
    """Orthonormal bases of U's image after each layer, and of the complements; ``None`` if one of them collapses."""
    k = U.shape[1]
    frame = torch.linalg.qr(U, mode="complete")[0]
    frame[:, :k] = U
    ends, rests = [frame[:, :k]], [frame[:, k:]]
    for matrix in M:
        Q, R = torch.linalg.qr(matrix @ ends[-1], mode="complete")
        # In the unit of the layer, not of the image, all of which may be round-off.
        if not R.diagonal().abs().min() > _COLLAPSE * matrix.norm():
            return None
        ends.append(Q[:, :k])
        rests.append(Q[:, k:])
    return ends, rests
