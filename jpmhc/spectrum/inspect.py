"""Inspection: what the hyper-connections of a model do on a batch, layer by layer."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from jpmhc.spectrum.arguments import as_seed
from jpmhc.spectrum.observation import Observation, energy, observe
from jpmhc.spectrum.report import LayerReport, Report
from jpmhc.spectrum.section import arguments


def inspect(
    model: nn.Module,
    batch: Any,
    loss: Callable[[Any], Tensor] | None = None,
    *,
    energy_probes: int = 2,
    seed: int = 0,
) -> Report:
    """Run a model once, forward and back, and report what its hyper-connections do.

    Parameters
    ----------
    model : Module
        With at least one :class:`~jpmhc.layers.HyperConnection`, called whole or in halves, once or repeatedly.
    batch : Tensor, tuple or dict
        Its argument, arguments, or arguments by name.
    loss : Callable, optional
        From the model's output to a scalar, for the gradient norms. By default the output's first real tensor that has
        a gradient, along a random unit vector.
    energy_probes : int
        Backward passes through every branch that estimate its energy; 0 for none.
    seed : int
        Of the random vectors.

    Returns
    -------
    Report
        ``report.table()``, ``report.plot()``, ``str(report)``; ``report.chain()`` is what
        :func:`~jpmhc.spectrum.predict` takes.

    Raises
    ------
    ValueError
        If the model has no hyper-connection, none ran, one ran where it cannot be watched (compiled), a layer got no
        token, one has numbers that are not finite, or the loss is no real scalar.

    Notes
    -----
    Takes the memory of a training step, and for every application the mixers of all tokens twice. Products are of the
    mixers alone, in the order of application, whatever stands between the layers. The model's mode is kept; its
    gradients and buffers are left as they are. Dropout is not switched off: call ``model.eval()``.

    Examples
    --------
    >>> import torch
    >>> from jpmhc import layers, spectrum
    >>> model = torch.nn.Sequential(
    ...     *(layers.HyperConnection(8, torch.nn.Tanh(), mixer="sinkhorn", layer_index=i) for i in range(3))
    ... )
    >>> report = spectrum.inspect(model, torch.randn(5, 4, 8))
    >>> [round(layer.product_min, 3) for layer in report]
    [0.867, 0.751, 0.651]
    >>> round(report[2].forward_gain, 3)
    1.0
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a module, got {type(model).__name__}")
    if isinstance(energy_probes, bool) or not isinstance(energy_probes, int) or energy_probes < 0:
        raise ValueError(f"energy_probes: expected an integer of at least 0, got {energy_probes!r}")
    seed = as_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    # Whatever the caller's mode is.
    with torch.inference_mode(False), torch.enable_grad():
        args, kwargs = pytree.tree_map(_differentiable, arguments(batch))
        buffers = {name: value.detach().clone() for name, value in model.named_buffers()}
        with observe(model) as seen:
            output = torch.func.functional_call(model, buffers, args, kwargs)
        empty = next((o.name for o in seen if not (o.x.numel() and o.matrix.numel())), None)
        if empty is not None:
            raise ValueError(f"batch: layer {empty!r} got no token")
        scalar = _scalar(output, loss, generator)
        gradients, of_parameters = _gradients(scalar, seen)
        energies = [energy(o, energy_probes, generator) if energy_probes else None for o in seen]
        _check_finite(seen, energies, scalar)
    with torch.no_grad():
        return _report(seen, energies, gradients, of_parameters, float(scalar))


def _differentiable(value: Any) -> Any:
    # A leaf of its own: streams that come in as data would have no gradient, and the caller's tensor must not get one.
    real = isinstance(value, Tensor) and value.is_floating_point()
    if not real:
        # Of inference mode a tensor cannot be kept for the way back.
        return value.clone() if isinstance(value, Tensor) and value.is_inference() else value
    return (value.clone() if value.is_inference() else value.detach()).requires_grad_()


