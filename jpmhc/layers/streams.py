"""Entry to the streams and exit from them: one vector becomes n copies, n streams become their mean."""

import torch
from torch import Tensor

from jpmhc.layers.arguments import check_size


def expand_streams(x: Tensor, streams: int) -> Tensor:
    """Copy every vector into n streams.

    Parameters
    ----------
    x : Tensor, shape (..., d)
        Vectors, one a token.
    streams : int
        Number of streams n, at least 1.

    Returns
    -------
    Tensor, shape (..., n, d)
        n equal streams; contiguous, so that it costs n copies.

    Raises
    ------
    ValueError
        If ``streams`` is below 1 or x has no dimension.

    Examples
    --------
    >>> import torch
    >>> expand_streams(torch.zeros(2, 3, 8), 4).shape
    torch.Size([2, 3, 4, 8])
    """
    check_size("streams", streams)
    if x.ndim == 0:
        raise ValueError("x: expected shape (..., d), got a tensor without dimensions")
    return x.unsqueeze(-2).expand(*x.shape[:-1], streams, x.shape[-1]).contiguous()


def reduce_streams(x: Tensor, reduction: str = "mean") -> Tensor:
    """Return the mean of the streams, or their sum.

    Parameters
    ----------
    x : Tensor, shape (..., n, d)
        Streams, n at least 1.
    reduction : str
        ``"mean"``: copies that were never mixed come back unchanged. ``"sum"``: n times that, as HC and mHC do.
        :class:`~jpmhc.layers.StreamHead` is a reduction that learns.

    Returns
    -------
    Tensor, shape (..., d)

    Raises
    ------
    ValueError
        If x has fewer than two dimensions or no stream, or for another reduction.

    Examples
    --------
    >>> import torch
    >>> reduce_streams(expand_streams(torch.ones(8), 4)).shape
    torch.Size([8])
    """
    if x.ndim < 2 or x.shape[-2] == 0:
        raise ValueError(f"x: expected shape (..., n, d) with n >= 1, got {tuple(x.shape)}")
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction: expected 'mean' or 'sum', got {reduction!r}; StreamHead is a learned one")
    return torch.mean(x, -2) if reduction == "mean" else torch.sum(x, -2)
