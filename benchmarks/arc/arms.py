"""An arm of the experiment: the residual it uses, written `plain`, `RECIPE`, `MIXER` or `MIXER:argument=value,...`.

A recipe is a published layer with its own gate, norm and start. The arguments of a mixer are its own and the layer's
`OPTIONS`, so that a gate and a norm can be changed under a fixed mixer, or a mixer under a fixed gate and norm.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from jpmhc import layers

OPTIONS = ("gate", "norm", "projection", "dynamic", "static")


@dataclass(frozen=True)
class Arm:
    """A parsed arm.

    Attributes
    ----------
    text : str
        As the user wrote it.
    mixer : str or None
        Name of the mixer; None is the plain residual.
    arguments : dict
        Of the mixer.
    options : dict
        Of the layer around it: those of `OPTIONS` that were given.
    recipe : str or None
        Name of the published layer; then there is no mixer of one's own choice.
    """

    text: str
    mixer: str | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    recipe: str | None = None

    @classmethod
    def parse(cls, text: str) -> Arm:
        """Read an arm.

        Raises
        ------
        ValueError
            For an unknown mixer or arguments that cannot be read.

        Examples
        --------
        >>> Arm.parse("cayley:step=0.1")
        Arm(text='cayley:step=0.1', mixer='cayley', arguments={'step': 0.1}, options={}, recipe=None)
        >>> Arm.parse("cayley:gate='sigmoid',norm='layer'").options
        {'gate': 'sigmoid', 'norm': 'layer'}
        >>> Arm.parse("kronecker:factors=(2, 2)").arguments
        {'factors': (2, 2)}
        """
        name, _, rest = text.partition(":")
        recipes = [str(recipe) for recipe in layers.recipes()]
        if name == "plain" or name in recipes:
            if rest:
                raise ValueError(f"arm {text!r}: {name} takes no arguments")
            return cls(text, recipe=None if name == "plain" else name)
        known = [str(info) for info in layers.mixers()]
        if name not in known:
            raise ValueError(
                f"arm {text!r}: unknown, expected plain, a recipe ({', '.join(recipes)}) "
                f"or a mixer ({', '.join(known)})"
            )
        given = _arguments(text)
        options = {key: given.pop(key) for key in OPTIONS if key in given}
        return cls(text, name, given, options)

    @property
    def has_streams(self) -> bool:
        """Whether the arm has several residual streams; the plain one has not."""
        return self.mixer is not None or self.recipe is not None

    @property
    def reduction(self) -> str:
        """How the streams become one vector: the mean, or the sum where a recipe says so."""
        if self.recipe is None:
            return "mean"
        reduction = next(recipe.reduction for recipe in layers.recipes() if recipe.name == self.recipe)
        return "mean" if reduction == "unstated" else reduction

    def check(self, streams: int) -> None:
        """Raise a ValueError that names the arm if its layer cannot be made for that number of streams."""
        if not self.has_streams:
            return
        if self.reduction not in ("mean", "sum"):
            raise ValueError(f"arm {self.text!r}: it reduces its streams with a module of its own, which is not here")
        try:
            mixer = self.layer(4, None, streams, 0).mixer
        except (TypeError, ValueError) as error:
            raise ValueError(f"arm {self.text!r} with {streams} streams: {error}") from error
        if any(hasattr(parameter, "manifold") for parameter in mixer.parameters()):
            raise ValueError(
                f"arm {self.text!r}: its parameters live on a manifold, which this benchmark's optimisers would leave"
            )

    @property
    def folder(self) -> str:
        """The arm as a folder name, for example ``cayley-step0.1``."""
        return "".join(c for c in self.text.replace(":", "-").replace(",", "-") if c.isalnum() or c in "-.")

    def residual(
        self, width: int, branch: nn.Module, streams: int, index: int, *, seed: int = 0, **options: Any
    ) -> nn.Module:
        """Wrap a branch in this arm's residual; its own options go before those given here."""
        if not self.has_streams:
            return layers.Residual(branch)
        return self.layer(width, branch, streams, index, seed=seed, **options)

    def layer(
        self, width: int, branch: nn.Module | None, streams: int, index: int, *, seed: int = 0, **options: Any
    ) -> layers.HyperConnection:
        """Return the hyper-connection of this arm, which has streams; ``seed`` is of recipes that start at random."""
        if self.recipe is not None:
            # Their start is drawn from the global generator.
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(1_000_003 * seed + index)
                return layers.HyperConnection.from_recipe(
                    self.recipe, width, branch, streams=streams, layer_index=index
                )
        chosen = options | self.options
        # A published projection takes a mixer that is made with it.
        mixer: str | layers.Mixer = str(self.mixer)
        if self.arguments or chosen.get("projection", "reduced") == "reduced":
            mixer = layers.make_mixer(mixer, streams, **self.arguments)
        return layers.HyperConnection(width, branch, streams=streams, mixer=mixer, layer_index=index, **chosen)


def _arguments(text: str) -> dict[str, Any]:
    """Read what follows the name."""
    try:
        _, arguments = layers.parse_mixer(text)
    except ValueError as error:
        raise ValueError(str(error).replace("mixer", "arm", 1)) from error
    if "streams" in arguments:
        raise ValueError(f"arm {text!r}: the number of streams is the preset's")
    return arguments
