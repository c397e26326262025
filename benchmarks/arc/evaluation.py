"""What a set of weights answers: held-out tests in every variant with a vote, training pairs as they stand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.arc.arms import Arm
from benchmarks.arc.dataset import ArcData
from benchmarks.arc.encode import decode
from benchmarks.arc.model import TinyRecursiveModel
from benchmarks.arc.presets import Preset
from benchmarks.arc.vote import Score, mean_score, task_pass_at, token_accuracy, vote

_ATTEMPTS = (1, 2)


class Predictor:
    """Weights as :meth:`Trainer.weights` returns them, ready to answer.

    Parameters
    ----------
    preset : Preset
        Settings the weights were trained with.
    arm : Arm
        Residual they were trained with.
    weights : dict of Tensor
        Averaged weights, buffers and the puzzle table.
    device : torch.device or str
        Where the model runs.
    """

    def __init__(
        self, preset: Preset, arm: Arm, weights: dict[str, Tensor], device: torch.device | str = "cpu"
    ) -> None:
        self.settings = preset.train
        self.device = torch.device(device)
        self.model = TinyRecursiveModel(preset.model, arm, seed=0).to(self.device)
        self.model.load_state_dict({name: value for name, value in weights.items() if name != "table"})
        self.table = weights["table"].to(self.device)

    @torch.no_grad()
    def __call__(self, inputs: np.ndarray, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Answer encoded inputs (N, L) under puzzle ids (N,): tokens (N, L) and halting probabilities (N,).

        Every sample gets all the segments, whatever its halting logit says.
        """
        tokens, scores = [], []
        for start in range(0, len(ids), self.settings.evaluation_batch):
            chunk = slice(start, start + self.settings.evaluation_batch)
            batch = torch.from_numpy(inputs[chunk]).to(self.device)
            puzzle = self.table[torch.from_numpy(ids[chunk]).to(self.device)]
            latents = self.model.initial(len(batch))
            for _ in range(self.settings.segments):
                latents, logits, halt = self.model(latents, batch, puzzle)
            tokens.append(logits.argmax(-1).to(torch.uint8).cpu().numpy())
            scores.append(halt.sigmoid().double().cpu().numpy())
        return np.concatenate(tokens), np.concatenate(scores)


def evaluate(predictor: Predictor, data: ArcData, step: int) -> dict[str, Any]:
    """Score weights on the held-out tests and on the training pairs.

    Returns
    -------
    dict
        ``held_out``: token accuracy and exact match of the untransformed test (mean and standard error over tests),
        pass@1 and pass@2 of the vote over all variants (mean and standard error over tasks). ``train``: token accuracy
        and exact match on the untransformed training pairs. ``predictions``: for every test its grids and the two
        best candidates. The votes are those of these weights alone.
    """
    cases = [data.variants_of(held) for held in data.held_out]
    tokens, scores = predictor(np.concatenate([c[0] for c in cases]), np.concatenate([c[2] for c in cases]))
    bounds = np.cumsum([0, *(len(c[2]) for c in cases)])
    shares, rankings, predictions = [], [], []
    for held, (_, labels, ids), start, stop in zip(data.held_out, cases, bounds, bounds[1:], strict=False):
        mine = range(start, stop)
        # The first id of a task is its identity variant.
        shares.append(token_accuracy(tokens[start : start + 1], labels[:1])[0])
        ranking = vote((tokens[i], data.augmentations[id][1], scores[i]) for i, id in zip(mine, ids, strict=True))
        rankings.append(ranking)
        canonical = decode(tokens[start], data.side)
        predictions.append(
            {
                "task": data.tasks[held.task].id,
                "test": held.test,
                "input": held.input.tolist(),
                "truth": held.output.tolist(),
                "canonical": None if canonical is None else canonical.tolist(),
                "candidates": [
                    {"grid": c.grid.tolist(), "votes": c.votes, "score": c.score} for c in ranking[: max(_ATTEMPTS)]
                ],
            }
        )
    truths, tasks = [h.output for h in data.held_out], [h.task for h in data.held_out]
    held_out = _accuracies(np.array(shares)) | {"tasks": len(set(tasks))}
    for k in _ATTEMPTS:
        held_out |= _with_error(f"pass@{k}", task_pass_at(rankings, truths, tasks, k))
    inputs, labels, ids = training_pairs(data)
    return {
        "step": step,
        "variants": max(len(c[2]) for c in cases),
        "segments": predictor.settings.segments,
        "held_out": held_out,
        "train": _accuracies(token_accuracy(predictor(inputs, ids)[0], labels)),
        "predictions": sorted(predictions, key=lambda p: (p["task"], p["test"])),
    }


def summary(evaluation: dict[str, Any]) -> dict[str, Any]:
    """Return an evaluation without its grids."""
    return {name: value for name, value in evaluation.items() if name != "predictions"}


def training_pairs(data: ArcData) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return inputs, labels and ids of the training rows that are no augmentation."""
    plain = np.array([augmentation.is_identity for _, augmentation in data.augmentations])[data.ids]
    return data.inputs[plain], data.labels[plain], data.ids[plain]


def copy_scores(data: ArcData) -> dict[str, Any]:
    """Score the answer "the output is the input" on the held-out tests and on the training pairs.

    The floor under every token accuracy: outputs resemble their inputs so much that this gets 60 % of all labelled
    tokens of ARC-AGI-1 right, without having understood anything.
    """
    cases = [data.variants_of(held) for held in data.held_out]
    inputs, labels = np.concatenate([c[0][:1] for c in cases]), np.concatenate([c[1][:1] for c in cases])
    train_inputs, train_labels, _ = training_pairs(data)
    return {
        "held_out": _accuracies(token_accuracy(inputs, labels)),
        "train": _accuracies(token_accuracy(train_inputs, train_labels)),
    }


def _accuracies(shares: np.ndarray) -> dict[str, Any]:
    return {
        "count": len(shares),
        **_with_error("token_accuracy", mean_score(shares.tolist())),
        **_with_error("exact", mean_score((shares == 1).astype(float).tolist())),
    }


def _with_error(name: str, score: Score) -> dict[str, float | None]:
    # JSON has no NaN, and one value has no standard error.
    error = None if math.isnan(score.standard_error) else score.standard_error
    return {name: score.mean, f"{name}_se": error}