def _check_finite(seen: list[Observation], energies: list[float | None], scalar: Tensor) -> None:
    """Refuse NaN and infinity at the first layer that has some: singular values do not exist from there on."""
    for o, of_branch in zip(seen, energies, strict=True):
        for what, values in (("gets streams", (o.x,)), ("has mixers", (o.matrix,)), ("has gates", (o.pre, o.post))):
            if not all(value.isfinite().all() for value in values):
                raise ValueError(f"model: layer {o.name!r} {what} that are NaN or infinite")
        if of_branch is not None and not math.isfinite(of_branch):
            raise ValueError(f"model: the branch of layer {o.name!r} has a Jacobian that is NaN or infinite")
    if not scalar.isfinite():
        raise ValueError(f"model: its output or loss is NaN or infinite, behind layer {seen[-1].name!r}")


def _scalar(output: Any, loss: Callable[[Any], Tensor] | None, generator: torch.Generator) -> Tensor:
    if loss is not None:
        scalar = loss(output)
        if not isinstance(scalar, Tensor) or scalar.numel() != 1 or not scalar.is_floating_point():
            raise ValueError("loss: expected a function from the model's output to a real scalar tensor")
        return scalar.reshape(())
    real = [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    # A model may also return state that it detached.
    for leaf in [*(leaf for leaf in real if leaf.requires_grad), *real]:
        direction = torch.randn(leaf.shape, generator=generator, dtype=torch.float64, device="cpu")
        return (leaf * (direction / direction.norm()).to(leaf)).sum()
    raise ValueError("loss: the model returns no real tensor, so give a function of its output")


def _gradients(scalar: Tensor, seen: list[Observation]) -> tuple[list[float | None], dict[str, float | None]]:
    """Norms of the gradient at every application's streams and, by layer, over its parameters."""
    layers = {o.name: o.layer for o in seen}
    own = {name: [p for p in layer.parameters() if p.requires_grad] for name, layer in layers.items()}
    streams = [o.x for o in seen if o.x.requires_grad]
    parameters: list[Tensor] = list(dict.fromkeys(p for several in own.values() for p in several))
    if not scalar.requires_grad or not streams + parameters:
        return [None] * len(seen), dict.fromkeys(layers)
    found = torch.autograd.grad(scalar, streams + parameters, retain_graph=True, allow_unused=True)
    squares = [None if g is None else float(g.double().square().sum()) for g in found]
    at = dict(zip(map(id, streams), squares, strict=False))
    on = dict(zip(map(id, parameters), squares[len(streams) :], strict=True))
    of_streams = [_root(at.get(id(o.x))) for o in seen]
    of_parameters = {}
    for name, several in own.items():
        known = [square for p in several if (square := on[id(p)]) is not None]
        of_parameters[name] = _root(sum(known)) if known else None
    return of_streams, of_parameters


def _root(square: float | None) -> float | None:
    return None if square is None else math.sqrt(square)


def _report(
    seen: list[Observation],
    energies: list[float | None],
    gradients: list[float | None],
    of_parameters: dict[str, float | None],
    loss: float,
) -> Report:
    chains = _chains(seen)
    forward, backward = _compositions(seen, chains)
    layers = []
    for index, o in enumerate(seen):
        matrix, n = o.matrix.double(), o.matrix.shape[-1]
        values, product = torch.linalg.svdvals(matrix), torch.linalg.svdvals(forward[index])
        to, back = matrix.sum(-1), matrix.sum(-2)  # M 1 and M^T 1
        gram, read, write = _gram(o.x), o.pre.double(), o.post.double()
        layers.append(
            LayerReport(
                index=index,
                name=o.name or type(o.layer).__name__,
                call=o.call,
                mixer=type(o.layer.mixer).__name__,
                chain=chains[index],
                residual=float(o.layer.mixer.residual(o.matrix).max()),
                sigma_min=float(values.min()),
                sigma_max=float(values.max()),
                product_min=float(product.min()),
                product_max=float(product.max()),
                layer_forward_gain=float(_row_gain(matrix)),
                layer_backward_gain=float(_row_gain(matrix.mT)),
                forward_gain=float(_row_gain(forward[index])),
                backward_gain=float(_row_gain(backward[index].mT)),
                mean_gain=float(to.mean(-1).mean()),
                leak_out=float(_deviation(to).mean()),
                leak_in=float(_deviation(back).mean()),
                similarity=float(_similarity(gram).mean()),
                difference=float(_difference(gram).mean()),
                effective_streams=float(_participation(gram).mean()),
                norm=float(o.x.double().square().mean().sqrt()),
                read_entropy=_share_of_largest(read, o.layer.gate.weighed),
                write_entropy=_share_of_largest(write, n),
                streams_read=float(_entropy(read).exp().mean()),
                streams_written=float(_entropy(write).exp().mean()),
                energy=energies[index],
                gradient=gradients[index],
                parameter_gradient=of_parameters[o.name],
                singular_values=tuple(values.reshape(-1, n).mean(0).tolist()),
                product_values=tuple(product.reshape(-1, n).mean(0).tolist()),
            )
        )
    return Report(
        tuple(layers),
        tuple(_token_mean(o.matrix, 2) for o in seen),
        tuple(_token_mean(o.pre, 1 + o.pre.ndim - o.post.ndim) for o in seen),
        tuple(_token_mean(o.post, 1) for o in seen),
        loss,
    )


def _chains(seen: list[Observation]) -> list[int]:
    """Return the number of every layer's chain: layers of one number of streams whose tokens correspond."""
    chains, shape = [0], seen[0].matrix.shape
    for o in seen[1:]:
        try:
            fits = shape[-1] == o.matrix.shape[-1]
            shape = torch.broadcast_shapes(shape, o.matrix.shape) if fits else o.matrix.shape
        except RuntimeError:
            fits, shape = False, o.matrix.shape
        chains.append(chains[-1] + (not fits))
    return chains


def _compositions(seen: list[Observation], chains: list[int]) -> tuple[list[Tensor], list[Tensor]]:
    """``M_l ... M_0`` and ``M_(L-1) ... M_l`` within each chain."""
    matrices = [o.matrix.double() for o in seen]
    forward, backward = list(matrices), list(matrices)
    for i in range(1, len(seen)):
        if chains[i] == chains[i - 1]:
            forward[i] = matrices[i] @ forward[i - 1]
    for i in reversed(range(len(seen) - 1)):
        if chains[i] == chains[i + 1]:
            backward[i] = backward[i + 1] @ matrices[i]
    return forward, backward


def _token_mean(value: Tensor, kept: int) -> Tensor:
    return value.double().reshape(-1, *value.shape[value.ndim - kept :]).mean(0).cpu()


def _row_gain(matrix: Tensor) -> Tensor:
    return matrix.abs().sum(-1).amax(-1).mean()


def _deviation(sums: Tensor) -> Tensor:
    """``||(I - J) sums|| / sqrt n``."""
    return (sums - sums.mean(-1, keepdim=True)).square().mean(-1).sqrt()


def _gram(x: Tensor) -> Tensor:
    x = x.double()
    return x @ x.mT


def _similarity(gram: Tensor) -> Tensor:
    n = gram.shape[-1]
    if n == 1:
        return torch.ones_like(gram[..., 0, 0])
    length = gram.diagonal(dim1=-2, dim2=-1).sqrt()
    cosine = gram / (length.unsqueeze(-1) * length.unsqueeze(-2)).clamp_min(torch.finfo(gram.dtype).tiny)
    return (cosine.sum((-2, -1)) - cosine.diagonal(dim1=-2, dim2=-1).sum(-1)) / (n * (n - 1))


def _trace(gram: Tensor) -> Tensor:
    return gram.diagonal(dim1=-2, dim2=-1).sum(-1).clamp_min(torch.finfo(gram.dtype).tiny)


def _difference(gram: Tensor) -> Tensor:
    return (1 - gram.mean((-2, -1)) * gram.shape[-1] / _trace(gram)).clamp_min(0)


def _participation(gram: Tensor) -> Tensor:
    return _trace(gram).square() / gram.square().sum((-2, -1)).clamp_min(torch.finfo(gram.dtype).tiny)


def _entropy(weights: Tensor) -> Tensor:
    magnitude = weights.abs()
    share = magnitude / magnitude.sum(-1, keepdim=True).clamp_min(torch.finfo(weights.dtype).tiny)
    return torch.special.entr(share).sum(-1)


def _share_of_largest(weights: Tensor, count: int) -> float:
    """Mean entropy over its largest value, where so many weights may differ from zero; 1 where there is but one."""
    return float(_entropy(weights).mean()) / math.log(count) if count > 1 else 1.0
