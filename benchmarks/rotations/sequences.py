"""The rotation tasks as problems: a transformer predicts the next vector of a trajectory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import residuals
from benchmarks.arc.arms import Arm
from benchmarks.trainer import Schedule
from benchmarks.transformer import Transformer, TransformerConfig

_CHUNK = 256


@dataclass
class NextVector:
    """Mean squared error of the next vector.

    Attributes
    ----------
    name : str
        Of the task.
    model : TransformerConfig
        Sizes.
    schedule : Schedule
        The optimisation.
    train, held_out : tuple of (Tensor, Tensor)
        Inputs and targets, each (N, T, dim).
    references : dict of str to float
        ``copy`` is the error of predicting the input, on the held-out data; ``floor`` the least possible in
        expectation.
    facts : dict
        Sizes and published numbers, for the result.
    """

    name: str
    model: TransformerConfig
    schedule: Schedule
    train: tuple[Tensor, Tensor]
    held_out: tuple[Tensor, Tensor]
    references: dict[str, float] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    measure: str = "mse"
    relative: bool = True

    def __post_init__(self) -> None:
        x, target = (part.double() for part in self.held_out)
        self.references = {"copy": float((x - target).square().mean()), **self.references}
        sizes = {"train": len(self.train[0]), "held_out": len(x), "length": x.shape[1], "dim": x.shape[2]}
        self.facts = {"model": asdict(self.model), **sizes, **self.facts}

    def supports(self, arm: Arm) -> bool:
        """Whether the arm exists for the number of streams."""
        return residuals.supports(arm, self.model.streams)

    def build(self, arm: Arm, seed: int) -> nn.Module:
        """Return the network of an arm."""
        dim = self.train[0].shape[-1]
        return Transformer(self.model, arm, lambda width: nn.Linear(dim, width), dim, seed)

    def batch(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw trajectories."""
        chosen = torch.randint(len(self.train[0]), (self.schedule.batch,), generator=generator)
        return self.train[0][chosen], self.train[1][chosen]

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the mean squared error."""
        return F.mse_loss(output, target)

    def evaluate(self, predict: Callable[[Tensor], Tensor]) -> list[dict[str, float]]:
        """Return ``mse``, over all held-out trajectories."""
        x, target = self.held_out
        outputs = torch.cat([predict(part) for part in x.split(_CHUNK)], 1)
        return [{"mse": float((output.double() - target).square().mean())} for output in outputs]
