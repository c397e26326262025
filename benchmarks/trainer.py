"""The trainer of the task benchmarks: one arm, all its seeds side by side, by AdamW with warm-up and a cosine."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state

from benchmarks.arc.arms import Arm
from jpmhc import layers

_POINTS = 20


@dataclass(frozen=True)
class Schedule:
    """The optimisation.

    Attributes
    ----------
    steps, batch : int
        Optimiser steps and samples of each.
    lr, final_lr, warmup : float, float, int
        Highest and last rate, steps of linear warm-up; a cosine between.
    weight_decay, clip : float, float
        Decay of matrices that mix no streams, and the largest norm of the gradient.
    betas : tuple of (float, float)
        Of AdamW.
    """

    steps: int
    batch: int
    lr: float = 1e-3
    final_lr: float = 1e-4
    warmup: int = 100
    weight_decay: float = 0.1
    clip: float = 1.0
    betas: tuple[float, float] = (0.9, 0.95)

    def rate(self, step: int) -> float:
        """Return the rate of a step, counted from 0."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        progress = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.final_lr + (self.lr - self.final_lr) * (1 + math.cos(math.pi * progress)) / 2


class Problem(Protocol):
    """What is learned: data, loss and scores.

    Attributes
    ----------
    name : str
        Of the problem.
    measure : str
        Name of the score that decides.
    relative : bool
        Whether arms are compared by the ratio of that score (an error, lower is better) or by its difference.
    schedule : Schedule
        The optimisation.
    references : dict of str to float
        Values of the measure that need no training, for example copying the input.
    facts : dict
        What else a result must say: sizes, hashes, published numbers; JSON values.
    """

    name: str
    measure: str
    relative: bool
    schedule: Schedule
    references: dict[str, float]
    facts: dict[str, Any]

    def supports(self, arm: Arm) -> bool:
        """Whether the arm can be trained on this problem."""

    def build(self, arm: Arm, seed: int) -> nn.Module:
        """Return the network of an arm."""

    def batch(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw a training batch, on the CPU."""

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the mean loss."""

    def evaluate(self, predict: Callable[[Tensor], Tensor]) -> list[dict[str, float]]:
        """Return every network's scores on the held-out data.

        ``predict`` maps inputs (B, ...) on the CPU to the outputs (networks, B, ...), float32 on the CPU.
        """


class Networks:
    """The networks of one arm, one a seed, as a single batched one.

    Parameters
    ----------
    models : sequence of Module
        Of the same shapes.
    device : str
        Where they live; CUDA computes in bfloat16.
    compiled : bool
        Whether to compile the forward.
    """

    def __init__(self, models: Sequence[nn.Module], device: str, compiled: bool) -> None:
        self.device = torch.device(device)
        self.model = models[0].to(self.device)
        self.parameters, self.buffers = stack_module_state([model.to(self.device) for model in models])
        self.forward = self._one_by_one(torch.compile(self._single)) if compiled else torch.vmap(self._single)

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map a batch for each network (k, B, ...) to outputs, float32, and what the mixers add to the loss (k)."""
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.device.type == "cuda"):
            output, penalty = self.forward(self.parameters, self.buffers, x)
        return output.float(), penalty

    def _single(self, parameters: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
        output = functional_call(self.model, (parameters, buffers), (x,))
        penalty = output.new_zeros(())
        for module in self.model.modules():
            if getattr(module, "penalty", None) is not None:
                penalty = penalty + module.penalty
                # It belongs to this call of vmap and must not outlive it.
                module.penalty = None
        return output, penalty

    @staticmethod
    def _one_by_one(single: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., tuple[Tensor, Tensor]]:
        """Return what vmap would compute, without vmap, which takes minutes to compile."""

        def forward(parameters: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
            results = [
                single({k: v[i] for k, v in parameters.items()}, {k: v[i] for k, v in buffers.items()}, x[i])
                for i in range(len(x))
            ]
            outputs, penalties = zip(*results, strict=True)
            return torch.stack(outputs), torch.stack(penalties)

        return forward

    def groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Return the optimiser's groups: no decay for vectors and for what mixes streams."""
        mixing = {id(p) for p in layers.mixing_parameters(self.model)}
        shapes = dict(self.model.named_parameters())
        decayed = [name for name, p in shapes.items() if p.ndim >= 2 and id(p) not in mixing]
        return [
            {"params": [self.parameters[name] for name in decayed], "weight_decay": weight_decay},
            {"params": [p for name, p in self.parameters.items() if name not in decayed], "weight_decay": 0.0},
        ]

    @torch.no_grad()
    def clip_gradients(self, largest: float) -> Tensor:
        """Scale every network's gradient to a norm of at most that, and return the norms (k) before."""
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        norms = sum(g.flatten(1).square().sum(1) for g in gradients).sqrt()
        scale = (largest / (norms + 1e-6)).clamp(max=1.0)
        for g in gradients:
            g.mul_(scale.view(-1, *[1] * (g.ndim - 1)))
        return norms

    def count(self) -> dict[str, int]:
        """Return how many numbers one network trains, and how many of them mix streams."""
        mixing = layers.mixing_parameters(self.model)
        return {
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "mixing_parameters": sum(p.numel() for p in mixing),
        }


def train(
    problem: Problem, arm: Arm, seeds: Sequence[int], device: str = "cpu", compiled: bool = False
) -> list[dict[str, Any]]:
    """Train one arm with every seed, and evaluate it.

    Parameters
    ----------
    problem : Problem
        What is learned.
    arm : Arm
        Residual.
    seeds : sequence of int
        Each of the initial weights and the order of the samples of one network: arms of one seed see the same batches.
        The result depends on the arguments alone; a seed's, on its neighbours by round-off.
    device : str
        Where to train; CUDA runs in bfloat16.
    compiled : bool
        Whether to compile the networks.

    Returns
    -------
    list of dict
        For every seed ``seed``; ``scores``; ``loss``, the training loss averaged over each of 20 stretches (fewer for
        short runs); ``gradient_tail``, the 99th percentile of the gradient norm over its median; ``parameters`` and
        ``mixing_parameters``. A seed whose loss or gradient was not finite has a ``fault`` instead of scores.
    """
    schedule = problem.schedule
    networks = Networks([problem.build(arm, seed) for seed in seeds], device, compiled)
    optimiser = torch.optim.AdamW(networks.groups(schedule.weight_decay), lr=schedule.lr, betas=schedule.betas)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    losses, norms = [], []
    for step in range(schedule.steps):
        for group in optimiser.param_groups:
            group["lr"] = schedule.rate(step)
        drawn = [problem.batch(generator) for generator in generators]
        x, target = (torch.stack(part).to(networks.device) for part in zip(*drawn, strict=True))
        output, penalty = networks(x)
        loss = torch.stack([problem.loss(o, t) for o, t in zip(output, target, strict=True)])
        optimiser.zero_grad(set_to_none=True)
        (loss + penalty).sum().backward()
        norms.append(networks.clip_gradients(schedule.clip))
        losses.append(loss.detach())
        optimiser.step()

    @torch.no_grad()
    def predict(inputs: Tensor) -> Tensor:
        everywhere = inputs.to(networks.device).expand(len(seeds), *inputs.shape)
        return networks(everywhere)[0].cpu()

    networks.model.eval()
    curves = [torch.stack(values, 1).cpu().numpy() for values in (losses, norms)]
    scores = problem.evaluate(predict)
    return [
        {"seed": seed, **_result(*(curve[i] for curve in curves), scores[i]), **networks.count()}
        for i, seed in enumerate(seeds)
    ]


def _result(loss: np.ndarray, norm: np.ndarray, scores: dict[str, float]) -> dict[str, Any]:
    for name, values in (("loss", loss), ("gradient", norm)):
        broken = ~np.isfinite(values)
        if broken.any():
            return {"fault": f"the {name} is {values[broken][0]} at step {int(broken.argmax()) + 1}"}
    return {
        "scores": scores,
        "loss": [float(part.mean()) for part in np.array_split(loss, min(_POINTS, len(loss)))],
        "gradient_tail": float(np.quantile(norm, 0.99) / np.median(norm)),
    }
