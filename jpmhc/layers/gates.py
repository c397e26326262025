"""Gates: the map from raw numbers to the weights that read from the streams and write to them."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Gate(nn.Module):
    """Base class of a gate: ``raw_read, raw_write -> pre, post``, each of shape (..., n).

    At raw = 0 the read weights sum to one and every write weight is one, so that equal streams stay equal and the
    network starts as the plain residual one.

    Parameters
    ----------
    streams : int
        Number of streams n.
    layer_index : int
        Place of the layer in the network; the read favours stream ``layer_index mod n``.
    """

    def __init__(self, streams: int, layer_index: int) -> None:
        super().__init__()
        self.streams = streams
        self.favourite = layer_index % streams

    def forward(self, raw_read: Tensor, raw_write: Tensor) -> tuple[Tensor, Tensor]:
        """Map raw numbers, each (..., n), to read and write weights, each (..., n)."""
        raise NotImplementedError


class SoftmaxGate(Gate):
    """Read ``softmax(raw + log p0)``, write ``n softmax(raw)``: JPmHC's gates (arXiv 2602.18308, eq. 36-42), reduced.

    JPmHC's n x n read matrix acts through its column means, its write matrix through its row sums; these n-vectors
    are those. ``p0 = softmax(2 e_k)`` with ``k = layer_index mod n``: a uniform read would leave all streams equal for
    ever, and no mixer would ever see a gradient.

    Examples
    --------
    >>> import torch
    >>> pre, post = SoftmaxGate(2, layer_index=1)(torch.zeros(2), torch.zeros(2))
    >>> [round(p, 4) for p in pre.tolist()], post.tolist()
    ([0.1192, 0.8808], [1.0, 1.0])
    """

    preference: Tensor

    def __init__(self, streams: int, layer_index: int) -> None:
        super().__init__(streams, layer_index)
        preference = torch.zeros(streams)
        preference[self.favourite] = 2.0
        self.register_buffer("preference", preference, persistent=False)

    def forward(self, raw_read: Tensor, raw_write: Tensor) -> tuple[Tensor, Tensor]:
        """Map raw numbers, each (..., n), to read weights that sum to one and write weights that sum to n."""
        return (raw_read + self.preference).softmax(-1), self.streams * raw_write.softmax(-1)


_GATES: dict[str, type[Gate]] = {"softmax": SoftmaxGate}


def make_gate(gate: str, streams: int, layer_index: int) -> Gate:
    """Return the gate of that name.

    Raises
    ------
    ValueError
        For an unknown name.
    """
    if gate not in _GATES:
        raise ValueError(f"gate: unknown name {gate!r}, expected one of {', '.join(_GATES)}")
    return _GATES[gate](streams, layer_index)
