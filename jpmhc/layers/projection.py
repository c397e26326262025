"""The projection of a token's own streams to the raw numbers of its coefficients."""

from __future__ import annotations

import torch
from torch import Tensor, nn

NORMS = ("rms", "layer", "streams", "streams-layer", None)


def normed(x: Tensor, norm: str | None, eps: float) -> Tensor:
    """Return the streams, normed as the projection wants them.

    Parameters
    ----------
    x : Tensor, shape (..., n, d)
        Streams.
    norm : str or None
        ``"rms"`` and ``"layer"`` norm the n d numbers together, ``"streams"`` and ``"streams-layer"`` every stream by
        itself.
    eps : float
        Added to the mean square under the root.

    Returns
    -------
    Tensor, shape (..., n, d)
    """
    if norm is None:
        return x
    flat = x if norm.startswith("streams") else x.flatten(-2)
    if norm in ("layer", "streams-layer"):
        # Taking the mean out after the projection would cancel where it is large beside the spread.
        return nn.functional.layer_norm(flat, flat.shape[-1:], eps=eps).view(x.shape)
    return (flat * torch.rsqrt(flat.square().mean(-1, keepdim=True) + eps)).view(x.shape)


def project(x: Tensor, weight: Tensor, norm: str | None, eps: float, shared: bool = False) -> Tensor:
    """Return ``weight norm(vec x)``: linear in the flattened, normed streams of one token.

    Parameters
    ----------
    x : Tensor, shape (..., n, d)
        Streams, raised to the dtype of ``weight``.
    weight : Tensor, shape (m, n d), or (m, d) if shared
        Projection.
    norm, eps
        As for :func:`normed`.
    shared : bool
        Whether every stream is projected by itself, all by one map.

    Returns
    -------
    Tensor, shape (..., m), or (..., n, m) if shared
    """
    x = x.to(weight.dtype)
    if norm == "rms" and not shared:
        # The norm is one number a token and the projection linear: dividing afterwards saves a pass over the streams.
        flat = x.flatten(-2)
        return nn.functional.linear(flat, weight) * torch.rsqrt(flat.square().mean(-1, keepdim=True) + eps)
    x = normed(x, norm, eps)
    return nn.functional.linear(x if shared else x.flatten(-2), weight)


def pull_projection(
    x: Tensor, weight: Tensor, z: Tensor | None, cotangent: Tensor, norm: str | None, eps: float, shared: bool = False
) -> tuple[Tensor, Tensor]:
    """Pull a gradient of ``z``, from :func:`project`, back to the streams, in the weight's dtype, and to the weight.

    The normed streams are made again rather than kept.
    """
    wide, each = x.detach().to(weight.dtype), norm in ("streams", "streams-layer")
    flat = wide if each else wide.flatten(-2)
    if norm in ("layer", "streams-layer"):
        fresh, mean, inverse = torch.native_layer_norm(flat, flat.shape[-1:], None, None, eps)
        grad_weight = _pull_weight(cotangent, fresh, weight)
        del fresh
        grad = _pull_linear(cotangent, weight, flat)
        backward = torch.ops.aten.native_layer_norm_backward
        grad = backward(grad, flat, flat.shape[-1:], mean, inverse, None, None, [True, False, False])[0]
        return grad.view(x.shape), grad_weight
    if norm is None:
        return _pull_linear(cotangent, weight, wide), _pull_weight(cotangent, wide, weight)
    size = flat.shape[-1]
    inverse = torch.rsqrt(torch.linalg.vector_norm(flat, dim=-1, keepdim=True).square() / size + eps)
    if each and not shared:
        flat = flat * inverse
        grad = _pull_linear(cotangent, weight, flat)
        share = torch.linalg.vecdot(grad, flat).unsqueeze(-1) / size
        grad = grad.addcmul_(flat, share, value=-1).mul_(inverse)
    else:
        # One norm belongs to a row of the cotangent, and what it does to the streams is known from z.
        assert z is not None
        share = (cotangent * z).sum(-1, keepdim=True)
        if shared and not each:
            share = share.sum(-2)
        cotangent = cotangent * (inverse.unsqueeze(-1) if shared and not each else inverse)
        grad = _pull_linear(cotangent, weight, flat)
        grad.addcmul_(flat, share * inverse.square() / size, value=-1)
    return grad.view(x.shape), _pull_weight(cotangent, flat, weight)


def _pull_linear(cotangent: Tensor, weight: Tensor, flat: Tensor) -> Tensor:
    return (cotangent.reshape(-1, weight.shape[0]) @ weight).view(flat.shape)


def _pull_weight(cotangent: Tensor, flat: Tensor, weight: Tensor) -> Tensor:
    return cotangent.reshape(-1, weight.shape[0]).mT @ flat.reshape(-1, weight.shape[1])


def by_streams(z: Tensor, sizes: list[int]) -> Tensor:
    """Order the numbers that each stream makes of itself, by one map that all streams share, as HC does.

    Parameters
    ----------
    z : Tensor, shape (..., n, r + 1 + n)
        For stream i: its weight in each of the r reads, its write weight, and column i of the mixer.
    sizes : list of int
        Raw numbers of read, write and mixer: r n, n, n^2.

    Returns
    -------
    Tensor, shape (..., sum(sizes))
        In the order read, write, mixer, each row by row.
    """
    n = z.shape[-2]
    parts = z.split([sizes[0] // n, sizes[1] // n, sizes[2] // n], -1)
    return torch.cat([part.mT.flatten(-2) for part in parts], -1)
