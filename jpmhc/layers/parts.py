"""The passes over streams for branches with several inputs, and for streams that are cut into fractions."""

from __future__ import annotations

import torch
from torch import Tensor


def read_rows(x: Tensor, pre: Tensor) -> Tensor:
    """Return ``u_r = sum_i pre_ri x_i`` for every row r of weights.

    Parameters
    ----------
    x : Tensor, shape (..., n, d)
        Streams.
    pre : Tensor, shape (..., r, n) or (r, n)
        Read weights.

    Returns
    -------
    Tensor, shape (..., r, d)
        In the wider dtype of the two.
    """
    dtype = torch.promote_types(x.dtype, pre.dtype)
    return pre.to(dtype) @ x.to(dtype)


def pull_rows(x: Tensor, pre: Tensor, _rows: Tensor | None, cotangent: Tensor) -> tuple[Tensor, Tensor]:
    """Pull a gradient of :func:`read_rows` back to the streams, in the dtype of the weights, and to the weights."""
    g = cotangent.to(pre.dtype)
    return pre.mT @ g, (g @ x.to(pre.dtype).mT).sum_to_size(pre.shape)


def write_fractions(x: Tensor, matrix: Tensor | None, post: Tensor, y: Tensor, fractions: int) -> Tensor:
    """Return the pieces of the streams after the branch: piece f of every stream gets fraction f of the result.

    Parameters
    ----------
    x : Tensor, shape (..., n m, d / m)
        Pieces of the streams, m of each.
    matrix : Tensor, shape (..., n m, n m) or (n m, n m), or None
        Mixer; None for the identity.
    post : Tensor, shape (..., n m) or (n m,)
        Write weights.
    y : Tensor, shape (..., d)
        Result of the branch.
    fractions : int
        m.

    Returns
    -------
    Tensor, shape (..., n m, d / m)
        In the widest dtype of the four.
    """
    pieces = y.unflatten(-1, (fractions, -1)).unsqueeze(-3)
    written = (post.unflatten(-1, (-1, fractions)).unsqueeze(-1) * pieces).flatten(-3, -2)
    return written + (x if matrix is None else read_rows(x, matrix))
