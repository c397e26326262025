"""An arm of the experiment: the residual it uses, written `plain`, `MIXER` or `MIXER:argument=value,...`."""

from __future__ import annotations

import ast
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from jpmhc import layers


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
    """

    text: str
    mixer: str | None = None
    arguments: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> Arm:
        """Read an arm.

        Raises
        ------
        ValueError
            For an unknown mixer or an argument it does not take.

        Examples
        --------
        >>> Arm.parse("cayley:step=0.1")
        Arm(text='cayley:step=0.1', mixer='cayley', arguments={'step': 0.1})
        """
        name, _, rest = text.partition(":")
        if name == "plain":
            if rest:
                raise ValueError(f"arm {text!r}: plain takes no arguments")
            return cls(text)
        known = [str(info) for info in layers.mixers()]
        if name not in known:
            raise ValueError(f"arm {text!r}: unknown, expected plain or one of {', '.join(known)}")
        arguments = {}
        for item in filter(None, rest.split(",")):
            key, equals, value = item.partition("=")
            if not equals:
                raise ValueError(f"arm {text!r}: expected argument=value, got {item!r}")
            try:
                arguments[key] = ast.literal_eval(value)
            except (ValueError, SyntaxError):
                arguments[key] = value
        try:
            layers.make_mixer(name, 2, **arguments)
        except TypeError as error:
            raise ValueError(f"arm {text!r}: {error}") from error
        return cls(text, name, arguments)

    @property
    def folder(self) -> str:
        """The arm as a folder name, for example ``cayley-step0.1``."""
        return self.text.replace(":", "-").replace("=", "").replace(",", "-")

    def residual(self, width: int, branch: nn.Module, streams: int, index: int) -> nn.Module:
        """Wrap a branch in this arm's residual."""
        if self.mixer is None:
            return layers.Residual(branch)
        mixer = layers.make_mixer(self.mixer, streams, **self.arguments)
        return layers.HyperConnection(width, branch, streams=streams, mixer=mixer, layer_index=index)
