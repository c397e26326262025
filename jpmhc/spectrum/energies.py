"""Branch energies: from weight variances by signal propagation, or measured on a model."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from jpmhc.host import on_host
from jpmhc.spectrum.inspect import inspect
from jpmhc.spectrum.model import Model, make_model

Activation = Callable[[Tensor], Tensor]
_ACTIVATIONS: dict[str, Activation] = {
    "relu": torch.relu,
    "gelu": nn.functional.gelu,
    "silu": nn.functional.silu,
    "tanh": torch.tanh,
    "linear": torch.clone,
}
# Where the normal density has fallen below 1e-18, and panels between there and zero, each half as long as the next one:
# at a large variance all that an activation has of slope lies next to zero.
_FAR, _PANELS, _NODES = 9.0, 50, 20


@dataclass(frozen=True)
class Propagation:
    """What a stack of layers makes of the second moments of its streams, at random weights and great width.

    Attributes
    ----------
    energy : Tensor, shape (L,)
        ``||X_l||_F^2 / C`` of the branches' Jacobians: what :func:`~jpmhc.spectrum.predict` takes.
    variance : Tensor, shape (L,)
        Of the branches' pre-activations.
    gram : Tensor, shape (L + 1, n, n)
        Mean products of the entries of two streams, before the first layer and after each.
    """

    energy: Tensor
    variance: Tensor
    gram: Tensor


@on_host
def propagate(
    mixers: Any,
    read: Any = None,
    write: Any = None,
    *,
    activation: str | Activation = "relu",
    weight_variance: Any = 2.0,
    output_variance: Any = None,
    norm: bool = False,
    start: Tensor | None = None,
) -> Propagation:
    """Branch energies at random weights, from their variance and the activation.

    Parameters
    ----------
    mixers : Tensor, shape (L, n, n)
        Skip matrices.
    read, write : Tensor, shape (L, n) or (n,)
        Weights of the branch's input and output; ``None`` for a branch on all streams together, the model of
        ``branch="isotropic"``.
    activation : {"relu", "gelu", "silu", "tanh", "linear"} or callable
        ``phi``, entry by entry.
    weight_variance : Tensor, shape (L,) or ()
        Variance of the entries of W over ``1 / fan-in``: 2 at He's initialisation, 1 at LeCun's.
    output_variance : Tensor, shape (L,) or (), optional
        The same of a second matrix: the branch is ``V phi(W u)``, of any hidden width. Without it ``phi(W u)``.
    norm : bool, default=False
        Whether the branch divides what it reads by its root mean square first, as a pre-norm layer does.
    start : Tensor, shape (n, n), optional
        Mean products of the entries of two streams at the input; by default ones, of copies of one stream of unit
        variance.

    Returns
    -------
    Propagation

    Raises
    ------
    ValueError
        As :func:`~jpmhc.spectrum.predict`; for an unknown activation, a variance that is negative or not finite, a
        start that is not symmetric positive semidefinite of that size, and a read whose streams cancel before a norm.

    Notes
    -----
    With u the read and q = weight_variance E[u^2], the energy is ``weight_variance E[phi'(sqrt(q) Z)^2]`` over a normal
    Z, and the branch adds an output of mean ``E phi`` and square ``E phi^2`` (times the second matrix's variance, and
    without a mean, if there is one). These are psi and kappa of the JPmHC paper (arXiv 2602.18308, appendix L), here
    for the Gram matrix of the streams instead of one variance for all. Its equation (58) adds the energy to the
    variance that the next layer sees; that is left out, as the activations of a random network do not have it.

    Expectations are Gauss quadratures on panels that shrink towards zero from either side, so that the kink of a ReLU
    costs nothing and variances up to 1e20 leave a saturating phi its slope; Gauss-Hermite nodes, which the paper takes,
    agree where phi is smooth. O(L n^3), differentiable in all tensors.

    Examples
    --------
    Copies of one stream through two layers of ``V relu(W u)`` without a norm:

    >>> import torch
    >>> from jpmhc import spectrum
    >>> eye = torch.eye(4).expand(2, 4, 4)
    >>> found = spectrum.propagate(eye, torch.full((4,), 0.25), torch.ones(4), weight_variance=2.0, output_variance=0.1)
    >>> found.energy
    tensor([0.1000, 0.1000], dtype=torch.float64)
    >>> found.gram[:, 0, 0]
    tensor([1.0000, 1.1000, 1.2100], dtype=torch.float64)
    """
    branch = "isotropic" if read is None and write is None else "gaussian"
    model = make_model(mixers, read, write, 0.0, branch)
    phi = _activation(activation)
    first = _variances("weight_variance", weight_variance, model.layers)
    second = None if output_variance is None else _variances("output_variance", output_variance, model.layers)
    gram, mean = _start(start, model.streams), model.mixers.new_zeros(model.streams)
    grams, variances, energies = [gram], [], []
    for l in range(model.layers):
        square = _read(model, l, gram)
        if norm:
            _check_read(model, l, square, gram)
        unit = 1 / square if norm else torch.ones_like(square)
        variance = first[l] * square * unit
        slope, output, level = _expectations(phi, variance)
        energy = first[l] * slope * unit
        if second is not None:
            energy, output, level = second[l] * energy, second[l] * output, 0 * level
        mean = model.mixers[l] @ mean
        gram = model.mixers[l] @ gram @ model.mixers[l].mT + _added(model, l, output, level, mean)
        mean = mean + level * (torch.ones_like(mean) if model.write is None else model.write[l])
        grams.append(gram)
        variances.append(variance)
        energies.append(energy)
    return Propagation(torch.stack(energies), torch.stack(variances), torch.stack(grams))


def branch_energies(model: nn.Module, batch: Any, *, probes: int = 8, seed: int = 0) -> Tensor:
    """Measure the energies of the branches of a model on a batch.

    Parameters
    ----------
    model : Module
        With hyper-connections around modules.
    batch : Tensor, tuple or dict
        Its argument, arguments, or arguments by name.
    probes : int, default=8
        Random vectors that every branch's Jacobian is multiplied by. The relative standard deviation of an energy is
        at least ``sqrt(2 / (probes * outputs))``, where all singular values are equal, and at most
        ``sqrt(2 / probes)``, of a Jacobian of rank one; outputs are those of all tokens.
    seed : int
        Of those vectors.

    Returns
    -------
    Tensor, shape (L,)
        ``||X_l||_F^2 / C`` of every application, in order, over all tokens; float64.

    Raises
    ------
    ValueError
        As :func:`~jpmhc.spectrum.inspect`; for no probe, and a branch that is no module.

    Examples
    --------
    >>> import torch
    >>> from jpmhc import layers, spectrum
    >>> scaled = torch.nn.Linear(8, 8, bias=False)
    >>> _ = torch.nn.init.orthogonal_(scaled.weight, gain=0.5)
    >>> model = torch.nn.Sequential(layers.HyperConnection(8, scaled))
    >>> print(f"{spectrum.branch_energies(model, torch.randn(100, 4, 8), probes=64).item():.2f}")
    0.25
    """
    if isinstance(probes, bool) or not isinstance(probes, int) or probes < 1:
        raise ValueError(f"probes: expected an integer of at least 1, got {probes!r}")
    report = inspect(model, batch, energy_probes=probes, seed=seed)
    for layer in report:
        if layer.energy is None:
            raise ValueError(f"model: the branch of {layer.name!r} is no module, so its energy cannot be measured")
    return torch.tensor([layer.energy for layer in report], dtype=torch.float64, device="cpu")


def _activation(activation: str | Activation) -> Activation:
    if callable(activation):
        return activation
    if activation not in _ACTIVATIONS:
        raise ValueError(f"activation: expected one of {', '.join(_ACTIVATIONS)} or a function, got {activation!r}")
    return _ACTIVATIONS[activation]


def _variances(name: str, value: Any, layers: int) -> Tensor:
    tensor = torch.as_tensor(value, dtype=torch.float64)
    if tensor.shape not in ((), (layers,)):
        raise ValueError(f"{name}: expected one number or one for each of {layers} layers, got {tuple(tensor.shape)}")
    if not (tensor.isfinite() & (tensor >= 0)).all():
        raise ValueError(f"{name}: expected finite numbers >= 0, got {tensor.detach().min():g}")
    return tensor.expand(layers)


def _start(start: Tensor | None, streams: int) -> Tensor:
    if start is None:
        return torch.ones(streams, streams, dtype=torch.float64)
    gram = torch.as_tensor(start, dtype=torch.float64)
    if gram.shape != (streams, streams) or not gram.isfinite().all():
        raise ValueError(f"start: expected finite numbers of shape ({streams}, {streams}), got {tuple(gram.shape)}")
    values = torch.linalg.eigvalsh(gram.detach())
    if not torch.allclose(gram, gram.mT) or values[0] < -1e-9 * values[-1].abs():
        raise ValueError("start: expected a symmetric positive semidefinite matrix")
    return gram


def _read(model: Model, l: int, gram: Tensor) -> Tensor:
    return gram.trace() / model.streams if model.read is None else model.read[l] @ gram @ model.read[l]


def _check_read(model: Model, l: int, square: Tensor, gram: Tensor) -> None:
    """Refuse a norm of what is nothing but round-off of the streams."""
    size = 1.0 if model.read is None else float(model.read[l].detach().square().sum())
    # Of a sum of n^2 products, each of which is rounded.
    noise = model.streams * torch.finfo(gram.dtype).eps * size * float(gram.detach().trace())
    if not float(square.detach()) > noise:
        raise ValueError(
            f"read: expected something to divide by its root mean square with norm=True; in layer {l} the streams that "
            f"are read cancel, E[u^2] = {float(square.detach()):.2g}"
        )


def _added(model: Model, l: int, square: Tensor, level: Tensor, mean: Tensor) -> Tensor:
    """Return what an output of that mean square and level adds to the Gram matrix of streams of those means."""
    if model.write is None:
        ones = torch.ones_like(mean)
        own = (square - level.square()) * torch.eye(len(mean), dtype=mean.dtype) + level.square()
        cross = level * torch.outer(ones, mean)
    else:
        own = square * torch.outer(model.write[l], model.write[l])
        cross = level * torch.outer(model.write[l], mean)
    return own + cross + cross.mT


def _expectations(phi: Activation, variance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``E phi'^2``, ``E phi^2`` and ``E phi`` at a normal argument of that variance."""
    nodes, weights = _normal_quadrature()
    points = variance.sqrt() * nodes
    value, slope = torch.func.jvp(phi, (points,), (torch.ones_like(points),))[:2]
    return weights @ slope.square(), weights @ value.square(), weights @ value


@functools.cache
def _normal_quadrature() -> tuple[Tensor, Tensor]:
    """Nodes and weights of expectations over a standard normal variable, apart on either side of zero."""
    nodes, weights = map(torch.from_numpy, np.polynomial.legendre.leggauss(_NODES))
    ends = torch.cat([torch.zeros(1), torch.arange(1 - _PANELS, 1).double().exp2()]).double() * _FAR
    lengths = ends.diff().unsqueeze(-1)
    half = (ends[:-1].unsqueeze(-1) + lengths * (nodes + 1) / 2).flatten()
    weight = (lengths * weights / 2).flatten() * torch.exp(-half.square() / 2) / math.sqrt(2 * math.pi)
    return torch.cat([-half.flip(0), half]), torch.cat([weight.flip(0), weight])
