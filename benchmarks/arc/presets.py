"""The settings of a run, and the named sizes of the experiment."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import torch

from benchmarks.arc.model import ModelConfig

PRECISIONS = ("float32", "bfloat16")


@dataclass(frozen=True)
class DataConfig:
    """Which tasks, and how they are multiplied.

    Attributes
    ----------
    sources : tuple of str
        Collections of tasks, in this order: ``"arc-agi-1"``, ``"mini-arc"``.
    max_side : int
        Tasks with a larger grid are left out.
    limit : int or None
        Most tasks taken.
    variants : int
        Variants a task at most, itself included; each has a puzzle id of its own.
    split : str
        ``"demos"`` or ``"published"``, see `dataset.Split`.
    translate : bool
        Whether training pairs move inside the square.
    buckets : tuple of int
        Sides, rising: a batch then holds tasks of one bucket and works on that corner of the square, see
        `benchmarks.arc.buckets`. Empty for the published recipe, in which every sample is the whole square.
    """

    sources: tuple[str, ...] = ("arc-agi-1",)
    max_side: int = 30
    limit: int | None = None
    variants: int = 1000
    split: str = "published"
    translate: bool = True
    buckets: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if any(type(side) is not int or side < 1 for side in self.buckets) or self.buckets != tuple(
            sorted(set(self.buckets))
        ):
            raise ValueError(
                f"buckets: expected integers of at least 1, each larger than the one before, got {self.buckets}"
            )


@dataclass(frozen=True)
class TrainConfig:
    """The optimisation; defaults are the published recipe's.

    Attributes
    ----------
    steps, batch : int
        Optimiser steps, each one segment of ``batch`` samples.
    lr, embedding_lr : float
        Of AdamATan2 and of the sign-SGD on puzzle embeddings.
    betas, weight_decay, embedding_weight_decay, warmup : (float, float), float, float, int
        AdamATan2's betas, both decoupled decays, steps of linear warm-up of both rates.
    ema : float
        Decay of the weight average that evaluation uses.
    segments : int
        Most segments a sample is worked on before it is replaced.
    exploration : float
        Probability that a sample must take a random number of segments before it may halt.
    evaluate_every, checkpoint_every : int
        Steps between evaluations and between checkpoints; both happen after the last step too.
    evaluation_batch : int
        Samples of a batch in evaluation.
    probe_every : int
        Steps between looks at the mixers and the gradient along the recursion.
    precision : str
        ``"float32"``, or ``"bfloat16"``: branches and streams under autocast; weights, coefficients and loss are not.
    compile : bool
        Whether the net is compiled.
    checkpoint_calls : bool
        Whether every net call is computed again in the backward instead of keeping its activations.
    """

    steps: int = 400_000
    batch: int = 768
    lr: float = 1e-4
    embedding_lr: float = 1e-2
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.1
    embedding_weight_decay: float = 0.1
    warmup: int = 2000
    ema: float = 0.999
    segments: int = 16
    exploration: float = 0.1
    evaluate_every: int = 40_000
    checkpoint_every: int = 2_000
    evaluation_batch: int = 768
    probe_every: int = 1_000
    precision: str = "float32"
    compile: bool = False
    checkpoint_calls: bool = False

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision: expected one of {PRECISIONS}, got {self.precision!r}")

    @property
    def stream_dtype(self) -> torch.dtype:
        """Of the streams and latents."""
        return torch.bfloat16 if self.precision == "bfloat16" else torch.float32


@dataclass(frozen=True)
class Preset:
    """A size of the experiment: data, model and optimisation."""

    name: str
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        if self.data.buckets and self.data.buckets[-1] > self.model.side:
            raise ValueError(
                f"buckets: expected none above the side of the square, {self.model.side}, got {self.data.buckets}"
            )

    def changed(self, **changes: Any) -> Preset:
        """Return the preset with other settings, each by its own name; None leaves one as it is.

        Raises
        ------
        ValueError
            For a name that no part has, a number below one, or a choice that there is not.
        """
        parts: dict[str, dict[str, Any]] = {}
        for name, value in changes.items():
            if value is None:
                continue
            holder = next((part for part in ("data", "model", "train") if hasattr(getattr(self, part), name)), None)
            if holder is None:
                raise ValueError(f"{name}: no setting of a preset")
            if isinstance(value, int) and not isinstance(value, bool) and value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
            parts.setdefault(holder, {})[name] = value
        # All of a part at once: some settings are only right together.
        return dataclasses.replace(
            self, **{part: dataclasses.replace(getattr(self, part), **own) for part, own in parts.items()}
        )

    def to_json(self) -> dict[str, Any]:
        """Return the settings as nested dicts of JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Preset:
        """Read what `to_json` wrote."""
        train = {**value["train"], "betas": tuple(value["train"]["betas"])}
        # Settings that older files do not have yet keep their defaults.
        tuples = {name: tuple(value["data"].get(name, getattr(DataConfig, name))) for name in ("sources", "buckets")}
        data = {**value["data"], **tuples}
        return cls(value["name"], DataConfig(**data), ModelConfig(**value["model"]), TrainConfig(**train))


