"""Learned ends of the streams: an embedding that tells copies apart, and a head that reads the result."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from jpmhc.kernels.crossing import Reading, cross
from jpmhc.kernels.precision import full_precision
from jpmhc.layers.arguments import check_number, check_size
from jpmhc.layers.gates import make_gate
from jpmhc.layers.label import Labelled
from jpmhc.layers.projection import NORMS, project
from jpmhc.layers.streams import expand_streams


class StreamEmbedding(nn.Module):
    """Copy every vector into n streams and add a learned vector to each, so that copies differ from the start.

    The vectors start at random with mean zero over the streams. Between uniform reads (``gate="uniform"``), mixers
    whose rows and columns sum to one and the mean at the end the network therefore starts as the plain residual one;
    other gates weigh streams unevenly, and then it starts within the size of the embedding of it.

    Parameters
    ----------
    dim : int
        Width d of one stream.
    streams : int
        Number of streams n.
    std : float
        Size of the vectors' entries at the start.
    device, dtype
        Of the parameter.

    Attributes
    ----------
    embedding : Parameter, shape (n, d)

    Examples
    --------
    >>> import torch
    >>> from jpmhc import layers
    >>> x = torch.randn(2, 3, 8)
    >>> streams = layers.StreamEmbedding(8, 4)(x)
    >>> streams.shape, torch.allclose(layers.reduce_streams(streams), x, atol=1e-6)
    (torch.Size([2, 3, 4, 8]), True)
    """

    def __init__(
        self,
        dim: int,
        streams: int,
        *,
        std: float = 0.02,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.dim, self.streams = check_size("dim", dim), check_size("streams", streams)
        self.std = check_number("std", std, least=0.0)
        self.embedding = nn.Parameter(torch.empty(streams, dim, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the embedding anew."""
        with torch.no_grad():
            nn.init.normal_(self.embedding, std=self.std)
            self.embedding.sub_(self.embedding.mean(0))

    def forward(self, x: Tensor) -> Tensor:
        """Make streams (..., n, d) of vectors (..., d), in the dtype of x.

        Raises
        ------
        ValueError
            If x does not end in d.
        """
        if x.shape[-1:] != (self.dim,):
            raise ValueError(f"x: expected shape (..., {self.dim}), got {tuple(x.shape)}")
        return (expand_streams(x, self.streams) + self.embedding.to(x.dtype)).contiguous()

    def extra_repr(self) -> str:
        """Show the sizes."""
        return f"{self.dim}, {self.streams}"


class StreamHead(Labelled):
    """Reduce n streams to ``sum_i pre_i x_i`` with weights that depend on the token; at the start their mean.

    The head of DeepSeek-V4 and HY-V4 is this one with ``gate="sigmoid"`` (and a start of its own).

    Parameters
    ----------
    dim : int
        Width d of one stream.
    streams : int
        Number of streams n.
    gate : str
        ``"softmax"``, ``"sigmoid"`` or ``"tanh"``, as in :class:`~jpmhc.layers.HyperConnection`.
    norm : str or None
        Norm of the flattened streams before the projection.
    eps : float
        Added to the mean square under the root of the norm.
    device, dtype
        Of the parameters.

    Attributes
    ----------
    static : Parameter, shape (n,)
    projection : Parameter, shape (n, n d)
        Zero at the start.
    scale : Parameter, shape (1,)
        0.01 at the start.

    Examples
    --------
    >>> import torch
    >>> from jpmhc import layers
    >>> x = torch.randn(2, 3, 4, 8)
    >>> torch.allclose(layers.StreamHead(8, 4)(x), layers.reduce_streams(x), atol=1e-6)
    True
    """

    def __init__(
        self,
        dim: int,
        streams: int,
        *,
        gate: str = "softmax",
        norm: str | None = "rms",
        eps: float = 1e-6,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.dim, self.streams = check_size("dim", dim), check_size("streams", streams)
        self.eps = check_number("eps", eps, least=0.0)
        if norm not in NORMS:
            raise ValueError(f"norm: expected one of {NORMS}, got {norm!r}")
        if gate == "uniform":
            raise ValueError("gate: a uniform head learns nothing, reduce_streams is it")
        self.norm = norm
        self.gate = make_gate(gate, streams, None).to(device=device)
        self.static = nn.Parameter(torch.empty(streams, device=device, dtype=dtype))
        self.projection = nn.Parameter(torch.empty(streams, streams * dim, device=device, dtype=dtype))
        self.scale = nn.Parameter(torch.empty(1, device=device, dtype=dtype))
        self.set_label(f"StreamHead({self.gate!r}, norm={norm!r})")
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Return to the mean of the streams."""
        with torch.no_grad():
            self.static.zero_()
            self.projection.zero_()
            self.scale.fill_(0.01)

    def forward(self, x: Tensor) -> Tensor:
        """Reduce streams (..., n, d) to vectors (..., d), in the dtype of x.

        Raises
        ------
        ValueError
            If x does not end in (n, d).
        """
        if x.shape[-2:] != (self.streams, self.dim):
            raise ValueError(f"x: expected shape (..., {self.streams}, {self.dim}), got {tuple(x.shape)}")
        dtype = torch.promote_types(torch.promote_types(self.static.dtype, x.dtype), torch.float32)
        with full_precision(x.device):
            z = project(x.to(dtype), self.projection.to(dtype), self.norm, self.eps)
            raw = self.static.to(dtype) + self.scale.to(dtype) * self.gate.squash(z)
            pre, _ = self.gate(raw, raw)
            return cross(x, None, Reading(pre)).u  # type: ignore[return-value]

    def extra_repr(self) -> str:
        """Show the sizes."""
        return f"{self.dim}, {self.streams}, norm={self.norm!r}"
