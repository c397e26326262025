"""Parameter groups of a model: what weight decay is for, and what it would only distort."""

from __future__ import annotations

from typing import Any

from torch import nn

from jpmhc.layers import mixing_parameters
from jpmhc.manifolds import lost_parameters
from jpmhc.optim.parameters import manifold_of


def parameter_groups(
    model: nn.Module, *, lr: float | None = None, weight_decay: float | None = None
) -> list[dict[str, Any]]:
    """Return two groups: parameters with weight decay, and those of mixers and on manifolds without.

    Weight decay pulls raw mixing numbers towards a point that is no prior, and a point on a manifold off it.

    Parameters
    ----------
    model : Module
        Any model, with or without hyper-connections.
    lr, weight_decay : float, optional
        Options of the groups; without them the optimiser's own apply. The second group's weight decay is always 0.

    Returns
    -------
    list of dict
        For any ``torch.optim.Optimizer``: ``params`` and their ``param_names``, everything else first. Every parameter
        of the model is in one of them, once; a group may be empty.

    Raises
    ------
    TypeError
        If the model is no module, or a parameter of it was given a manifold and has lost it (FSDP does this).

    Examples
    --------
    >>> import torch
    >>> from jpmhc import layers, optim
    >>> model = torch.nn.Sequential(layers.HyperConnection(8, torch.nn.Linear(8, 8)))
    >>> for group in optim.parameter_groups(model, lr=1e-3, weight_decay=0.1):
    ...     print(group["weight_decay"], group["param_names"])
    0.1 ['0.branch.weight', '0.branch.bias']
    0.0 ['0.static', '0.projection', '0.scale']
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    if lost := lost_parameters(model):
        raise TypeError(
            "model: expected parameters that kept their manifold, got plain tensors or shards for "
            f"{', '.join(lost)}; leave them out of sharding with manifolds.unsharded_parameters"
        )
    mixing = {id(parameter) for parameter in mixing_parameters(model)}
    options = {} if lr is None else {"lr": lr}
    decay = {} if weight_decay is None else {"weight_decay": weight_decay}
    groups: list[dict[str, Any]] = [
        {"params": [], "param_names": [], **options, **decay},
        {"params": [], "param_names": [], **options, "weight_decay": 0.0},
    ]
    for name, parameter in model.named_parameters():
        group = groups[id(parameter) in mixing or manifold_of(parameter) is not None]
        group["params"].append(parameter)
        group["param_names"].append(name)
    return groups
