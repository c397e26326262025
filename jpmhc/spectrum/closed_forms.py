"""What is known of a law without solving anything: its mean log and its first two moments."""

from __future__ import annotations

import math
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
    A layer's is ``E log |det M + lambda (det(M + q p^T) - det M)| / n`` over the eigenvalues lambda of its branch, by
    the matrix determinant lemma; no inverse, so that M may be singular.
    """
    M, n = model.mixers, model.streams
    if model.read is None or model.write is None:
        return _noisy_log_det(M, model.energy).sum()
    moved = M + model.write.unsqueeze(-1) * model.read.unsqueeze(-2)
    alpha = torch.linalg.det(M)
    beta = torch.linalg.det(moved) - alpha
    # Round-off of a determinant is in proportion to the product of its rows' lengths.
    floors = [1e-14 * matrix.detach().norm(dim=-1).prod(-1) for matrix in (M, moved)]
    alpha = torch.where(alpha.abs() > floors[0], alpha, 0)
    beta = torch.where(beta.abs() > floors[0] + floors[1], beta, 0)
    return model.branch.mean_log(alpha, beta, model.energy).sum() / n


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
    model = make_model(mixers, read, write, energy, branch)
    return second_and_fourth_moment(model)[0].log() - 2 * mean_log(model)


def scalar_condition(load: float) -> float:
    """Condition number of the scalar law: ``e^r (r + c) / (r - c)`` with ``r = sqrt(c^2 + 2 c)``."""
    if not load >= 0:
        raise ValueError(f"load: expected a number >= 0, got {load}")
    if load == 0:
        return 1.0
    r = math.sqrt(load * load + 2 * load)
    # (r + c) / (r - c) = (r + c)^2 / (2 c), without cancellation at large c.
    return math.exp(r) * (r + load) ** 2 / (2 * load)
