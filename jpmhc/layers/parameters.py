"""The parameters that mix streams, told apart from those of the branches."""

from collections.abc import Iterator

from torch import nn

from jpmhc.layers.heads import StreamEmbedding, StreamHead
from jpmhc.layers.hyper_connection import HyperConnection


def mixing_parameters(module: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that make read, write and mixer, of every hyper-connection inside a module.

    Weight decay pulls them towards raw = 0, which is no prior at all for most charts (it alone contracts a Sinkhorn
    mixer): give them to the optimiser without it. Stream embeddings and heads are among them, the parameters of the
    branches are not. They are found by walking the modules, so copying, moving, replacing or parametrising
    parameters loses none.

    Parameters
    ----------
    module : Module
        Any module.

    Returns
    -------
    list of Parameter
        Each once, in the order of ``module.modules()``.

    Examples
    --------
    >>> import torch
    >>> from jpmhc import layers
    >>> model = torch.nn.Sequential(layers.HyperConnection(8, torch.nn.Linear(8, 8)))
    >>> mixing = set(layers.mixing_parameters(model))
    >>> groups = [
    ...     {"params": [p for p in model.parameters() if p not in mixing], "weight_decay": 0.1},
    ...     {"params": [p for p in model.parameters() if p in mixing], "weight_decay": 0.0},
    ... ]
    >>> [len(group["params"]) for group in groups]
    [2, 3]
    """
    found: dict[nn.Parameter, None] = {}
    for layer in module.modules():
        if isinstance(layer, HyperConnection | StreamEmbedding | StreamHead):
            found.update(dict.fromkeys(_outside_branch(layer)))
    return list(found)


def _outside_branch(layer: nn.Module) -> Iterator[nn.Parameter]:
    """Yield all parameters but the branch's, those that torch.nn.utils.parametrize put into modules of its own too."""
    branch = getattr(layer, "branch", None)
    inside = set(branch.modules()) if isinstance(branch, nn.Module) else set()
    for module in layer.modules():
        if module not in inside:
            yield from (parameter for parameter in module._parameters.values() if parameter is not None)
