"""Whether the features of a block's residual vectors are their last dimension, as streams need them."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from jpmhc.layers.adapters.record import Record

_CHANNELS_FIRST = (_ConvNd, _BatchNorm, nn.GroupNorm)


def features_elsewhere(record: Record, x: Tensor, run: Callable[[Tensor], bool]) -> str | None:
    """Return why the last dimension of residual vectors x holds no features, or None if it does.

    Coefficients are made of the last dimension. Where that is time or the width of an image, a token would see others,
    the future among them.

    Parameters
    ----------
    record : Record
        Of a call of the block with x.
    x : Tensor, shape (..., d)
        Residual vectors.
    run : Callable
        Calls the block with other vectors in place of x and says whether their residual path is the same.
    """
    reader = _reader(record)
    if reader is None and _takes_any_size(x, run):
        reader = f"the block takes another size of the last dimension; it reads at {record.uses()}"
    return reader and f"channels must come last, not before as in vectors of shape {tuple(x.shape)}: {reader}"


def _reader(record: Record) -> str | None:
    for module, _, vector in record.received:
        # Of single vectors (tokens, d) the second dimension is the last.
        if isinstance(module, _CHANNELS_FIRST) and vector.ndim > 2:
            return f"{type(module).__name__} reads them"
    return None


def _takes_any_size(x: Tensor, run: Callable[[Tensor], bool]) -> bool:
    """Try twice the size: weights fix the number of features, that of tokens is free (in whole windows at least)."""
    try:
        return run(x.repeat(*[1] * (x.ndim - 1), 2))
    except Exception:
        return False
