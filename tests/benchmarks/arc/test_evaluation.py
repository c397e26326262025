import numpy as np
import pytest
import torch

from benchmarks.arc.arms import Arm
from benchmarks.arc.dataset import build
from benchmarks.arc.evaluation import (
    Predictor,
    attempts,
    constant_scores,
    copy_scores,
    evaluate,
    pooled_attempts,
    summary,
    training_pairs,
)
from benchmarks.arc.presets import preset
from benchmarks.arc.run import build_data
from benchmarks.arc.submission import submission
from benchmarks.arc.tasks import load_arc_agi_1, subset
from benchmarks.arc.training import Trainer


class Oracle:
    """Knows every answer in every variant, but for those of some tasks."""

    def __init__(self, data, blank=()):
        self.settings = preset("smoke").train
        self.answers = {}
        for held in data.held_out:
            inputs, labels, ids = data.variants_of(held)
            for source, target, id in zip(inputs, labels, ids, strict=True):
                self.answers[source.tobytes(), int(id)] = target if held.task not in blank else np.zeros_like(target)
        for source, target, id in zip(data.inputs, data.labels, data.ids, strict=True):
            self.answers[source.tobytes(), int(id)] = target

    def __call__(self, inputs, ids):
        tokens = np.stack([self.answers[source.tobytes(), int(id)] for source, id in zip(inputs, ids, strict=True)])
        return tokens, np.full(len(ids), 0.5)


@pytest.fixture(scope="module")
def data():
    return build(subset(load_arc_agi_1(), max_side=6), side=6, variants=4, seed=0)


def test_an_oracle_solves_everything(data):
    result = evaluate(Oracle(data), data, step=3)
    assert result["step"] == 3
    assert result["variants"] == 4
    held_out = result["held_out"]
    assert (held_out["token_accuracy"], held_out["exact"]) == (1, 1)
    assert [held_out[f"pass@{k}"] for k in (1, 2, 5, 10, 100, 1000)] == [1] * 6
    assert (held_out["sample_token_accuracy"], held_out["sample_exact"]) == (1, 1)
    # Its halting probability is one half, which says no: wrong every time.
    assert held_out["halt_accuracy"] == 0
    assert (held_out["count"], held_out["tasks"]) == (69, 59)
    assert 69 < held_out["samples"] <= 4 * 69
    assert (result["train"]["exact"], result["train"]["count"]) == (1, 223)
    for prediction in result["predictions"]:
        assert prediction["canonical"] == prediction["truth"] == prediction["candidates"][0]["grid"]
    order = [(p["task"], p["test"]) for p in result["predictions"]]
    assert order == sorted(order)
    assert set(summary(result)) == {"step", "variants", "segments", "held_out", "train"}
    assert set(map(tuple, result["train_tasks"].values())) == {(1.0, 1.0)}
    answers = submission(result["predictions"])
    assert len(answers) == 59
    for task in {held.task for held in data.held_out}:
        truths = [h.output.tolist() for h in data.held_out if h.task == task]
        assert [test["attempt_1"] for test in answers[data.tasks[task].id]] == truths


def test_scores_are_means_with_their_standard_errors(data):
    tasks = {held.task for held in data.held_out}
    blank = set(sorted(tasks)[:20])
    held_out = evaluate(Oracle(data, blank), data, step=0)["held_out"]
    solved = [held.task not in blank for held in data.held_out]
    assert held_out["exact"] == pytest.approx(np.mean(solved))
    assert held_out["exact_se"] == pytest.approx(np.std(solved, ddof=1) / len(solved) ** 0.5)
    by_task = [task not in blank for task in tasks]
    assert held_out["pass@1"] == pytest.approx(np.mean(by_task))
    assert held_out["pass@1_se"] == pytest.approx(np.std(by_task, ddof=1) / len(by_task) ** 0.5)


def test_a_grid_that_cannot_be_read_is_no_answer(data):
    first = data.held_out[0].task
    predictions = evaluate(Oracle(data, {first}), data, step=0)["predictions"]
    blank = [p for p in predictions if p["task"] == data.tasks[first].id]
    assert blank
    assert all(p["canonical"] is None and p["candidates"] == [] for p in blank)


def test_copying_the_input_scores_what_the_reference_measured():
    every = load_arc_agi_1()
    for split, token, exact in (("training", 0.598, 0.003), ("evaluation", 0.610, 0.002)):
        tasks = [task for task in every if task.split == split]
        scores = copy_scores(build(tasks, side=30, variants=1, seed=0))
        count = sum(scores[part]["count"] for part in ("train", "held_out"))
        assert count == {"training": 1718, "evaluation": 1782}[split]
        for name, expected in (("token_accuracy", token), ("exact", exact)):
            mean = sum(scores[part][name] * scores[part]["count"] for part in ("train", "held_out")) / count
            assert round(mean, 3) == expected


def test_pooled_votes_are_an_ensemble_of_checkpoints():
    """Two checkpoints, each right with one vote of two and wrong with the other: only the right grid is in both."""

    def ballots(wrong):
        return [{"task": "a", "test": 0, "ballot": [[wrong, 1, 0.9, False], ["right", 1, 0.1, True]]}]

    first, second = ballots("this"), ballots("that")
    assert (attempts(first)["pass@1"], attempts(first)["pass@2"]) == (0, 1)
    assert attempts(second)["pass@1"] == 0
    pooled = pooled_attempts([first, second])
    assert (pooled["evaluations"], pooled["pass@1"]) == (2, 1)
    with pytest.raises(ValueError, match="their tests differ"):
        pooled_attempts([first, [{**second[0], "task": "b"}]])


def test_votes_of_one_evaluation_pool_to_themselves(data):
    result = evaluate(Oracle(data, {data.held_out[0].task}), data, step=0)
    pooled = pooled_attempts([result["votes"]])
    assert {name: pooled[name] for name in pooled if name != "evaluations"} == {
        name: value for name, value in result["held_out"].items() if name.startswith("pass@")
    }


def test_one_token_everywhere_is_the_best_of_all_tokens(data):
    _, labels, _ = training_pairs(data)
    labelled = labels != 0
    scores = constant_scores(data)
    every = [np.mean(((labels == token) & labelled).sum(1) / labelled.sum(1)) for token in range(1, 12)]
    assert scores["train"]["token_accuracy"] == pytest.approx(max(every))
    assert (scores["train"]["count"], scores["held_out"]["count"]) == (223, 69)


def test_training_pairs_are_the_untransformed_ones(data):
    inputs, labels, ids = training_pairs(data)
    assert len(inputs) == len(labels) == 223
    assert all(data.augmentations[id][1].is_identity for id in ids)


def test_predictor_runs_the_averaged_weights_for_all_segments():
    settings = preset("smoke")
    data = build_data(settings)
    trainer = Trainer(settings, Arm.parse("sinkhorn"), 0, data)
    for _ in range(3):
        trainer.step()
    predictor = Predictor(settings, Arm.parse("sinkhorn"), trainer.weights())
    inputs, labels, ids = data.variants_of(data.held_out[0])
    tokens, scores = predictor(inputs, ids)
    model = trainer.model
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(trainer.average.weights[name])
        latents = model.initial(len(ids))
        for _ in range(settings.train.segments):
            latents, logits, halt = model(latents, torch.from_numpy(inputs), trainer.table[torch.from_numpy(ids)])
    assert np.array_equal(tokens, logits.argmax(-1).numpy())
    assert np.allclose(scores, halt.sigmoid().numpy())
    assert tokens.shape == labels.shape