# A small model learns in minutes only with rates far above the recipe's and without its long warm-up.
_SMALL = {"lr": 2e-3, "embedding_lr": 2e-2, "warmup": 20, "ema": 0.98, "segments": 2}
_FAST = {
    **_SMALL, "lr": 3e-3, "embedding_lr": 3e-2, "warmup": 10, "evaluate_every": 300, "checkpoint_every": 50,
    "evaluation_batch": 256, "probe_every": 20,
}  # fmt: skip

PRESETS = {
    preset.name: preset
    for preset in (
        Preset(
            "smoke",
            DataConfig(max_side=3, limit=3, variants=2, split="demos", translate=False),
            ModelConfig(side=3, width=32, heads=2, inner=64, h_cycles=2, l_cycles=1, prefix=2, streams=2),
            TrainConfig(**_SMALL, steps=40, batch=16, evaluate_every=40, checkpoint_every=10, evaluation_batch=64),
        ),
        Preset(
            "demo",
            DataConfig(max_side=5, variants=2, split="demos", translate=False),
            ModelConfig(side=5, width=64, heads=4, inner=192, h_cycles=2, l_cycles=2, prefix=4),
            TrainConfig(**_SMALL, steps=300, batch=64, evaluate_every=300, checkpoint_every=100, evaluation_batch=256),
        ),
        Preset(
            "small",
            DataConfig(("mini-arc",), max_side=5, variants=1, split="demos", translate=False),
            ModelConfig(side=5, width=64, heads=4, inner=192, h_cycles=2, l_cycles=2, prefix=1),
            TrainConfig(**_FAST, steps=300, batch=32),
        ),
        Preset(
            "small-arc",
            DataConfig(max_side=6, variants=1, split="demos", translate=False),
            ModelConfig(side=6, width=64, heads=4, inner=192, h_cycles=2, l_cycles=2, prefix=1),
            TrainConfig(**_FAST, steps=300, batch=32),
        ),
        # Every mixer is static here, as in the prototype whose finding this size is to confirm or refute: the
        # gradient passes 84 mixers, of which 4 differ.
        Preset(
            "deep",
            DataConfig(("mini-arc",), max_side=5, limit=40, variants=1, split="demos", translate=False),
            ModelConfig(
                side=5, width=32, heads=2, inner=96, h_cycles=3, l_cycles=6, prefix=1, gradient_cycles=3, dynamic=False
            ),
            TrainConfig(**_FAST, steps=160, batch=32),
        ),
        # One large GPU, about ten minutes an arm: the real model on grids up to 10 x 10, a shortened schedule.
        Preset(
            "gpu",
            DataConfig(max_side=10, variants=8, split="demos", translate=False),
            ModelConfig(side=10),
            TrainConfig(
                steps=6_000,
                batch=256,
                lr=5e-4,
                warmup=200,
                ema=0.995,
                evaluate_every=1_000,
                checkpoint_every=500,
                evaluation_batch=1_024,
                probe_every=500,
                precision="bfloat16",
                compile=True,
                checkpoint_calls=True,
            ),
        ),
        # The published recipe. 800 groups give 401 k steps, 960 with ConceptARC 519 k: see --steps.
        Preset("full", train=TrainConfig(precision="bfloat16", compile=True, checkpoint_calls=True)),
    )
}


def preset(name: str) -> Preset:
    """Return a preset by name.

    Raises
    ------
    ValueError
        For an unknown name.
    """
    if name not in PRESETS:
        raise ValueError(f"preset: unknown name {name!r}, expected one of {', '.join(PRESETS)}")
    return PRESETS[name]
