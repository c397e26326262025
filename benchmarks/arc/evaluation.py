"""What a set of weights answers: held-out tests in every variant with a vote, training pairs as they stand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.arc import buckets, processes
from benchmarks.arc.arms import Arm
from benchmarks.arc.dataset import ArcData
from benchmarks.arc.encode import VOCAB, decode, encode
from benchmarks.arc.model import TinyRecursiveModel
from benchmarks.arc.presets import Preset
from benchmarks.arc.vote import Ballot, Score, ballot, clustered, mean_score, pass_at, pool, token_accuracy, vote

ATTEMPTS = (1, 2, 5, 10, 100, 1000)
SUBMITTED = 2  # candidates with their grids kept: as many as ARC takes


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
    sides : ndarray of int, shape (num_ids,), optional
        Bucket in which the samples of every puzzle id were trained, see `buckets.id_sides`; without it every sample is
        the whole square.
    """

    def __init__(
        self,
        preset: Preset,
        arm: Arm,
        weights: dict[str, Tensor],
        device: torch.device | str = "cpu",
        sides: buckets.Sides | None = None,
    ) -> None:
        self.settings, self.buckets, self.sides = preset.train, preset.data.buckets, sides
        self.device = torch.device(device)
        self.model = TinyRecursiveModel(preset.model, arm, seed=0).to(self.device)
        try:
            self.model.load_state_dict({name: value for name, value in weights.items() if name != "table"})
        except RuntimeError as error:
            first = str(error).splitlines()[1].strip()
            raise ValueError(f"the weights are not of arm {arm.text!r} at this size ({first})") from error
        self.table = weights["table"].to(self.device)

    def __call__(self, inputs: np.ndarray, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Answer encoded inputs (N, L) under puzzle ids (N,): tokens (N, L) and halting probabilities (N,).

        Every sample gets all the segments, whatever its halting logit says. Several processes share the samples.

        With buckets a sample is answered in that of its task, or in a larger one where its input asks for it. What is
        outside is answered by `PAD`; the true output plays no part, and may be larger.
        """
        if self.sides is None:
            return self._answer(inputs, ids)
        sides = np.maximum(self.sides[ids], buckets.holding(inputs, self.buckets))
        tokens, scores = np.empty_like(inputs), np.empty(len(ids))
        for side in np.unique(sides).tolist():
            here = sides == side
            found, scores[here] = self._answer(buckets.crop(inputs[here], side), ids[here])
            tokens[here] = buckets.widen(found, self.model.config.side)
        return tokens, scores

    @torch.no_grad()
    def _answer(self, inputs: np.ndarray, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Answer inputs of one side."""
        side = round(inputs.shape[1] ** 0.5)
        mine = processes.share(len(ids))
        tokens = torch.zeros(0, inputs.shape[1], dtype=torch.uint8, device=self.device)
        scores = torch.zeros(0, dtype=torch.float64, device=self.device)
        for start in range(mine.start, mine.stop, self.settings.evaluation_batch):
            chunk = slice(start, min(start + self.settings.evaluation_batch, mine.stop))
            batch = torch.from_numpy(inputs[chunk]).to(self.device)
            puzzle = self.table[torch.from_numpy(ids[chunk]).to(self.device)]
            latents = self.model.initial(len(batch), self.settings.stream_dtype, side)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.precision == "bfloat16"):
                for _ in range(self.settings.segments):
                    latents, logits, halt = self.model(latents, batch, puzzle)
            tokens = torch.cat([tokens, logits.argmax(-1).to(torch.uint8)])
            scores = torch.cat([scores, halt.double().sigmoid()])
        return processes.gather(tokens).cpu().numpy(), processes.gather(scores).cpu().numpy()


def evaluate(predictor: Predictor, data: ArcData, step: int) -> dict[str, Any]:
    """Score weights on the held-out tests and on the training pairs.

    Returns
    -------
    dict
        ``held_out``: token accuracy and exact match of the untransformed tests (mean and standard error over tests);
        the same over every augmented sample, and the share of samples whose halting probability is on the right side
        of one half (standard errors over tasks); pass@k of the vote over all variants (over tasks). ``train``: token
        accuracy and exact match on the untransformed training pairs. ``predictions``: for every test its grids, the
        two best candidates, and where the truth ranks among all. ``train_tasks``: mean token accuracy and exact match
        of the training pairs of every task. ``votes``: the ballot of every test, for pooling. The votes are those of
        these weights alone.
    """
    cases = [data.variants_of(held) for held in data.held_out]
    tokens, scores = predictor(np.concatenate([c[0] for c in cases]), np.concatenate([c[2] for c in cases]))
    bounds = np.cumsum([0, *(len(c[2]) for c in cases)])
    all_shares = token_accuracy(tokens, np.concatenate([c[1] for c in cases]))
    predictions, votes = [], []
    for held, (_, _, ids), start, stop in zip(data.held_out, cases, bounds, bounds[1:], strict=False):
        mine = range(start, stop)
        ranking = vote((tokens[i], data.augmentations[id][1], scores[i]) for i, id in zip(mine, ids, strict=True))
        cast = ballot(ranking, held.output)
        # The first id of a task is its identity variant.
        canonical = decode(tokens[start], data.side)
        name = {"task": data.tasks[held.task].id, "test": held.test}
        predictions.append(
            {
                **name,
                "input": held.input.tolist(),
                "truth": held.output.tolist(),
                "canonical": None if canonical is None else canonical.tolist(),
                "token_accuracy": float(all_shares[start]),
                "exact": bool(all_shares[start] == 1),
                "rank": next((rank for rank, entry in enumerate(cast, 1) if entry.right), None),
                "candidates": [
                    {"grid": c.grid.tolist(), "votes": c.votes, "score": c.score} for c in ranking[:SUBMITTED]
                ],
            }
        )
        votes.append({**name, "ballot": [list(entry) for entry in cast[: max(ATTEMPTS)]]})
    task_of = [data.tasks[held.task].id for held in data.held_out]
    sample_task = [task for task, case in zip(task_of, cases, strict=True) for _ in case[2]]
    held_out = _accuracies(all_shares[bounds[:-1]]) | {"tasks": len(set(task_of)), "samples": len(all_shares)}
    held_out |= _with_error("sample_token_accuracy", clustered(all_shares.tolist(), sample_task))
    held_out |= _with_error("sample_exact", clustered((all_shares == 1).tolist(), sample_task))
    held_out |= _with_error("halt_accuracy", clustered(((scores > 0.5) == (all_shares == 1)).tolist(), sample_task))
    held_out |= attempts(votes)
    inputs, labels, ids = training_pairs(data)
    train_shares = token_accuracy(predictor(inputs, ids)[0], labels)
    return {
        "step": step,
        "variants": max(len(c[2]) for c in cases),
        "segments": predictor.settings.segments,
        "held_out": held_out,
        "train": _accuracies(train_shares),
        "train_tasks": _by_task(train_shares, [data.tasks[data.augmentations[id][0]].id for id in ids]),
        "predictions": sorted(predictions, key=lambda p: (p["task"], p["test"])),
        "votes": sorted(votes, key=lambda v: (v["task"], v["test"])),
    }


