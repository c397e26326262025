"""Published hyper-connections: the choices of their authors, the start they give, and what they leave open."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from jpmhc.layers.charts.cayley import CayleyIterated
from jpmhc.layers.charts.manifold import Grassmann
from jpmhc.layers.charts.quaternion import Quaternion
from jpmhc.layers.charts.sinkhorn import Sinkhorn
from jpmhc.layers.shards import placed_like

if TYPE_CHECKING:
    from jpmhc.layers.coefficients import Coefficients


@dataclass(frozen=True)
class Recipe:
    """A published layer; ``str(recipe)`` is its name.

    Attributes
    ----------
    name : str
        What :meth:`~jpmhc.layers.HyperConnection.from_recipe` takes.
    source : str
        Where it was published.
    reduction : str
        How its authors reduce the streams at the end: ``"mean"``, ``"sum"``, ``"head"``
        (:class:`~jpmhc.layers.StreamHead`) or ``"unstated"``.
    open : str
        What the publication leaves open, and what is taken here.
    options : Callable
        ``options(streams)``, the arguments of the layer.
    start : Callable
        Fills the parameters of a layer.
    """

    name: str
    source: str
    reduction: str
    open: str
    options: Callable[[int], dict[str, Any]]
    start: Callable[[Coefficients], None]

    def __str__(self) -> str:
        return self.name


def recipes() -> list[Recipe]:
    """Every published layer that :meth:`~jpmhc.layers.HyperConnection.from_recipe` builds, by name.

    Examples
    --------
    >>> from jpmhc import layers
    >>> [str(recipe) for recipe in layers.recipes()]
    ['hc', 'hy-v4', 'jpmhc-cayley', 'jpmhc-grassmann', 'jpmhc-sinkhorn', 'mhc', 'ohc']
    """
    return [_RECIPES[name] for name in sorted(_RECIPES)]


def find_recipe(name: str) -> Recipe:
    """Return the recipe of that name.

    Raises
    ------
    ValueError
        For an unknown one.
    """
    if name not in _RECIPES:
        raise ValueError(f"recipe: unknown name {name!r}, expected one of {', '.join(sorted(_RECIPES))}")
    return _RECIPES[name]


def _raw(layer: Coefficients, read: float | Tensor, write: float, mix: float | Tensor) -> None:
    """Set the static raw numbers as the publication writes them: there the read's start is one of them."""
    preference = layer.gate.preference
    given = (torch.as_tensor(v, dtype=preference.dtype, device=preference.device) for v in (read, write, mix))
    parts = [value.expand(size) for value, size in zip(given, layer.sizes, strict=True)]
    # A single stream is read with weight 1, which the sigmoid has at infinity only.
    preference = preference.nan_to_num(posinf=0.0)
    parts[0] = parts[0] - preference.repeat(len(parts[0]) // len(preference))
    layer.static.copy_(placed_like(layer.static, torch.cat(parts)))


def _jpmhc_start(layer: Coefficients) -> None:
    _raw(layer, 0.0, 0.0, 0.0)
    nn.init.normal_(layer.projection, std=0.1 / math.sqrt(layer.projection.shape[1]))


def _mhc_start(layer: Coefficients) -> None:
    _raw(layer, 0.0, 0.0, 0.0)
    nn.init.normal_(layer.projection, std=0.02)


def _hc_start(layer: Coefficients) -> None:
    """Function-preserving already: e_k, ones, I, a projection of zero."""


def _hunyuan_start(layer: Coefficients) -> None:
    _raw(layer, -math.log(max(layer.streams - 1, 1)), 0.0, 0.0)
    nn.init.normal_(layer.projection, std=0.02)


_JPMHC = {"norm": "layer", "static": False, "scale": None, "eps": 1e-5}
_MHC = {"gate": "sigmoid", "norm": "rms"}
_OPEN = (
    "The temperature, the factor of the write and the start of the projection: 1, 1, N(0, 0.1 / sqrt(n d)). The gain "
    "of the layer norm is part of the projection, its shift left out."
)

_RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            "jpmhc-cayley",
            "arXiv 2602.18308, eq. 35-43 and algorithm 8",
            "unstated",
            _OPEN,
            lambda n: {**_JPMHC, "mixer": CayleyIterated(n, packed=False), "projection": "published"},
            _jpmhc_start,
        ),
        Recipe(
            "jpmhc-sinkhorn",
            "arXiv 2602.18308, algorithm 1 and table 1",
            "unstated",
            "All of the start: bias 0, projection N(0, 0.02), scale 0.01 as in mHC; the write is 2 sigmoid as there.",
            lambda n: {**_MHC, "mixer": Sinkhorn(n, iterations=20, clamp=10.0)},
            _mhc_start,
        ),
        Recipe(
            "jpmhc-grassmann",
            "arXiv 2602.18308, appendix J and table 9",
            "unstated",
            f"{_OPEN} Table 9 has the basis made from the token (n p numbers, taken here), appendix J a stored one "
            "that an optimiser moves (layers.Grassmann(n, stored=True)). The retraction is exact here and starts at "
            "the all-ones direction. Norm and gates are those of its Cayley arm, which the publication does not say: "
            "the 32,796 numbers of table 9 have no room for a layer norm's gain and shift, and have some for biases. "
            "Its alpha = 0.01 is the step of that optimiser, and has no place where the token makes the basis.",
            lambda n: {**_JPMHC, "mixer": Grassmann(n)},
            _jpmhc_start,
        ),
        Recipe(
            "mhc",
            "arXiv 2512.24880",
            "sum",
            "The start of bias and projection: 0 and N(0, 0.02).",
            lambda n: {**_MHC, "mixer": Sinkhorn(n, iterations=20, last="rows")},
            _mhc_start,
        ),
        Recipe(
            "hc",
            "arXiv 2409.19606, eq. 10-14",
            "sum",
            "Gain and shift of the layer norm are left out.",
            lambda n: {
                "mixer": "free",
                "gate": "tanh",
                "norm": "streams-layer",
                "projection": "shared",
                "tie_mixer_scale": True,
                "eps": 1e-5,
            },
            _hc_start,
        ),
        Recipe(
            "ohc",
            "arXiv 2609.02672",
            "sum",
            "The start of the projection, N(0, 0.02); the factor of the mixer stays at 0.01, as published. The eps in "
            "q = nu / sqrt(|nu|^2 + eps) is left out: q is a unit quaternion to round-off, 1 where nu is 0.",
            lambda n: {**_MHC, "mixer": Quaternion(n), "learn_mixer_scale": False},
            _mhc_start,
        ),
        Recipe(
            "hy-v4",
            "transformers.models.hy_v4",
            "head",
            "Nothing; the 1e-6 that it adds to both weights is left out.",
            lambda n: {**_MHC, "mixer": "identity"},
            _hunyuan_start,
        ),
    )
}
