"""Gates: the map from raw numbers to the weights that read from the streams and write to them."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from jpmhc.layers.constants import ConstantModule


class Gate(ConstantModule):
    """Base class of a gate: ``raw_read, raw_write -> pre, post``, each of shape (..., n).

    At raw = 0 the read weights sum to one and every write weight is one, so that equal streams stay equal and the
    network starts as the plain residual one. The read is uneven there: with a uniform one all streams would stay
    equal for ever, and no mixer would ever see a gradient.

    Parameters
    ----------
    streams : int
        Number of streams n.
    layer_index : int
        Place of the layer in the network; the read favours stream ``k = layer_index mod n``.

    Attributes
    ----------
    n_read, n_write : int
        Raw numbers of the read and of the write.
    """

    preference: Tensor

    def __init__(self, streams: int, layer_index: int) -> None:
        super().__init__()
        self.streams = streams
        self.favourite = layer_index % streams
        self.n_read = self.n_write = streams
        self.register_constant("preference", partial(self.prefer, streams, self.favourite))

    @staticmethod
    def prefer(streams: int, favourite: int) -> Tensor:
        """Return what is added to the raw read weights (n,), float64."""
        raise NotImplementedError

    def forward(self, raw_read: Tensor, raw_write: Tensor) -> tuple[Tensor, Tensor]:
        """Map raw numbers (..., n_read) and (..., n_write) to read and write weights, each (..., n)."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        """Show the number of streams and the one that the read starts towards."""
        return f"{self.streams}, favourite={self.favourite}"

    def squash(self, dynamic: Tensor) -> Tensor:
        """Bound the token-dependent numbers before they are scaled and added; does nothing here."""
        return dynamic


def one_hot(streams: int, favourite: int) -> Tensor:
    """Return ``e_k``, float64."""
    return torch.eye(streams, dtype=torch.float64)[favourite]


def start_of_the_read(streams: int, favourite: int) -> Tensor:
    """Return ``p0 = softmax(2 e_k)``, float64: positive, of sum one, uneven."""
    return (2 * one_hot(streams, favourite)).softmax(-1)


class SoftmaxGate(Gate):
    """Read ``softmax(raw + log p0)``, write ``n softmax(raw)``: JPmHC's gates (arXiv 2602.18308, eq. 36-42), reduced.

    JPmHC's n x n read matrix acts through its column means, its write matrix through its row sums; these n-vectors
    are those.

    Examples
    --------
    >>> import torch
    >>> pre, post = SoftmaxGate(2, layer_index=1)(torch.zeros(2), torch.zeros(2))
    >>> [round(p, 4) for p in pre.tolist()], post.tolist()
    ([0.1192, 0.8808], [1.0, 1.0])
    """

    @staticmethod
    def prefer(streams: int, favourite: int) -> Tensor:
        """``log p0``."""
        return start_of_the_read(streams, favourite).log()

    def forward(self, raw_read: Tensor, raw_write: Tensor) -> tuple[Tensor, Tensor]:
        """Map raw numbers, each (..., n), to read weights that sum to one and write weights that sum to n."""
        return (raw_read + self.preference.to(raw_read)).softmax(-1), self.streams * raw_write.softmax(-1)


class PublishedSoftmaxGate(SoftmaxGate):
    """JPmHC's gates as printed (arXiv 2602.18308, eq. 36-42), from two n x n matrices of raw numbers.

    Read ``mean over rows of softmax(R + log p0)`` with the softmax along each row, write ``row sums of softmax(S)``
    with the softmax along each column. Equal rows of R and equal columns of S make it :class:`SoftmaxGate`; a mean of
    n different softmaxes goes beyond what one softmax of the token's projection can be.
    """

    def __init__(self, streams: int, layer_index: int) -> None:
        super().__init__(streams, layer_index)
        self.n_read = self.n_write = streams * streams

    def forward(self, raw_read: Tensor, raw_write: Tensor) -> tuple[Tensor, Tensor]:
        """Map raw numbers, each (..., n^2), row-major, to read weights of sum one and write weights of sum n."""
        square = (self.streams, self.streams)
        rows = (raw_read.unflatten(-1, square) + self.preference.to(raw_read)).softmax(-1)
        return rows.mean(-2), raw_write.unflatten(-1, square).softmax(-2).sum(-1)


class SigmoidGate(Gate):
    """Read ``sigmoid(raw + logit p0)``, write ``2 sigmoid(raw)``: mHC's gates (arXiv 2512.24880).

    Weights are positive and independent of one another; a single stream is read with weight 1.
    """

    @staticmethod
    def prefer(streams: int, favourite: int) -> Tensor:
        """``logit p0``, infinite for a single stream."""
        return torch.logit(start_of_the_read(streams, favourite))

    def forward(self, raw_read: Tensor, raw_write: Tensor) -> tuple[Tensor, Tensor]:
        """Map raw numbers, each (..., n), to read weights in (0, 1) and write weights in (0, 2)."""
        return torch.sigmoid(raw_read + self.preference.to(raw_read)), 2 * torch.sigmoid(raw_write)


class TanhGate(Gate):
    """Read ``e_k + raw``, write ``1 + raw``, the dynamic part bounded by tanh: HC's gates (arXiv 2409.19606)."""

    @staticmethod
    def prefer(streams: int, favourite: int) -> Tensor:
        """``e_k``."""
        return one_hot(streams, favourite)

    def forward(self, raw_read: Tensor, raw_write: Tensor) -> tuple[Tensor, Tensor]:
        """Shift raw numbers, each (..., n), to read and write weights of any sign."""
        return raw_read + self.preference.to(raw_read), 1 + raw_write

    def squash(self, dynamic: Tensor) -> Tensor:
        """``tanh``, as HC bounds its dynamic part."""
        return torch.tanh(dynamic)


_GATES: dict[str, type[Gate]] = {"softmax": SoftmaxGate, "sigmoid": SigmoidGate, "tanh": TanhGate}


def make_gate(gate: str, streams: int, layer_index: int, projection: str = "reduced") -> Gate:
    """Return the gate of that name, reduced or as published.

    Raises
    ------
    ValueError
        For an unknown name, or one without a published n x n form.
    """
    if not isinstance(gate, str) or gate not in _GATES:
        raise ValueError(f"gate: unknown name {gate!r}, expected one of {', '.join(_GATES)}")
    if projection == "published":
        if gate != "softmax":
            raise ValueError(f"gate: only 'softmax' has a form with n x n raw numbers (published), got {gate!r}")
        return PublishedSoftmaxGate(streams, layer_index)
    return _GATES[gate](streams, layer_index)
