"""The random Jacobian whose spectrum is asked for: a product of layers, checked and in float64."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from jpmhc.spectrum.branches import Branch, Gaussian, make_branch


@dataclass(frozen=True)
class Model:
    """``J = J_{L-1} ... J_0`` with ``J_l = M_l (x) I + write_l read_l^T (x) X_l``, or ``M_l (x) I`` plus noise.

    Attributes
    ----------
    mixers : Tensor, shape (L, n, n)
        Skip matrices.
    read, write : Tensor, shape (L, n), or None
        Weights of the branch's input and output; ``None`` for isotropic noise.
    energy : Tensor, shape (L,)
        ``||X_l||_F^2`` over the number of its rows.
    branch : Branch
        Law of X.
    """

    mixers: Tensor
    read: Tensor | None
    write: Tensor | None
    energy: Tensor
    branch: Branch

    @property
    def layers(self) -> int:
        """Number of layers L."""
        return self.mixers.shape[0]

    @property
    def streams(self) -> int:
        """Number of streams n."""
        return self.mixers.shape[-1]

    @property
    def load(self) -> Tensor:
        """Energy (L,) that each layer's branch adds to the streams, ``v |read|^2 |write|^2``, or that of the noise."""
        if self.read is None or self.write is None:
            return self.energy
        return self.energy * self.read.square().sum(-1) * self.write.square().sum(-1)

    @property
    def scalar_load(self) -> Tensor:
        """``c``, the branches' energy per direction over the depth: the one number of the scalar theory."""
        total = self.load.sum()
        return total if self.read is None else total / self.streams


def make_model(mixers: Any, read: Any, write: Any, energy: Any, branch: str | Branch) -> Model:
    """Check the arguments that `predict` and its neighbours share.

    Raises
    ------
    ValueError
        No layer, mixers that are not square or not of one size, gates of another size, negative energies, anything not
        finite; gates with isotropic noise, or none without it.
    """
    mixers = _mixers(mixers)
    L, n = mixers.shape[:2]
    energy = _real("energy", energy)
    if energy.shape not in ((), (L,)):
        raise ValueError(f"energy: expected one number or one for each of {L} layers, got shape {tuple(energy.shape)}")
    if (energy < 0).any():
        raise ValueError(f"energy: expected numbers >= 0, got {energy.min().item():g}")
    energy = energy.expand(L)
    if isinstance(branch, str) and branch == "isotropic":
        for name, gate in (("read", read), ("write", write)):
            if gate is not None:
                raise ValueError(f"{name}: isotropic noise has no gates; pass None, or another branch")
        return Model(mixers, None, None, energy, Gaussian())
    law = make_branch(branch)
    return Model(mixers, _gate("read", read, L, n), _gate("write", write, L, n), energy, law)


def _mixers(mixers: Any) -> Tensor:
    if not isinstance(mixers, Tensor) and isinstance(mixers, (list, tuple)):
        if not len(mixers):
            raise ValueError("mixers: expected at least one layer, got none")
        rows = [_real(f"mixers[{l}]", matrix) for l, matrix in enumerate(mixers)]
        shapes = sorted({tuple(matrix.shape) for matrix in rows})
        if len(shapes) > 1:
            raise ValueError(f"mixers: expected matrices of one size, got shapes {', '.join(map(str, shapes))}")
        mixers = torch.stack(rows)
    mixers = _real("mixers", mixers)
    if mixers.ndim != 3 or mixers.shape[-1] != mixers.shape[-2]:
        raise ValueError(f"mixers: expected shape (L, n, n), got {tuple(mixers.shape)}")
    if mixers.shape[0] == 0 or mixers.shape[-1] == 0:
        raise ValueError(f"mixers: expected at least one layer and one stream, got shape {tuple(mixers.shape)}")
    return mixers


def _gate(name: str, gate: Any, L: int, n: int) -> Tensor:
    if gate is None:
        raise ValueError(f"{name}: expected weights of shape ({L}, {n}) or ({n},); None only with branch='isotropic'")
    gate = _real(name, gate)
    if gate.shape not in ((n,), (L, n)):
        raise ValueError(f"{name}: expected shape ({L}, {n}) or ({n},), got {tuple(gate.shape)}")
    return gate.expand(L, n)


def _real(name: str, value: Any) -> Tensor:
    try:
        tensor = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name}: expected a tensor or numbers, got {type(value).__name__}") from error
    if tensor.is_complex():
        raise TypeError(f"{name}: expected real numbers, got {tensor.dtype}")
    # On the CPU whatever the model's device: the numbers are few. Python's own would be rounded to the default dtype.
    source = tensor if isinstance(value, Tensor) else torch.as_tensor(value, dtype=torch.float64)
    tensor = source.to("cpu", torch.float64)
    if not tensor.isfinite().all():
        raise ValueError(f"{name}: expected finite numbers, got NaN or infinity")
    return tensor
