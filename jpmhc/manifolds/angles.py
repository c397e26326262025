"""Distances between vectors, between subspaces and between rotations, from cosines and sines of their angles."""

import torch
from torch import Tensor

from jpmhc import autodiff
from jpmhc.manifolds.algebra import angle_over_sine, identity, norm, scalar_angle_over_sine, symmetric


def squared_angle(x: Tensor, y: Tensor) -> Tensor:
    """Square of the angle between unit vectors, smooth at equal ones and pi^2 at opposite ones.

    Parameters
    ----------
    x, y : Tensor, shape (..., n)
        Of length one.

    Returns
    -------
    Tensor, shape (..., 1)
        Accurate at all angles. Its derivative at opposite vectors is finite.

    Notes
    -----
    Halved angles are at most pi/2, and have the cosine ``|x + y| / 2`` and the sine ``|x - y| / 2``.
    """
    chord = y - x
    factor = scalar_angle_over_sine(norm(x + y, (-1,)) / 2)
    return (chord * chord).sum(-1, keepdim=True) * (factor * factor)


def angle_vector(cosine: Tensor, sine: Tensor) -> Tensor:
    """Matrix whose singular values are the angles t, given matrices with singular values ``cos t`` and ``sin t``.

    Parameters
    ----------
    cosine, sine : Tensor, shape (..., p, p) and (..., n, p)
        With the same right singular vectors, of equal angles in [0, pi/2].

    Returns
    -------
    Tensor, shape (..., n, p)
        Accurate at small angles, where the sine tells, and finite at right ones; its norm is the distance.

    Notes
    -----
    It is ``sine * f(H)``, with f from `angle_over_sine` and H the symmetric polar factor of `cosine`; one machine
    epsilon times the identity stacked below `cosine` gives H at right angles too.
    """
    ground = torch.finfo(cosine.dtype).eps * identity(cosine) + torch.zeros_like(cosine)
    stacked = torch.cat([cosine, ground], -2)
    stretch = symmetric(autodiff.polar(stacked).mT @ stacked)
    return sine @ angle_over_sine(stretch)