def attempts(votes: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    """Return pass@k for all `ATTEMPTS`, with standard errors over tasks, from the ballots of all tests."""
    ballots = [[Ballot(*entry) for entry in test["ballot"]] for test in votes]
    tasks = [test["task"] for test in votes]
    scores: dict[str, float | None] = {}
    for k in ATTEMPTS:
        scores |= _with_error(f"pass@{k}", pass_at(ballots, tasks, k))
    return scores


def pooled_attempts(evaluations: Sequence[Sequence[dict[str, Any]]]) -> dict[str, Any]:
    """Return pass@k with the votes of several evaluations added up, as the published evaluator does by default.

    Parameters
    ----------
    evaluations : sequence
        The ``votes`` of each, over the same tests.

    Raises
    ------
    ValueError
        If there is none, or they are about different tests.
    """
    if not evaluations:
        raise ValueError("evaluations: expected at least one, got none")
    tests = [[(test["task"], test["test"]) for test in votes] for votes in evaluations]
    if any(other != tests[0] for other in tests):
        raise ValueError("evaluations: their tests differ, so that their votes cannot be added up")
    merged = [
        {"task": same[0]["task"], "ballot": pool([Ballot(*entry) for entry in test["ballot"]] for test in same)}
        for same in zip(*evaluations, strict=True)
    ]
    return {"evaluations": len(evaluations), **attempts(merged)}


def summary(evaluation: dict[str, Any]) -> dict[str, Any]:
    """Return an evaluation without what it says of single tests and tasks."""
    return {name: value for name, value in evaluation.items() if name not in ("predictions", "train_tasks", "votes")}


def training_pairs(data: ArcData) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return inputs, labels and ids of the training rows that are no augmentation."""
    plain = np.array([augmentation.is_identity for _, augmentation in data.augmentations])[data.ids]
    return data.inputs[plain], data.labels[plain], data.ids[plain]


def copy_scores(data: ArcData) -> dict[str, Any]:
    """Score the answer "the output is the input" on the held-out tests and on the training pairs.

    The floor under every token accuracy: outputs resemble their inputs so much that this gets 60 % of all labelled
    tokens of ARC-AGI-1 right, without having understood anything.
    """
    inputs = np.stack([encode(held.input, data.side) for held in data.held_out])
    labels = np.stack([encode(held.output, data.side) for held in data.held_out])
    train_inputs, train_labels, _ = training_pairs(data)
    return {
        "held_out": _accuracies(token_accuracy(inputs, labels)),
        "train": _accuracies(token_accuracy(train_inputs, train_labels)),
    }


def constant_scores(data: ArcData) -> dict[str, Any]:
    """Score one and the same token everywhere, the one that is right most often on the training pairs.

    A second floor: a network learns this answer, mostly all black, before it looks at its input, and may stay there for
    hundreds of steps.
    """
    held_out = np.stack([encode(held.output, data.side) for held in data.held_out])
    _, train_labels, _ = training_pairs(data)
    best = max(
        range(1, VOCAB), key=lambda token: token_accuracy(np.full_like(train_labels, token), train_labels).mean()
    )
    parts = {"held_out": held_out, "train": train_labels}
    return {name: _accuracies(token_accuracy(np.full_like(labels, best), labels)) for name, labels in parts.items()}


def _accuracies(shares: np.ndarray) -> dict[str, Any]:
    return {
        "count": len(shares),
        **_with_error("token_accuracy", mean_score(shares.tolist())),
        **_with_error("exact", mean_score((shares == 1).astype(float).tolist())),
    }


def _by_task(shares: np.ndarray, tasks: Sequence[str]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for share, task in zip(shares.tolist(), tasks, strict=True):
        found.setdefault(task, []).append(share)
    return {task: [float(np.mean(s)), float(np.mean([v == 1 for v in s]))] for task, s in sorted(found.items())}


def _with_error(name: str, score: Score) -> dict[str, float | None]:
    # JSON has no NaN, and one value has no standard error.
    error = None if math.isnan(score.standard_error) else score.standard_error
    return {name: score.mean, f"{name}_se": error}
