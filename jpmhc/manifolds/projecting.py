"""Weights that were averaged or written to as plain numbers, brought back to their manifolds."""

import torch
from torch import nn

from jpmhc.kernels.precision import full_precision
from jpmhc.manifolds.arguments import check_dtype
from jpmhc.manifolds.parameter import bound_parameters


@torch.no_grad()
def project_(module: nn.Module) -> None:
    """Project all parameters of a module onto their manifolds, in place: after averaging weights, for one.

    Parameters
    ----------
    module : Module
        Any; its other parameters are left alone.

    Raises
    ------
    ValueError
        If a parameter has no nearest point (dependent columns, a vector of zeros). Nothing is written then.

    Notes
    -----
    An average is moved by what it was off: the mean of points that are near each other is near the manifold. Those of
    `Simplex` and `Birkhoff` are points already; of subspaces it is that of their representatives that is averaged,
    which a training run moves smoothly.

    Examples
    --------
    >>> import torch
    >>> from jpmhc import manifolds
    >>> module = torch.nn.Linear(3, 3)
    >>> so = manifolds.SpecialOrthogonal()
    >>> module.weight = manifolds.Parameter(so.random(3, 3, generator=torch.Generator().manual_seed(0)), so)
    >>> averaged = torch.optim.swa_utils.AveragedModel(module)
    >>> averaged.update_parameters(module)
    >>> module.weight.data.copy_(so.origin(3, 3))  # what a training step does
    tensor([[1., 0., 0.],
            [0., 1., 0.],
            [0., 0., 1.]])
    >>> averaged.update_parameters(module)
    >>> manifolds.lost_parameters(averaged, values=True)
    ['module.weight']
    >>> manifolds.project_(averaged)
    >>> manifolds.lost_parameters(averaged, values=True)
    []
    """
    projected = []
    for name, parameter in bound_parameters(module):
        check_dtype(name, parameter)
        with full_precision(parameter.device):
            point = parameter.manifold.projx(parameter.detach())
        if not point.is_meta and not torch.isfinite(point).all():
            raise ValueError(f"{name}: expected values that have a nearest point on {parameter.manifold}, got none")
        projected.append((parameter, point))
    for parameter, point in projected:
        parameter.copy_(point)
