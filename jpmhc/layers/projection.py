"""The projection of a token's own streams to the raw numbers of its coefficients."""

from __future__ import annotations

import torch
from torch import Tensor, nn

NORMS = ("rms", "layer", "streams", "streams-layer", None)


def project(x: Tensor, weight: Tensor, norm: str | None, eps: float) -> Tensor:
    """Return ``weight norm(vec x)``: linear in the flattened, normed streams of one token.

    Parameters
    ----------
    x : Tensor, shape (..., n, d)
        Streams, in the dtype of ``weight``.
    weight : Tensor, shape (m, n d)
        Projection.
    norm : str or None
        ``"rms"`` and ``"layer"`` norm the n d numbers together, ``"streams"`` and ``"streams-layer"`` every stream by
        itself.
    eps : float
        Added to the mean square under the root.

    Returns
    -------
    Tensor, shape (..., m)
    """
    flat = x.flatten(-2)
    if norm in ("streams", "streams-layer"):
        return nn.functional.linear(_each(x, norm, eps).flatten(-2), weight)
    if norm == "layer":
        # Taking the mean out after the projection would cancel where it is large beside the spread.
        return nn.functional.linear(nn.functional.layer_norm(flat, flat.shape[-1:], eps=eps), weight)
    z = nn.functional.linear(flat, weight)
    if norm is None:
        return z
    # The norm is one number a token and the projection linear, so dividing afterwards saves a pass over the streams.
    return z * torch.rsqrt(flat.square().mean(-1, keepdim=True) + eps)


def project_shared(x: Tensor, weight: Tensor, norm: str | None, eps: float, sizes: list[int]) -> Tensor:
    """Return raw numbers that each stream makes of itself, by one map that all streams share (HC).

    Parameters
    ----------
    x : Tensor, shape (..., n, d)
        Streams, in the dtype of ``weight``.
    weight : Tensor, shape (r + 1 + n, d)
        For stream i: its weight in each of the r reads, its write weight, and column i of the mixer.
    norm, eps
        As for :func:`project`.
    sizes : list of int
        Raw numbers of read, write and mixer: r n, n, n^2.

    Returns
    -------
    Tensor, shape (..., sum(sizes))
        In the order read, write, mixer, each row by row.
    """
    if norm in ("rms", "layer"):
        flat = x.flatten(-2)
        if norm == "layer":
            x = nn.functional.layer_norm(flat, flat.shape[-1:], eps=eps).view(x.shape)
        else:
            x = x * torch.rsqrt(flat.square().mean(-1, keepdim=True) + eps).unsqueeze(-1)
    elif norm is not None:
        x = _each(x, norm, eps)
    n = x.shape[-2]
    parts = nn.functional.linear(x, weight).split([sizes[0] // n, sizes[1] // n, sizes[2] // n], -1)
    return torch.cat([part.mT.flatten(-2) for part in parts], -1)


def _each(x: Tensor, norm: str | None, eps: float) -> Tensor:
    if norm == "streams":
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
    return nn.functional.layer_norm(x, x.shape[-1:], eps=eps)
