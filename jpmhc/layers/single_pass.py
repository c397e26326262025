"""A chain of hyper-connections in which every branch reads with the weights that the layer before made."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from jpmhc.kernels.crossing import Reading, cross
from jpmhc.layers.hyper_connection import HyperConnection
from jpmhc.layers.outputs import split_first_tensor, with_rests
from jpmhc.layers.stack import connected


class SinglePass(nn.Module):
    """Layers whose read weights are carried to the next one, the single-pass form of DeepSeek-V4.1.

    ::

        u_l = sum_i pre_(l-1),i x_i        the first layer reads stream 0
        x'  = M_l x + post_l F_l(u_l)^T
        result = sum_i pre_L,i x_i         the last layer's weights are the head

    All coefficients of a boundary come from one pass over the streams. The function-preserving start holds: copies
    are read with weights of sum one. :func:`~jpmhc.layers.statistics` shows of every layer the weights that it read
    with, ``pre_(l-1)``; those that the last one makes, the head, are in none of them.

    Parameters
    ----------
    connections : iterable of HyperConnection
        With one read each, of the same number of streams and width. Hooks of branches run, those of the layers
        themselves do not: FSDP2 shards the chain as a whole.

    Raises
    ------
    ValueError
        For no layer, or layers that differ in their streams, wrap no branch, or have several reads or fractions.

    Examples
    --------
    >>> import torch
    >>> from jpmhc import layers
    >>> chain = layers.SinglePass(
    ...     layers.HyperConnection(8, torch.nn.Linear(8, 8), layer_index=i) for i in range(3)
    ... )
    >>> chain(layers.expand_streams(torch.randn(2, 5, 8), 4)).shape
    torch.Size([2, 5, 8])
    """

    def __init__(self, connections: Iterable[HyperConnection]) -> None:
        super().__init__()
        self.connections = connected(connections)
        for layer in self.connections:
            if layer.branch is None:
                raise ValueError("connections: expected layers around a branch, one wraps none")
            if layer.reads > 1 or layer.fractions > 1:  # type: ignore[operator]
                raise ValueError(f"connections: expected one read of whole streams, got {layer.reads=}")
        self.streams: int = self.connections[0].streams  # type: ignore[assignment]

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Run all layers on streams (..., n, d) and return the read (..., d) of the last; arguments go to each branch.

        Where branches return tuples, lists or dicts, the first tensor of each is its result and the rest is returned
        beside the read, as :class:`~jpmhc.layers.HyperStack` does.
        """
        pre = torch.zeros(self.streams, dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)
        pre[0] = 1
        pre = pre.expand(*x.shape[:-2], -1)
        rests = []
        for layer in self.connections:
            u, write, pre = layer.carry(x, pre)  # type: ignore[operator]
            y, rest = split_first_tensor(layer.branch(u, *args, **kwargs))  # type: ignore[operator]
            x = write(y)
            rests.append(rest)
        return with_rests(cross(x, None, Reading(pre)).u, rests)
