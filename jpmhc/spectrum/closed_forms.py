"""What is known of a law without solving anything: its mean log and its first two moments."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from jpmhc.host import on_host
from jpmhc.spectrum.branches import Branch
from jpmhc.spectrum.model import Model, make_model


def mean_log(model: Model) -> Tensor:
    """``E[log s]``, exact as the width grows, for any mixers: log-determinants of layers add up.

    Notes
    -----
    A layer's is ``E log |alpha + beta lambda| / n`` over the eigenvalues lambda of its branch, by the matrix
    determinant lemma, with ``alpha = det M`` and ``beta = p^T adj(M) q``. Where M has an inverse alpha leaves the
    logarithm, so that no determinant under- or overflows; where its smallest singular value is round-off of the largest
    alpha is zero, and beta the determinant of M bordered by p and q, which needs no inverse.
    """
    M, n = model.mixers, model.streams
    if model.read is None or model.write is None:
        return _noisy_log_det(M, model.energy).sum()
    singular = _is_singular(M)
    regular = torch.where(singular[:, None, None], torch.eye(n, dtype=M.dtype), M)
    through = (model.read * torch.linalg.solve(regular, model.write)).sum(-1)
    outside = torch.linalg.slogdet(regular)[1]
    alpha, beta = torch.ones_like(through), through
    if singular.any():
        bordered, lost = _bordered_log_det(M, model.read, model.write)
        outside = torch.where(singular, bordered, outside)
        alpha = torch.where(singular, 0.0, alpha)
        beta = torch.where(singular, torch.where(lost, 0.0, 1.0), beta)
    return (outside + model.branch.mean_log(alpha, beta, model.energy)).sum() / n


def _is_singular(A: Tensor) -> Tensor:
    """Whether the smallest singular value is no more than round-off of the largest."""
    values = torch.linalg.svdvals(A.detach())
    return values[..., -1] <= A.shape[-1] * torch.finfo(A.dtype).eps * values[..., 0]


def _bordered_log_det(M: Tensor, read: Tensor, write: Tensor) -> tuple[Tensor, Tensor]:
    """``log |p^T adj(M) q|`` (L,), 0 where that is zero; and whether it is."""
    n = M.shape[-1]
    # In units of each, so that one of them cannot hide the others.
    sizes = [torch.linalg.matrix_norm(M.detach(), 2), read.detach().norm(dim=-1), write.detach().norm(dim=-1)]
    size, reads, writes = (torch.where(value > 0, value, 1) for value in sizes)
    rows = torch.cat([M / size[:, None, None], (read / reads[:, None]).unsqueeze(-2)], -2)
    column = torch.nn.functional.pad(write / writes[:, None], (0, 1)).unsqueeze(-1)
    bordered = torch.cat([rows, column], -1)
    lost = _is_singular(bordered)
    safe = torch.where(lost[:, None, None], torch.eye(n + 1, dtype=M.dtype), bordered)
    value = torch.linalg.slogdet(safe)[1] + (n - 1) * size.log() + reads.log() + writes.log()
    return torch.where(lost, 0.0, value), lost


def _noisy_log_det(M: Tensor, energy: Tensor) -> Tensor:
    """``E log |det|`` per direction of M plus Gaussian noise: regularised by the x that the noise itself provides."""
    squares = torch.linalg.svdvals(M).square()
    with torch.no_grad():
        # x >= 0 solves (v / n) sum 1 / (sigma^2 + x) = 1 where the noise is strong enough to reach zero.
        low, high = torch.zeros_like(energy), energy.clone()
        for _ in range(100):
            x = (low + high) / 2
            above = energy * (1 / (squares + x.unsqueeze(-1))).mean(-1) > 1
            low, high = torch.where(above, x, low), torch.where(above, high, x)
        x = high
        x = torch.where(energy * (1 / squares).mean(-1) > 1, x, 0)
    # Stationary in x, so that its own derivative does not matter.
    tail = torch.where(energy > 0, x / torch.where(energy > 0, energy, 1), 0)
    return 0.5 * ((squares + x.unsqueeze(-1)).log().mean(-1) - tail)


def second_and_fourth_moment(model: Model) -> tuple[Tensor, Tensor]:
    """``E[s^2]``, exact at every width for Gaussian weights, and ``E[s^4]`` as the width grows; O(L n^3).

    Notes
    -----
    ``R = E[J J^T]`` per channel runs forward; the quadratic form ``c -> E[J J^T c J J^T]`` needs only the matrices
    ``b_l`` that I becomes when pulled back from the output, so it runs backward once.
    """
    M, n = model.mixers, model.streams
    eye = torch.eye(n, dtype=M.dtype)
    carried, added = [], []
    R = eye
    for l in range(model.layers):
        P = M[l] @ R @ M[l].mT
        E = _forward(model, l, R)
        carried.append(P)
        added.append(E)
        R = P + E
    first = R.trace() / n
    kappa = model.branch.fourth_cumulant if model.read is not None else 0.0
    b, second = eye, M.new_zeros(())
    for l in reversed(range(model.layers)):
        P, E = carried[l], added[l]
        total = P + E
        term = total @ b @ total - P @ b @ P + kappa * E @ b @ E
        second = second + (b * term).sum()
        b = M[l].mT @ b @ M[l] + _backward(model, l, b)
    return first, (second + b.square().sum()) / n


def _forward(model: Model, l: int, R: Tensor) -> Tensor:
    if model.read is None or model.write is None:
        return model.energy[l] * R.trace() / model.streams * torch.eye(model.streams, dtype=R.dtype)
    p, q = model.read[l], model.write[l]
    return model.energy[l] * (p @ R @ p) * torch.outer(q, q)


def _backward(model: Model, l: int, b: Tensor) -> Tensor:
    if model.read is None or model.write is None:
        return _forward(model, l, b)
    p, q = model.read[l], model.write[l]
    return model.energy[l] * (q @ b @ q) * torch.outer(p, p)


@on_host
def isometry_gap(
    mixers: Any, read: Any = None, write: Any = None, energy: Any = 1.0, branch: str | Branch = "gaussian"
) -> Tensor:
    """``log E[s^2] - 2 E[log s]``: how far a product of layers is from keeping all lengths, as a loss.

    Parameters
    ----------
    mixers : Tensor, shape (L, n, n)
        Skip matrices, from the first layer to the last.
    read, write : Tensor, shape (L, n) or (n,)
        Weights of the branch's input and output.
    energy : Tensor, shape (L,) or ()
        Branch energies ``||X||_F^2 / C``.
    branch : {"gaussian", "haar", "relu", "isotropic"} or Branch
        Law of the branches.

    Returns
    -------
    Tensor, shape ()
        At least zero, and zero only if all singular values are equal. Infinite where s = 0 has mass.

    Notes
    -----
    Both terms are closed forms: O(L n^3), differentiable in all tensors, nothing is solved.

    Examples
    --------
    >>> import torch
    >>> from jpmhc import spectrum
    >>> gates = dict(read=torch.full((4,), 0.25), write=torch.ones(4), energy=0.01)
    >>> rotations = torch.linalg.qr(torch.randn(50, 4, 4, generator=torch.Generator().manual_seed(0)))[0]
    >>> averaging = 0.9 * torch.eye(4).expand(50, 4, 4) + 0.025
    >>> print(f"{spectrum.isometry_gap(rotations, **gates):.2f} {spectrum.isometry_gap(averaging, **gates):.2f}")
    0.13 7.01
    """
    model = _in_units(make_model(mixers, read, write, energy, branch))
    return gap(second_and_fourth_moment(model)[0], mean_log(model))


def gap(second: Tensor, mean_log: Tensor) -> Tensor:
    """``log E[s^2] - 2 E[log s]`` from the two; infinite where both are logarithms of zero."""
    return torch.where(second > 0, torch.where(second > 0, second, 1).log() - 2 * mean_log, math.inf)


def _in_units(model: Model) -> Model:
    """Return the model with every layer divided by its size, which changes no gap and keeps the moment finite."""
    size = (model.mixers.detach().square().sum((-2, -1)) / model.streams + model.load.detach()).sqrt()
    # A power of two, which rounds nothing: small singular values of a mixer would not survive it.
    size = torch.where(size > 0, size, 1).log2().round().exp2()
    return replace(model, mixers=model.mixers / size[:, None, None], energy=model.energy / size.square())


def scalar_condition(load: float) -> float:
    """Condition number of the scalar law: ``e^r (r + c) / (r - c)`` with ``r = sqrt(c^2 + 2 c)``."""
    if not load >= 0:
        raise ValueError(f"load: expected a number >= 0, got {load}")
    if load == 0:
        return 1.0
    r = math.sqrt(load * load + 2 * load)
    # (r + c) / (r - c) = (r + c)^2 / (2 c), without cancellation at large c.
    return math.exp(r) * (r + load) ** 2 / (2 * load) if r < 700 else math.inf
