"""Rules of design for a mixer at a depth, computed from its start."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from jpmhc.host import on_host
from jpmhc.layers import Mixer, mixers
from jpmhc.layers.arguments import check_number, check_size
from jpmhc.spectrum.branches import Branch
from jpmhc.spectrum.closed_forms import scalar_condition
from jpmhc.spectrum.initial import initial_chain
from jpmhc.spectrum.predicted import PredictedLaw, predict


@dataclass(frozen=True)
class Design:
    """What a stack of layers does at its start.

    Attributes
    ----------
    mixer : str
        Name of the mixer.
    streams, depth : int
        Number of streams n and of layers L.
    load : float
        Energy ``c`` that the branches add per direction over the depth.
    smallest, largest : float
        Ends of the law of the singular values.
    mean_log, isometry_gap : float
        ``E[log s]`` and ``log E[s^2] - 2 E[log s]``.
    contrast : float
        Largest factor by which the product of the mixers keeps a difference between streams.
    contrast_depth : float
        Layers after which that factor falls below ``threshold``, at the mean rate; infinite if it does not fall.
    bias : float or None
        :func:`diagonal_bias` that a doubly stochastic mixer would need to keep ``threshold`` of a difference over the
        depth; ``None`` for other mixers.
    budget : float or None
        :func:`branch_budget`, the load at which the condition number would be the one asked for; ``None`` if none was.
    """

    mixer: str
    streams: int
    depth: int
    load: float
    smallest: float
    largest: float
    mean_log: float
    isometry_gap: float
    contrast: float
    contrast_depth: float
    bias: float | None = None
    budget: float | None = None

    @property
    def condition(self) -> float:
        """Condition number of the Jacobian."""
        return self.largest / self.smallest if self.smallest > 0 else math.inf

    def row(self) -> dict[str, Any]:
        """Return the numbers by name, for a table."""
        return {**dataclasses.asdict(self), "condition": self.condition}


@on_host
def design(
    mixer: str | Mixer,
    streams: int = 4,
    depth: int = 24,
    *,
    load: float = 0.5,
    gate: str = "softmax",
    branch: str | Branch = "gaussian",
    threshold: float = 0.5,
    condition: float | None = None,
) -> Design:
    """Predict what a stack of layers with that mixer does at its start.

    Parameters
    ----------
    mixer : str or Mixer
        A name from :func:`~jpmhc.layers.mixers`, or an instance.
    streams, depth : int
        Number of streams n and of layers L.
    load : float, default=0.5
        ``c = (1 / n) sum_l v_l |read_l|^2 |write_l|^2``, spread evenly over the layers.
    gate, branch : str
        As for :class:`~jpmhc.layers.HyperConnection` and for :func:`predict`.
    threshold : float, default=0.5
        Where a difference between streams counts as lost, in (0, 1).
    condition : float, optional
        Wanted condition number, for ``budget``: some ten more laws.

    Returns
    -------
    Design

    Raises
    ------
    ValueError
        Unknown names, a load that is negative, a threshold outside (0, 1), a condition number below 1.

    Examples
    --------
    >>> from jpmhc import spectrum
    >>> found = spectrum.design("sinkhorn", 4, 24)
    >>> print(f"{found.contrast_depth:.1f} {found.bias:.1f}")  # layers it is made for; what these would take
    4.8 4.9
    """
    check_number("load", load, least=0.0)
    _check_threshold(threshold)
    if condition is not None:
        check_number("condition", condition, least=1.0)
    chain = initial_chain(mixer, streams, depth, gate)
    law = _law(chain, load, branch)
    product = torch.eye(streams, dtype=torch.float64)
    for matrix in chain["mixers"]:
        product = matrix @ product
    centre = torch.eye(streams, dtype=torch.float64) - 1 / streams
    contrast = float(torch.linalg.matrix_norm(centre @ product @ centre, 2)) if streams > 1 else 1.0
    rate = math.log(contrast) / depth if contrast > 0 else -math.inf
    smallest, largest = law.edges
    # A start may be doubly stochastic by chance: what counts is where the mixer can go.
    averages = streams > 1 and _averages(initial_chain(mixer, streams, 1, gate, spread=1.0)["mixers"])
    return Design(
        mixer if isinstance(mixer, str) else type(mixer).__name__,
        streams,
        depth,
        float(law.scalar_load),
        smallest,
        largest,
        float(law.mean_log),
        float(law.isometry_gap),
        contrast,
        # Round-off of a product of rotations is no loss.
        math.log(threshold) / rate if rate < -1e-12 else math.inf,
        diagonal_bias(streams, depth, threshold) if averages else None,
        branch_budget(condition, mixer, streams, depth, gate=gate, branch=branch) if condition is not None else None,
    )


@on_host
def design_table(streams: int = 4, depth: int = 24, **options: Any) -> list[Design]:
    """Return the :func:`design` of every registered mixer with that number of streams, by name; seconds a mixer."""
    return [design(info.name, streams, depth, **options) for info in mixers() if info.supports(streams)]


def _averages(M: Tensor) -> bool:
    """Whether matrices (L, n, n) are doubly stochastic, and not all of them permutations."""
    sums = torch.cat([M.sum(-1), M.sum(-2)])
    between = (M > 1e-6) & (M < 1 - 1e-6)
    return bool((M >= -1e-6).all() and ((sums - 1).abs() < 1e-6).all() and between.any())


def _law(chain: dict[str, Tensor], load: float, branch: str | Branch) -> PredictedLaw:
    """Law of layers over which a load is spread evenly."""
    depth, streams = chain["read"].shape
    gain = chain["read"].square().sum(-1) * chain["write"].square().sum(-1)
    energy = load * streams / depth / gain
    return predict(chain["mixers"], chain["read"], chain["write"], energy, branch)


@on_host
def branch_budget(
    condition: float,
    mixer: str | Mixer | None = None,
    streams: int = 4,
    depth: int = 24,
    *,
    gate: str = "softmax",
    branch: str | Branch = "gaussian",
) -> float:
    """Load ``c`` of the branches at which the Jacobian has that condition number.

    Parameters
    ----------
    condition : float
        Wanted ratio of the largest and smallest singular value, at least 1.
    mixer : str or Mixer, optional
        Whose stack of layers at its start is asked for, in some ten laws. Without one it is the scalar law, which
        spreads the branches over all directions: mixers that rotate the streams come close to it, others have a smaller
        budget, and rotations as branches, in few layers, a larger one.
    streams, depth, gate, branch
        As for :func:`design`.

    Returns
    -------
    float
        ``c = (1 / n) sum_l v_l |read_l|^2 |write_l|^2``, to one percent for a mixer; 0 where the mixers alone have a
        larger condition number. It is the smallest: rotations that outweigh the skip reach that number once more.

    Examples
    --------
    >>> from jpmhc import spectrum
    >>> print(f"{spectrum.branch_budget(10):.2f}")
    0.60
    """
    check_number("condition", condition, least=1.0)
    scalar = _scalar_budget(condition)
    if mixer is None:
        return scalar
    chain = initial_chain(mixer, streams, depth, gate)
    # A layer without an inverse ends all budgets, and behind it condition numbers may fall again.
    end = _load_without_inverse(chain)
    low, high = 1e-3 * min(scalar, end), min(scalar, end)
    if high == 0 or _law(chain, low, branch).condition > condition:
        return 0.0
    while high < min(end, 1e3 * scalar) and _law(chain, high, branch).condition <= condition:
        low, high = high, min(2 * high, end)
    while high > 1.01 * low:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if _law(chain, middle, branch).condition <= condition else (low, middle)
    return low


def _load_without_inverse(chain: dict[str, Tensor]) -> float:
    """Smallest load, spread evenly over the layers, at which one of them loses its inverse; infinite if none does."""
    M, read, write = chain["mixers"], chain["read"], chain["write"]
    depth, streams = read.shape
    seen = (read * torch.linalg.solve_ex(M, write)[0]).sum(-1).square()
    gain = read.square().sum(-1) * write.square().sum(-1)
    loads = gain * depth / (streams * seen)
    return float(loads[loads.isfinite()].amin()) if loads.isfinite().any() else math.inf


def _scalar_budget(condition: float) -> float:
    low, high = 0.0, 1.0
    while scalar_condition(high) < condition:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if scalar_condition(middle) <= condition else (low, middle)
    return low


@on_host
def diagonal_bias(streams: int, depth: int, threshold: float = 0.5) -> float:
    """Logit on the diagonal that a doubly stochastic mixer needs to keep differences between streams over a depth.

    With b on the diagonal and 0 elsewhere a layer shrinks differences by ``(e^b - 1) / (e^b + n - 1)``; over L layers
    no more than ``threshold`` is left of them below this b. For ``threshold = 1 / 2`` it is about ``log(n L / log 2)``.

    Parameters
    ----------
    streams, depth : int
        Number of streams n, at least 2, and of layers L.
    threshold : float, default=0.5
        Share of a difference that must be left, in (0, 1).

    Examples
    --------
    >>> from jpmhc import spectrum
    >>> print(f"{spectrum.diagonal_bias(4, 48):.1f}")
    5.6
    """
    check_size("streams", streams, least=2)
    check_size("depth", depth)
    _check_threshold(threshold)
    shrink = threshold ** (1 / depth)
    return math.log((1 + shrink * (streams - 1)) / -math.expm1(math.log(threshold) / depth))


def _check_threshold(threshold: float) -> None:
    check_number("threshold", threshold)
    if not 0 < threshold < 1:
        raise ValueError(f"threshold: expected a number in (0, 1), got {threshold}")
