"""Distances between subspaces and between rotations, from cosines and sines of their angles."""

import torch
from torch import Tensor

from jpmhc import autodiff
from jpmhc.manifolds.algebra import angle_over_sine, identity, norm, symmetric


def angle_norm(cosine: Tensor, sine: Tensor) -> Tensor:
    """Root of the sum of squared angles t, given matrices with singular values ``cos t`` and ``sin t``.

    Parameters
    ----------
    cosine, sine : Tensor, shape (..., p, p) and (..., n, p)
        With the same right singular vectors, of equal angles in [0, pi/2].

    Returns
    -------
    Tensor, shape (..., 1, 1)
        Accurate at small angles, where the sine tells, and finite at right ones. Its derivative at angles that are
        all zero is zero.

    Notes
    -----
    The norm of ``sine * f(H)``, with f from `angle_over_sine` and H the symmetric polar factor of `cosine`; one machine
    epsilon times the identity stacked below `cosine` gives H at right angles too.
    """
    ground = torch.finfo(cosine.dtype).eps * identity(cosine) + torch.zeros_like(cosine)
    stacked = torch.cat([cosine, ground], -2)
    stretch = symmetric(autodiff.polar(stacked).mT @ stacked)
    return norm(sine @ angle_over_sine(stretch), (-2, -1))
