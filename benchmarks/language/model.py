"""The language task as a problem: predict the next character."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import residuals
from benchmarks.arc.arms import Arm
from benchmarks.language.text import ALPHABET, Corpus, count_models
from benchmarks.trainer import Schedule
from benchmarks.transformer import Transformer, TransformerConfig

_CHUNK = 32


@dataclass
class NextCharacter:
    """Bits a character on held-out text.

    Attributes
    ----------
    name : str
        Of the task.
    text : Corpus
        Training and held-out text.
    model : TransformerConfig
        Sizes.
    schedule : Schedule
        The optimisation.
    windows : int
        Held-out windows of ``model.length`` characters, at equal distances.
    references : dict of str to float
        Bits a character of counting, see `count_models`.
    facts : dict
        Sizes and the text's hash, for the result.
    """

    name: str
    text: Corpus
    model: TransformerConfig
    schedule: Schedule
    windows: int
    references: dict[str, float] = field(init=False)
    facts: dict[str, Any] = field(init=False)
    measure: str = "bits_per_character"
    relative: bool = False

    def __post_init__(self) -> None:
        self.references = count_models(self.text)
        self.facts = {
            "model": asdict(self.model),
            "sha256": self.text.sha256,
            "train": len(self.text.train),
            "held_out": len(self.text.held_out),
            "windows": self.windows,
        }

    def supports(self, arm: Arm) -> bool:
        """Whether the arm exists for the number of streams."""
        return residuals.supports(arm, self.model.streams)

    def build(self, arm: Arm, seed: int) -> nn.Module:
        """Return the network of an arm."""
        return Transformer(self.model, arm, lambda width: nn.Embedding(len(ALPHABET), width), len(ALPHABET), seed)

    def batch(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw windows of the training text."""
        starts = torch.randint(len(self.text.train) - self.model.length, (self.schedule.batch, 1), generator=generator)
        return self._window(self.text.train, starts)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the cross-entropy in nats."""
        return F.cross_entropy(output.flatten(0, -2), target.flatten())

    def evaluate(self, predict: Callable[[Tensor], Tensor]) -> list[dict[str, float]]:
        """Return ``bits_per_character`` over the held-out windows."""
        last = len(self.text.held_out) - self.model.length - 1
        starts = torch.linspace(0, last, self.windows).long().unsqueeze(1)
        x, target = self._window(self.text.held_out, starts)
        totals: list[float] | None = None
        for inputs, wanted in zip(x.split(_CHUNK), target.split(_CHUNK), strict=True):
            losses = [float(self.loss(output, wanted)) * len(inputs) for output in predict(inputs)]
            totals = losses if totals is None else [a + b for a, b in zip(totals, losses, strict=True)]
        assert totals is not None
        return [{"bits_per_character": total / self.windows / math.log(2)} for total in totals]

    def _window(self, text: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
        places = starts + torch.arange(self.model.length)
        return text[places], text[places + 1]
