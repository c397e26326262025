"""The spectral recipe of the JPmHC paper as printed, to be drawn beside the right answer."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jpmhc.host import on_host
from jpmhc.layers.arguments import check_number
from jpmhc.spectrum.model import make_model


@on_host
def published(mixers: Any, noise: float, s: Tensor, *, eta: float = 0.02) -> Tensor:
    """Density of the singular values as the paper predicts it: one layer's law, raised to the power L.

    The layer's equation is right. The power treats ``J^T J`` of L layers as a free product of L laws of one layer, all
    equal to that of the first: this is exact for rotations and for the identity, and 33 to 71 % off for doubly
    stochastic mixers, whose singular vectors of consecutive layers are aligned. :func:`predict` with
    ``branch="isotropic"`` is the right answer to the same question.

    Parameters
    ----------
    mixers : Tensor, shape (L, n, n)
        Skip matrices; the recipe sees the first one and L alone.
    noise : float
        Energy ``sigma^2`` of the noise of one layer.
    s : Tensor, shape (G,)
        Places, positive.
    eta : float, default=0.02
        Distance from the real axis in ``zeta = s^2 + i eta``, as in the paper.

    Returns
    -------
    Tensor, shape (G,)
        Density with respect to ``ds``, smeared by eta; NaN where the continuation was lost.

    Raises
    ------
    ValueError
        No layer, matrices that are not square, negative noise, ``eta <= 0``, places that are not positive.

    Notes
    -----
    Equations (61), (71) and (72) of arXiv 2602.18308: for one layer ``G_1 = u mean 1 / (omega - s_i)`` with
    ``u = 1 - sigma^2 G_1``, ``omega = z_1 u^2`` and the squared singular values s_i of the mixer; for L layers
    ``z_L = z_1 (z_1 - 1 / G_1)^(L - 1)`` and ``G_L = G_1^L / (z_1 G_1 - 1)^(L - 1)``, with z_1 found by Newton's method
    along a path from large ``|z|``.
    """
    check_number("noise", noise, least=0.0)
    model = make_model(mixers, None, None, noise, "isotropic")
    if not (math.isfinite(eta) and eta > 0):
        raise ValueError(f"eta: expected a number > 0, got {eta}")
    s = torch.as_tensor(s, dtype=torch.float64).reshape(-1)
    if not (s.isfinite() & (s > 0)).all():
        raise ValueError("s: expected finite numbers > 0")
    squares = torch.linalg.svdvals(model.mixers[0].detach()).square().numpy()
    sigma2, layers = float(model.energy[0].detach()), model.layers
    transform = [_transform(squares, sigma2, layers, complex(x * x, eta)).imag for x in s.tolist()]
    return (-2 / math.pi * s * torch.tensor(transform, dtype=torch.float64)).clamp_min(0)


_PATH = 60


def _transform(squares: np.ndarray, sigma2: float, layers: int, zeta: complex) -> complex:
    """``G_L(zeta)``, followed from far up the imaginary axis in the unknowns z_1 and ``r = z_1 - 1 / G_1``."""
    mean = float(squares.mean()) + sigma2
    if mean == 0:
        return 1 / zeta
    scale = mean ** (layers - 1)
    top = 100 * max(1.0, float(squares.max()) + sigma2, zeta.real) * scale
    # Far away G_1 = 1 / z + mean / z^2, so r tends to the mean.
    unknown = np.array([complex(zeta.real, top) / scale, mean])
    for k in range(_PATH + 1):
        target = complex(zeta.real, math.exp(math.log(top) + (math.log(zeta.imag) - math.log(top)) * k / _PATH))
        for _ in range(50):
            value, slope = _equations(unknown, squares, sigma2, layers, target)
            move = np.linalg.solve(slope, value)
            size = np.abs(move / unknown).max()
            unknown = unknown - move * min(1.0, 0.5 / max(size, 1e-300))
            if size < 1e-10:
                break
        else:
            return complex(math.nan, math.nan)
    z, r = unknown
    # G_L = G_1^L / (z_1 G_1 - 1)^(L - 1), and z_1 G_1 - 1 = r G_1.
    return complex(1 / ((z - r) * r ** (layers - 1)))


def _equations(
    unknown: np.ndarray, squares: np.ndarray, sigma2: float, layers: int, target: complex
) -> tuple[np.ndarray, np.ndarray]:
    """Residuals of (61), inverted, and of the logarithm of (72), and their derivatives by z_1 and r."""
    z, r = unknown
    g = 1 / (z - r)
    u = 1 - sigma2 * g
    resolvent = 1 / (z * u * u - squares)
    mean, mean2 = resolvent.mean(), (resolvent**2).mean()
    layer = u * mean
    by_g = sigma2 * (2 * z * u * u * mean2 - mean)
    by_z = -(u**3) * mean2 - by_g * g * g
    inverse = 1 / (layer * layer)
    value = np.array([1 / layer - z + r, np.log(z / target) + (layers - 1) * np.log(r)])
    # The logarithm's sheet does not matter: only a whole turn separates them.
    value[1] = complex(value[1].real, math.remainder(value[1].imag, 2 * math.pi))
    slope = np.array([[-by_z * inverse - 1, 1 - by_g * g * g * inverse], [1 / z, (layers - 1) / r]])
    return value, slope
