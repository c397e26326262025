"""Gates: the map from raw numbers to the weights that read from the streams and write to them."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from jpmhc.layers.constants import ConstantModule
from jpmhc.layers.hooks import watched


class Gate(ConstantModule):
    """Base class of a gate: ``raw_read, raw_write -> pre, post``, each of shape (..., n).

    At raw = 0 the read weights sum to one and every write weight is one, so that equal streams stay equal and the
    network starts as the plain residual one. The read is uneven there: with a uniform one all streams would stay
    equal for ever, and no mixer would ever see a gradient.

    With ``rows = reads * fractions > 1`` the read weights are (..., rows, N) for the N = n * fractions pieces of the
    streams, row ``r * fractions + f`` making fraction f of read r, and the write weights (..., N).

    Parameters
    ----------
    streams : int
        Number of streams n.
    layer_index : int or None
        Place of the layer in the network; the read favours stream ``k = layer_index mod n``. None for an even start,
        1/n of each, which heads at the end of a network take.
    reads : int
        Inputs of the branch, each with weights of its own.
    fractions : int
        Parts that a stream is cut into.

    Attributes
    ----------
    n_read, n_write : int
        Raw numbers of the read and of the write.
    """

    preference: Tensor
    # Whether a fraction of a read may weigh other fractions of the streams.
    dense = False

    def __init__(self, streams: int, layer_index: int | None, reads: int = 1, fractions: int = 1) -> None:
        super().__init__()
        self.streams, self.reads, self.fractions = streams, reads, fractions
        self.favourite = None if layer_index is None else layer_index % streams
        self.n_write = streams * fractions
        self.n_read = reads * fractions * (self.n_write if self.dense else streams)
        self.register_constant("preference", partial(self.prefer, streams, self.favourite, fractions))

    @staticmethod
    def prefer(streams: int, favourite: int | None, fractions: int) -> Tensor:
        """Return what is added to the raw read weights, float64, broadcast over reads and fractions."""
        raise NotImplementedError

    def forward(self, raw_read: Tensor, raw_write: Tensor) -> tuple[Tensor, Tensor]:
        """Map raw numbers (..., n_read) and (..., n_write) to read and write weights, each (..., n)."""
        raise NotImplementedError

    @property
    def weighed(self) -> int:
        """Weights of a read, or of a fraction of one, that may differ from zero."""
        return self.streams * (self.fractions if self.dense else 1)

    def squash(self, dynamic: Tensor) -> Tensor:
        """Bound the token-dependent numbers before they are scaled and added; does nothing here."""
        return dynamic

    def extra_repr(self) -> str:
        """Show the number of streams, the one that the read starts towards, and further reads and fractions."""
        more = "".join(f", {name}={getattr(self, name)}" for name in ("reads", "fractions") if getattr(self, name) > 1)
        return f"{self.streams}, favourite={self.favourite}{more}"

    def _preference(self, raw: Tensor) -> Tensor:
        return self.constant("preference", raw.device).to(raw.dtype)

    def _rows(self, raw: Tensor) -> Tensor:
        """Give every fraction of every read a row of its own."""
        rows = self.reads * self.fractions
        return raw if rows == 1 else raw.unflatten(-1, (rows, -1))

    def _spread(self, pre: Tensor) -> Tensor:
        """Spread weights of streams over their pieces: fraction f of a read takes fraction f of the streams alone."""
        if self.fractions == 1:
            return pre
        own = torch.eye(self.fractions, dtype=pre.dtype, device=pre.device).unsqueeze(-2)
        pieces = pre.unflatten(-2, (self.reads, self.fractions)).unsqueeze(-1) * own
        return pieces.flatten(-2).flatten(-3, -2)


def one_hot(streams: int, favourite: int | None) -> Tensor:
    """Return ``e_k``, or the even weights 1/n where there is no favourite, float64."""
    if favourite is None:
        return torch.full((streams,), 1 / streams, dtype=torch.float64)
    return torch.eye(streams, dtype=torch.float64)[favourite]


def start_of_the_read(streams: int, favourite: int | None) -> Tensor:
    """Return ``p0 = softmax(2 e_k)``, float64: positive, of sum one, uneven if there is a favourite k."""
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
    def prefer(streams: int, favourite: int | None, fractions: int) -> Tensor:
        """``log p0``."""
        return start_of_the_read(streams, favourite).log()

    def forward(self, raw_read: Tensor, raw_write: Tensor) -> tuple[Tensor, Tensor]:
        """Map raw numbers, each (..., n), to read weights that sum to one and write weights that sum to n."""
        pre = (self._rows(raw_read) + self._preference(raw_read)).softmax(-1)
        return self._spread(pre), self.n_write * raw_write.softmax(-1)


class PublishedSoftmaxGate(SoftmaxGate):
    """JPmHC's gates as printed (arXiv 2602.18308, eq. 36-42), from two n x n matrices of raw numbers.

    Read ``mean over rows of softmax(R + log p0)`` with the softmax along each row, write ``row sums of softmax(S)``
    with the softmax along each column. Equal rows of R and equal columns of S make it :class:`SoftmaxGate`; a mean of
    n different softmaxes goes beyond what one softmax of the token's projection can be.
    """

    def __init__(self, streams: int, layer_index: int | None) -> None:
        super().__init__(streams, layer_index)
        self.n_read = self.n_write = streams * streams

    def forward(self, raw_read: Tensor, raw_write: Tensor) -> tuple[Tensor, Tensor]:
        """Map raw numbers, each (..., n^2), row-major, to read weights of sum one and write weights of sum n."""
        square = (self.streams, self.streams)
        rows = (raw_read.unflatten(-1, square) + self._preference(raw_read)).softmax(-1)
        return rows.mean(-2), raw_write.unflatten(-1, square).softmax(-2).sum(-1)


class SigmoidGate(Gate):
    """Read ``sigmoid(raw + logit p0)``, write ``2 sigmoid(raw)``: mHC's gates (arXiv 2512.24880).

    Weights are positive and independent of one another; a single stream is read with weight 1.
    """

    @staticmethod
    def prefer(streams: int, favourite: int | None, fractions: int) -> Tensor:
        """``logit p0``, infinite for a single stream."""
        return torch.logit(start_of_the_read(streams, favourite))

    def forward(self, raw_read: Tensor, raw_write: Tensor) -> tuple[Tensor, Tensor]:
        """Map raw numbers, each (..., n), to read weights in (0, 1) and write weights in (0, 2)."""
        pre = torch.sigmoid(self._rows(raw_read) + self._preference(raw_read))
        return self._spread(pre), 2 * torch.sigmoid(raw_write)


class TanhGate(Gate):
    """Read ``e_k + raw``, write ``1 + raw``, the dynamic part bounded by tanh: HC's gates (arXiv 2409.19606).

    A fraction of a read starts at the same fraction of stream k and may come to weigh others, as in Frac-Connections
    (arXiv 2503.14125).
    """

    dense = True

    @staticmethod
    def prefer(streams: int, favourite: int | None, fractions: int) -> Tensor:
        """``e_k``, for every fraction of the read its own piece of stream k."""
        start = one_hot(streams, favourite)
        if fractions == 1:
            return start
        return torch.kron(start, torch.eye(fractions, dtype=torch.float64))

    def forward(self, raw_read: Tensor, raw_write: Tensor) -> tuple[Tensor, Tensor]:
        """Shift raw numbers, each (..., n), to read and write weights of any sign."""
        raw = self._rows(raw_read)
        if self.fractions > 1:
            raw = raw.unflatten(-2, (self.reads, self.fractions))
            return (raw + self._preference(raw)).flatten(-3, -2), 1 + raw_write
        return raw + self._preference(raw), 1 + raw_write

    def squash(self, dynamic: Tensor) -> Tensor:
        """``tanh``, as HC bounds its dynamic part."""
        return torch.tanh(dynamic)


class UniformGate(Gate):
    """Read ``1/n``, write 1, without raw numbers: the mixer alone does the work.

    Nothing but the mixer then tells one stream from another, so that streams which start equal stay equal for ever:
    it needs streams that differ, from :class:`~jpmhc.layers.StreamEmbedding`.
    """

    def __init__(self, streams: int, layer_index: int | None, reads: int = 1, fractions: int = 1) -> None:
        super().__init__(streams, None, reads, fractions)
        self.n_read = self.n_write = 0

    @staticmethod
    def prefer(streams: int, favourite: int | None, fractions: int) -> Tensor:
        """Nothing."""
        return torch.zeros(0, dtype=torch.float64)

    def forward(self, raw_read: Tensor, raw_write: Tensor) -> tuple[Tensor, Tensor]:
        """Return 1/n and 1 for every batch entry of raw numbers (..., 0)."""
        batch, rows = raw_read.shape[:-1], self.reads * self.fractions
        pre = raw_read.new_full((*batch, *([rows] if rows > 1 else []), self.streams), 1 / self.streams)
        return self._spread(pre), raw_read.new_ones(*batch, self.streams * self.fractions)


# The maps that kernels make too, where they are one read of whole streams and nobody has put others in their place.
_IN_KERNELS = {
    (SoftmaxGate.forward, Gate.squash): "softmax",
    (SigmoidGate.forward, Gate.squash): "sigmoid",
    (TanhGate.forward, TanhGate.squash): "tanh",
}


def name_in_kernels(gate: nn.Module) -> str | None:
    """Return the name of a gate's maps in `jpmhc.kernels` if they are known there and nobody wants to see it called.

    The functions decide, not the class: a wrapper, a subclass or an object of one's own may have any of its own.
    """
    if not isinstance(gate, Gate) or watched(gate) or {"forward", "squash"} & vars(gate).keys():
        return None
    kind = type(gate)
    return _IN_KERNELS.get((kind.forward, kind.squash)) if kind.__call__ is nn.Module.__call__ else None


_GATES: dict[str, type[Gate]] = {
    "softmax": SoftmaxGate,
    "sigmoid": SigmoidGate,
    "tanh": TanhGate,
    "uniform": UniformGate,
}


def make_gate(
    gate: str,
    streams: int,
    layer_index: int | None,
    projection: str = "reduced",
    *,
    reads: int = 1,
    fractions: int = 1,
) -> Gate:
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
        if reads > 1 or fractions > 1:
            raise ValueError(f"projection: published has one read of whole streams, got {reads=}, {fractions=}")
        return PublishedSoftmaxGate(streams, layer_index)
    return _GATES[gate](streams, layer_index, reads, fractions)
