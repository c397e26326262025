"""What an inspection found: numbers for every layer, a table of them, and a plot."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Columns of the printed table, with their heads.
_PRINTED = {
    "residual": "residual",
    "sigma_min": "s min",
    "sigma_max": "s max",
    "product_min": "prod min",
    "product_max": "prod max",
    "forward_gain": "fwd gain",
    "backward_gain": "bwd gain",
    "leak_out": "leak out",
    "leak_in": "leak in",
    "similarity": "similar",
    "effective_streams": "streams",
    "read_entropy": "read",
    "write_entropy": "write",
    "energy": "energy",
    "gradient": "gradient",
}


@dataclass(frozen=True)
class LayerReport:
    """One call of one layer. Averages are over tokens, extremes over tokens too.

    Attributes
    ----------
    index, name, call : int, str, int
        Place in the order of application, name of the layer in the model, number of its application.
    mixer : str
        Class of its chart.
    chain : int
        Products run within a chain: layers of equal number of streams whose tokens correspond.
    residual : float
        Largest distance of a mixer from its set.
    sigma_min, sigma_max : float
        Smallest and largest singular value of any token's mixer.
    product_min, product_max : float
        The same for the running product ``M_l ... M_0`` from the chain's first layer.
    layer_forward_gain, layer_backward_gain : float
        Mean of the largest absolute row sum and of the largest absolute column sum of M ("Amax gain" of mHC,
        arXiv 2512.24880).
    forward_gain, backward_gain : float
        The same of compositions: row sums of ``M_l ... M_0``, how much a signal may have grown on its way to the output
        of this layer; column sums of ``M_(L-1) ... M_l``, how much a gradient may have grown on its way to its input.
    mean_gain : float
        ``1^T M 1 / n``: what becomes of the mean of the streams.
    leak_out, leak_in : float
        ``||(I - J) M 1|| / sqrt n`` and ``||(I - J) M^T 1|| / sqrt n``, J the mean over streams: how much of the mean
        enters the differences of streams, and how much of these the mean.
    similarity : float
        Mean cosine between two streams at the input.
    difference : float
        Share of the streams' energy outside their mean.
    effective_streams : float
        ``(tr G)^2 / ||G||_F^2`` of the streams' Gram matrix at the input: 1 if all are parallel, n if they are
        orthogonal and equally long.
    norm : float
        Root mean square of the streams' entries at the input.
    read_entropy, write_entropy : float
        Of the shares ``|weight| / sum |weight|``, over log n: 1 if all streams are used alike. Of a fraction of a
        read over the logarithm of the number of pieces that it may weigh.
    streams_read, streams_written : float
        ``exp`` of those entropies (not over log n): how many streams are read and written.
    energy : float or None
        ``||X||_F^2 / C`` of the branch's Jacobian; None where the branch is no module.
    gradient : float or None
        Norm of the loss's gradient with respect to the streams at the input; None where nothing flows back.
    parameter_gradient : float or None
        Norm of its gradient with respect to the layer's parameters, branch included, from all its applications.
    singular_values, product_values : tuple of float
        Means over tokens of the ordered singular values, largest first, of M and of the running product.
    """

    index: int
    name: str
    call: int
    mixer: str
    chain: int
    residual: float
    sigma_min: float
    sigma_max: float
    product_min: float
    product_max: float
    layer_forward_gain: float
    layer_backward_gain: float
    forward_gain: float
    backward_gain: float
    mean_gain: float
    leak_out: float
    leak_in: float
    similarity: float
    difference: float
    effective_streams: float
    norm: float
    read_entropy: float
    write_entropy: float
    streams_read: float
    streams_written: float
    energy: float | None
    gradient: float | None
    parameter_gradient: float | None
    singular_values: tuple[float, ...] = field(repr=False)
    product_values: tuple[float, ...] = field(repr=False)


@dataclass(frozen=True)
class Report:
    """Every application of every hyper-connection of a model on one batch, in the order in which they ran.

    Attributes
    ----------
    layers : tuple of LayerReport
        One an application; ``report[i]`` and iteration give them too.
    mixers, reads, writes : tuple of Tensor
        Means over tokens of M (n, n), pre (n,) and post (n,) of each.
    loss : float
        The loss that was differentiated.
    """

    layers: tuple[LayerReport, ...]
    mixers: tuple[Tensor, ...] = field(repr=False)
    reads: tuple[Tensor, ...] = field(repr=False)
    writes: tuple[Tensor, ...] = field(repr=False)
    loss: float = math.nan

    def __len__(self) -> int:
        return len(self.layers)

    def __iter__(self) -> Iterator[LayerReport]:
        return iter(self.layers)

    def __getitem__(self, index: int) -> LayerReport:
        return self.layers[index]

    def table(self) -> list[dict[str, Any]]:
        """Return one flat dict a layer, of numbers and names: ``pandas.DataFrame(report.table())`` is the table."""
        rows = []
        for layer in self.layers:
            row = dataclasses.asdict(layer)
            for name in ("singular_values", "product_values"):
                del row[name]
            rows.append(row)
        return rows

    def chain(self, layers: Sequence[int] | slice = slice(None)) -> dict[str, Tensor]:
        """Return what :func:`~jpmhc.spectrum.predict` takes, from the means over tokens.

        Parameters
        ----------
        layers : slice or sequence of int
            Which, by index; all by default.

        Returns
        -------
        dict of Tensor
            ``mixers`` (L, n, n), ``read`` and ``write`` (L, n), ``energy`` (L,), float64.

        Raises
        ------
        ValueError
            If they do not have one number of streams, or one read each, or a branch's energy is unknown.
        """
        indices = range(len(self))[layers] if isinstance(layers, slice) else layers
        chosen = [(self.layers[i], self.mixers[i], self.reads[i], self.writes[i]) for i in indices]
        if not chosen:
            raise ValueError("layers: expected at least one")
        sizes = {(m.shape, r.shape, w.shape) for _, m, r, w in chosen}
        if len(sizes) > 1 or chosen[0][2].ndim > 1:
            raise ValueError(f"layers: expected one number of streams and one read in all, got shapes {sorted(sizes)}")
        energies = []
        for layer, *_ in chosen:
            if layer.energy is None:
                raise ValueError(f"layers: the branch of {layer.name!r} is no module, so its energy was not measured")
            energies.append(layer.energy)
        parts = zip(*((m, r, w) for _, m, r, w in chosen), strict=True)
        mixers, read, write = (torch.stack(part) for part in parts)
        return {
            "mixers": mixers,
            "read": read,
            "write": write,
            "energy": mixers.new_tensor(energies, dtype=torch.float64),
        }

    def __str__(self) -> str:
        width = max(5, *(len(self._label(layer)) for layer in self.layers))
        head = " ".join(f"{title:>9}" for title in _PRINTED.values())
        lines = [f"{'layer':{width}} {head}"]
        for layer in self.layers:
            cells = " ".join(f"{_cell(getattr(layer, name)):>9}" for name in _PRINTED)
            lines.append(f"{self._label(layer):{width}} {cells}")
        return "\n".join(lines)

    def _label(self, layer: LayerReport) -> str:
        repeated = any(other.call for other in self.layers if other.name == layer.name)
        return f"{layer.name}[{layer.call}]" if repeated else layer.name

    def plot(self, *, log: bool = True) -> Figure:
        """Draw singular values, composite gain, similarity of streams and gradient norms against depth.

        Parameters
        ----------
        log : bool
            Logarithmic axes for singular values, gains and gradients.

        Returns
        -------
        matplotlib.figure.Figure
            Four panels; each is also a function of :mod:`jpmhc.spectrum.figures`.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        """
        from jpmhc.spectrum import figures

        return figures.overview(self, log=log)


def _cell(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.1e}" if value and not 1e-3 <= abs(value) < 1e4 else f"{value:.3f}"
