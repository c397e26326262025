"""What the mixers and the gradient do along the recursion of one segment, measured on a few samples."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.arc.losses import stablemax_cross_entropy
from benchmarks.arc.model import Latents, TinyRecursiveModel
from jpmhc import layers
from jpmhc.layers.charts.contrasts import contrasts

SAMPLES = 4
# The logarithm of zero, for mixers that erase a direction.
_SMALLEST = 1e-30


def mixers_of(model: TinyRecursiveModel, latents: Latents, tokens: Tensor, puzzle: Tensor) -> dict[str, Any]:
    """Return the mixers of every sublayer of a segment, in the order in which they are applied.

    Parameters
    ----------
    model : TinyRecursiveModel
        Run eagerly; it is left as it is.
    latents, tokens, puzzle
        See `TinyRecursiveModel.forward`.

    Returns
    -------
    dict
        ``matrices``, a list of K tensors (n, n) or (B, T, n, n), empty for the plain arm, and ``residual``, the largest
        distance of any of them from its mixer's set.
    """
    with _listening(model) as seen, torch.no_grad():
        model(latents, tokens, puzzle)
    residual = max((float(layer.mixer.residual(matrix).max()) for layer, matrix in seen), default=0.0)
    return {"matrices": [matrix for _, matrix in seen], "residual": residual}


def contrast_gains(matrices: list[Tensor]) -> list[tuple[float, float]]:
    """Return by how much the product of the first K mixers changes differences of streams, for every K.

    Parameters
    ----------
    matrices : list of Tensor, each (..., n, n)
        In the order of application.

    Returns
    -------
    list of (float, float)
        Largest and smallest singular value of ``U^T M_K ... M_1 U``, U an orthonormal basis of what is orthogonal to
        the all-ones vector; geometric means over the leading dimensions. Empty for n = 1: no differences.

    Examples
    --------
    >>> [tuple(round(gain, 6) for gain in gains) for gains in contrast_gains([torch.eye(3), 0.5 * torch.eye(3)])]
    [(1.0, 1.0), (0.5, 0.5)]
    """
    if matrices and matrices[0].shape[-1] == 1:
        return []
    product, gains = None, []
    for matrix in matrices:
        matrix = matrix.double()
        product = matrix if product is None else matrix @ product
        basis = contrasts(matrix.shape[-1]).to(matrix)
        values = torch.linalg.svdvals(basis.mT @ product @ basis).clamp_min(_SMALLEST).log()
        means = values.reshape(-1, values.shape[-1]).mean(0).exp()
        gains.append((float(means[0]), float(means[-1])))
    return gains


def gradient_along(
    model: TinyRecursiveModel, latents: Latents, tokens: Tensor, puzzle: Tensor, labels: Tensor
) -> list[dict[str, float]]:
    """Return the gradient of the token loss with respect to y at the start of every H cycle and at the end.

    The gradient goes through the whole segment, whatever part of it is trained through.

    Returns
    -------
    list of dict, length h_cycles + 1
        ``mean`` and ``contrast``: norms of the gradient's mean over streams and of what is left without it, relative
        to the norm of the gradient at the end. Without persistent streams there is no contrast.
    """
    frozen = [p for p in model.parameters() if p.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(False)
    try:
        with torch.enable_grad():
            x = model.embed_input(tokens, puzzle.detach())
            y, z = (latent.detach().requires_grad_() for latent in latents)
            points = [y]
            for _ in range(model.config.h_cycles):
                y, z = model.cycle(y, z, x)
                points.append(y)
            logits, _ = model.answer(y)
            gradients = torch.autograd.grad(stablemax_cross_entropy(logits, labels).sum(), points)
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)
    end = float(gradients[-1].norm())
    return [{name: value / end for name, value in _parts(g, model.persistent).items()} for g in gradients]


def describe(
    model: TinyRecursiveModel, latents: Latents, tokens: Tensor, puzzle: Tensor, labels: Tensor
) -> dict[str, Any]:
    """Return all of the above as JSON values."""
    # A compiled net keeps nothing of its mixers.
    with torch.compiler.set_stance("force_eager"):
        found = mixers_of(model, latents, tokens, puzzle)
        gradient = gradient_along(model, latents, tokens, puzzle, labels)
    return {
        "residual": _finite(found["residual"]),
        "contrast_gains": [[_finite(a), _finite(b)] for a, b in contrast_gains(found["matrices"])],
        "gradient": [{name: _finite(value) for name, value in point.items()} for point in gradient],
    }


@contextmanager
def _listening(model: nn.Module) -> Iterator[list[tuple[layers.HyperConnection, Tensor]]]:
    """Collect (layer, mixer) of every application of a hyper-connection inside the block."""
    seen: list[tuple[layers.HyperConnection, Tensor]] = []

    def keep(layer: nn.Module, inputs: Any, output: Any) -> None:
        assert isinstance(layer, layers.HyperConnection)
        assert layer.last is not None
        seen.append((layer, layer.last[2]))

    hooks = [m.register_forward_hook(keep) for m in model.modules() if isinstance(m, layers.HyperConnection)]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _parts(gradient: Tensor, streams: bool) -> dict[str, float]:
    if not streams:
        return {"mean": float(gradient.norm())}
    mean = gradient.mean(-2, keepdim=True).expand_as(gradient)
    return {"mean": float(mean.norm()), "contrast": float((gradient - mean).norm())}


def _finite(value: float) -> float | None:
    # JSON has no infinity.
    return value if math.isfinite(value) else None
