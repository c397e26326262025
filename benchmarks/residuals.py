"""The arms of the task benchmarks: the plain residual, every mixer, published layers with their own gate and norm."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from benchmarks.arc.arms import Arm
from benchmarks.edelta import Edelta
from jpmhc import layers


def _edelta(width: int, branch: nn.Module | None, **options: Any) -> layers.HyperConnection:
    return layers.HyperConnection(width, branch, mixer=Edelta(options["streams"]), norm="layer", **options)


def _recipe(name: str) -> Callable[..., layers.HyperConnection]:
    def build(width: int, branch: nn.Module | None, **options: Any) -> layers.HyperConnection:
        return layers.HyperConnection.from_recipe(name, width, branch, **options)

    return build


PUBLISHED = {"edelta": _edelta, **{str(recipe): _recipe(str(recipe)) for recipe in layers.recipes()}}


@dataclass(frozen=True)
class PublishedArm(Arm):
    """A published layer with the start of its authors, behind the calls of `Arm`."""

    def residual(
        self, width: int, branch: nn.Module | None, streams: int, index: int, **options: Any
    ) -> layers.HyperConnection:
        """Wrap a branch in this layer."""
        return PUBLISHED[self.text](width, branch, streams=streams, layer_index=index, **options)


def parse(text: str) -> Arm:
    """Read an arm: ``plain``, a published layer, ``MIXER`` or ``MIXER:argument=value,...``.

    Raises
    ------
    ValueError
        For an unknown name or arguments that cannot be read.

    Examples
    --------
    >>> parse("mhc").text, parse("cayley:step=0.1").arguments
    ('mhc', {'step': 0.1})
    """
    name, _, rest = text.partition(":")
    if name in PUBLISHED:
        if rest:
            raise ValueError(f"arm {text!r}: {name} is a published layer and takes no arguments")
        return PublishedArm(text, text)
    known = ["plain", *PUBLISHED, *(str(info) for info in layers.mixers())]
    if name not in known:
        raise ValueError(f"arm {text!r}: unknown, expected one of {', '.join(known)}")
    return Arm.parse(text)


def make_mixer(arm: Arm, streams: int) -> layers.Mixer:
    """Return the mixer of an arm that has one.

    Raises
    ------
    ValueError, TypeError
        If there is none, none for that number of streams, or one whose parameters live on a manifold.
    """
    if arm.mixer is None:
        raise ValueError(f"arm {arm.text!r}: the plain residual has no mixer")
    mixer = arm.residual(1, None, streams, 0).mixer
    if any(hasattr(parameter, "manifold") for parameter in mixer.parameters()):
        raise ValueError(f"arm {arm.text!r}: its parameters live on a manifold, which the trainer would leave")
    return mixer


def supports(arm: Arm, streams: int) -> bool:
    """Whether the arm exists for that number of streams, as `quaternion` does for four alone."""
    if arm.mixer is None:
        return True
    try:
        make_mixer(arm, streams)
    except ValueError as error:
        # What no number of streams would mend is the user's mistake.
        if "streams" in str(error):
            return False
        raise
    return True
