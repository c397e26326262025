"""The coefficients of a stack of hyper-connections at their start, or around it."""

from __future__ import annotations

import torch
from torch import Tensor

from jpmhc.host import on_host
from jpmhc.layers import HyperConnection, Mixer
from jpmhc.layers.arguments import check_number, check_size
from jpmhc.spectrum.arguments import as_seed


@on_host
def initial_chain(
    mixer: str | Mixer,
    streams: int,
    depth: int,
    gate: str = "softmax",
    *,
    spread: float = 0.0,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Return mixers, reads and writes of a stack of layers at the start, for :func:`~jpmhc.spectrum.predict`.

    Parameters
    ----------
    mixer : str or Mixer
        A name from :func:`~jpmhc.layers.mixers`, or an instance.
    streams, depth : int
        Number of streams n and of layers L.
    gate : str
        As for :class:`~jpmhc.layers.HyperConnection`.
    spread : float
        Standard deviation of normal numbers added to all raw numbers, as training would; 0 is the start itself.
    seed : int
        Of those numbers.

    Returns
    -------
    dict of Tensor
        ``mixers`` (L, n, n), ``read`` and ``write`` (L, n), float64, without derivatives.

    Raises
    ------
    ValueError
        For unknown names, numbers of streams that a mixer does not have, a negative spread.

    Examples
    --------
    >>> from jpmhc import spectrum
    >>> chain = spectrum.initial_chain("sinkhorn", streams=4, depth=24)
    >>> {name: tuple(value.shape) for name, value in chain.items()}
    {'mixers': (24, 4, 4), 'read': (24, 4), 'write': (24, 4)}
    """
    check_size("depth", depth)
    seed = as_seed(seed)
    check_number("spread", spread, least=0.0)
    generator = torch.Generator().manual_seed(seed)
    found = []
    for index in range(depth):
        # Widths play no part: coefficients without a token are parameters alone.
        layer = HyperConnection(
            1, streams=streams, mixer=mixer, gate=gate, dynamic=False, layer_index=index, dtype=torch.float64
        )
        with torch.no_grad():
            layer.static.add_(spread * torch.randn(layer.static.shape, generator=generator, dtype=torch.float64))
            coefficients = layer.coefficients(torch.zeros(streams, 1, dtype=torch.float64))
            # Without a chart a mixer is a parameter itself.
            found.append([c.detach().double() for c in coefficients])
    read, write, mixers = (torch.stack(parts) for parts in zip(*found, strict=True))
    return {"mixers": mixers, "read": read, "write": write}
