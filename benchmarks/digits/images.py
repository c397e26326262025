"""The digits as a problem: eight rows of eight pixels are eight tokens, ten classes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import residuals
from benchmarks.arc.arms import Arm
from benchmarks.extras import require
from benchmarks.trainer import Schedule
from benchmarks.transformer import Transformer, TransformerConfig

_SPLIT_SEED = 42
_CLASSES = 10
_PIXEL_MAX = 16


@dataclass(frozen=True)
class Images:
    """Images and classes.

    Attributes
    ----------
    train, held_out : tuple of (Tensor, Tensor)
        Images (N, 8, 8) in [-1, 1], classes (N,); a quarter is held out, drawn once and for all.
    sha256 : str
        Of pixels and classes.
    """

    train: tuple[Tensor, Tensor]
    held_out: tuple[Tensor, Tensor]
    sha256: str


def images() -> Images:
    """Return scikit-learn's 1,797 digits.

    Raises
    ------
    MissingExtra
        If scikit-learn is not installed.
    """
    data = require("sklearn.datasets", "bench").load_digits()
    pixels = torch.tensor(data.images, dtype=torch.uint8)
    classes = torch.tensor(data.target, dtype=torch.int64)
    digest = hashlib.sha256(pixels.numpy().tobytes() + classes.numpy().astype("<i8").tobytes()).hexdigest()
    order = torch.randperm(len(classes), generator=torch.Generator().manual_seed(_SPLIT_SEED))
    x = pixels.float() * (2 / _PIXEL_MAX) - 1
    held_out, train = order[: len(order) // 4], order[len(order) // 4 :]
    return Images((x[train], classes[train]), (x[held_out], classes[held_out]), digest)


@dataclass
class Digits:
    """Accuracy on held-out digits.

    Attributes
    ----------
    name : str
        Of the task.
    images : Images
        Training and held-out images.
    model : TransformerConfig
        Sizes.
    schedule : Schedule
        The optimisation.
    references : dict of str to float
        Accuracy of the most frequent class, and of the nearest training image.
    facts : dict
        Sizes and the images' hash, for the result.
    """

    name: str
    images: Images
    model: TransformerConfig
    schedule: Schedule
    references: dict[str, float] = field(init=False)
    facts: dict[str, Any] = field(init=False)
    measure: str = "accuracy"
    relative: bool = False

    def __post_init__(self) -> None:
        (x, classes), (inputs, wanted) = self.images.train, self.images.held_out
        frequent = torch.bincount(classes).argmax()
        nearest = classes[torch.cdist(inputs.flatten(1), x.flatten(1)).argmin(1)]
        self.references = {
            "most_frequent": float((wanted == frequent).double().mean()),
            "nearest_image": float((wanted == nearest).double().mean()),
        }
        self.facts = {
            "model": asdict(self.model),
            "sha256": self.images.sha256,
            "train": len(x),
            "held_out": len(inputs),
        }

    def supports(self, arm: Arm) -> bool:
        """Whether the arm exists for the number of streams."""
        return residuals.supports(arm, self.model.streams)

    def build(self, arm: Arm, seed: int) -> nn.Module:
        """Return the network of an arm."""
        return Transformer(self.model, arm, lambda width: nn.Linear(8, width), _CLASSES, seed)

    def batch(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw images."""
        x, classes = self.images.train
        chosen = torch.randint(len(x), (self.schedule.batch,), generator=generator)
        return x[chosen], classes[chosen]

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the cross-entropy in nats."""
        return F.cross_entropy(output, target)

    def evaluate(self, predict: Callable[[Tensor], Tensor]) -> list[dict[str, float]]:
        """Return ``accuracy`` and ``cross_entropy`` on the held-out images."""
        x, classes = self.images.held_out
        return [
            {
                "accuracy": float((output.argmax(-1) == classes).double().mean()),
                "cross_entropy": float(F.cross_entropy(output, classes)),
            }
            for output in predict(x)
        ]
