"""What the hyper-connections of a model did in its last forward."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from jpmhc.layers.hyper_connection import HyperConnection
from jpmhc.layers.mixer import Mixer


@dataclass(frozen=True)
class LayerStatistics:
    """Measures of one layer, each a tensor of the coefficients' leading shape, computed when first asked for.

    Nothing is read back from the device until a number is printed or compared.

    Attributes
    ----------
    name : str
        Name of the layer in the model.
    pre, post : Tensor, shape (..., n)
        Weights that the layer read with, those of the layer before in a :class:`~jpmhc.layers.SinglePass`, and its
        write weights.
    matrix : Tensor, shape (..., n, n)
        Mixers.
    mixer : Mixer
        The chart that made them.
    weighed : int, optional
        Weights of a read that may differ from zero: n unless given. A fraction of a read weighs its own fraction of
        every stream, or with the tanh gate all.
    """

    name: str
    pre: Tensor
    post: Tensor
    matrix: Tensor
    mixer: Mixer
    weighed: int | None = None

    @cached_property
    def residual(self) -> Tensor:
        """Distance from the mixer's set."""
        return self.mixer.residual(self.matrix)

    @cached_property
    def singular_values(self) -> Tensor:
        """Singular values (..., n) of the mixers, largest first: factors by which differences of streams change."""
        return torch.linalg.svdvals(self.matrix)

    @property
    def sigma_max(self) -> Tensor:
        """Largest singular value."""
        return self.singular_values[..., 0]

    @property
    def sigma_min(self) -> Tensor:
        """Smallest singular value."""
        return self.singular_values[..., -1]

    @cached_property
    def distance_from_identity(self) -> Tensor:
        """``||M - I||_F / sqrt n``: 0 where streams keep to themselves."""
        n = self.matrix.shape[-1]
        eye = torch.eye(n, dtype=self.matrix.dtype, device=self.matrix.device)
        return (self.matrix - eye).flatten(-2).norm(dim=-1) / n**0.5

    @cached_property
    def read_entropy(self) -> Tensor:
        """Entropy of the read weights' shares ``|pre| / sum |pre|`` over ``log n``: 1 if all are read alike.

        Of a fraction of a read over the logarithm of the number of pieces that it may weigh, see ``weighed``.
        """
        return _entropy(self.pre, self.weighed or self.pre.shape[-1])

    @cached_property
    def write_entropy(self) -> Tensor:
        """Entropy of the write weights' shares ``|post| / sum |post|`` over ``log n``: 1 if all are written alike."""
        return _entropy(self.post, self.post.shape[-1])

    def __str__(self) -> str:
        if not self.matrix.numel():
            return f"{self.name}: no token"
        worst = self.residual.max().item()
        if not math.isfinite(worst):
            return f"{self.name}: the mixers hold NaN or infinity"
        return (
            f"{self.name}: residual {worst:.1e}, singular values {self.sigma_min.min().item():.3f} to "
            f"{self.sigma_max.max().item():.3f}, from I {self.distance_from_identity.mean().item():.3f}, entropy of "
            f"read {self.read_entropy.mean().item():.2f}, of write {self.write_entropy.mean().item():.2f}"
        )


class ConstraintWarning(UserWarning):
    """Mixers left the set they promise."""


class Statistics(list[LayerStatistics]):
    """One :class:`LayerStatistics` a layer; ``str()`` has a line for each, and warns of broken promises."""

    def warn(self) -> None:
        """Warn of every layer whose residual exceeds what its mixer promises; reads the device."""
        for layer in self:
            worst = layer.residual.max().item() if layer.residual.numel() else 0.0
            if not worst <= layer.mixer.promise:
                warnings.warn(
                    f"{layer.name}: {type(layer.mixer).__name__} is {worst:.1e} off its set, more than the "
                    f"{layer.mixer.promise:.0e} it promises; {_cause(layer.mixer)}",
                    ConstraintWarning,
                    stacklevel=2,
                )

    def __str__(self) -> str:
        self.warn()
        return "\n".join(str(layer) for layer in self)


def _cause(mixer: Mixer) -> str:
    if mixer.n_coefficients:
        return "its raw numbers have left the range in which it is valid"
    return "its base point has left the set; an optimiser of jpmhc.optim keeps points on their manifold"


def statistics(model: nn.Module) -> Statistics:
    """Return the measures of every hyper-connection of a model in its last forward.

    Parameters
    ----------
    model : Module
        Any module; layers that did not run are left out, and those whose last run kept nothing.

    Returns
    -------
    Statistics
        In the order of ``model.named_modules()``.

    Raises
    ------
    ValueError
        If no hyper-connection of the model has run, or no last run was an eager one.

    Notes
    -----
    A layer keeps its last coefficients, detached: (2 n + n^2) numbers a token, not copied or pickled with the layer. A
    layer that is applied repeatedly shows its last application. Compiled layers and layers under ``torch.func``
    transforms keep nothing, and take away what an eager forward before them kept: run the model once without. Compiled
    inside of ``torch.utils.checkpoint`` they cannot take it away, and a warning tells so from then on, after new eager
    forwards too, for later compiled ones leave no trace: ``copy.deepcopy`` of the layer is free of it. It does not come
    for a layer that runs through code compiled for another, which no Python of its own sees. Exporting is no forward.

    Examples
    --------
    >>> import torch
    >>> from jpmhc import layers
    >>> model = torch.nn.Sequential(layers.HyperConnection(8, torch.nn.Linear(8, 8), mixer="sinkhorn"))
    >>> _ = model(torch.randn(5, 4, 8))
    >>> print(layers.statistics(model)[0].sigma_min.mean().round(decimals=3))
    tensor(0.8670)
    """
    found = Statistics()
    present = False
    hidden: list[str] = []
    for name, layer in model.named_modules():
        if isinstance(layer, HyperConnection):
            present = True
            if layer.last is not None:
                name = name or type(layer).__name__
                hidden += [name] * layer.hidden
                found.append(LayerStatistics(name, *layer.last, layer.mixer, layer.gate.weighed))
    if not found:
        what = "none of its hyper-connections has run, or the last run kept nothing; call the model first, without "
        what = f"{what}compiling it" if present else f"{type(model).__name__} has no HyperConnection"
        raise ValueError(f"model: {what}")
    if hidden:
        warnings.warn(
            f"model: {hidden[0]} was compiled where it can neither keep anything nor take away what was kept, as "
            "inside of a checkpoint; this is its last eager forward and may be older than the last compiled one",
            stacklevel=2,
        )
    return found


def _entropy(weights: Tensor, count: int) -> Tensor:
    """Entropy of shares of which so many may differ from zero, over its largest value; 1 where there is but one."""
    if count == 1:
        return torch.ones_like(weights[..., 0])
    magnitude = weights.abs()
    share = magnitude / magnitude.sum(-1, keepdim=True).clamp_min(torch.finfo(weights.dtype).tiny)
    return torch.special.entr(share).sum(-1) / math.log(count)
