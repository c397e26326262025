import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.arc.augment import IDENTITY, Augmentation
from benchmarks.arc.dataset import build
from benchmarks.arc.encode import PAD, encode
from benchmarks.arc.tasks import load_arc_agi_1, subset
from benchmarks.arc.vote import Candidate, ballot, clustered, mean_score, pass_at, token_accuracy, vote

A, B, C = (np.array(rows, dtype=np.uint8) for rows in ([[1, 2]], [[3, 0]], [[1], [2]]))
TURN = Augmentation(1, (0, 2, 3, 1, 4, 5, 6, 7, 8, 9))


def task_pass_at(candidates, truths, tasks, k):
    return pass_at([ballot(ranking, truth) for ranking, truth in zip(candidates, truths, strict=True)], tasks, k)


@pytest.fixture(scope="module")
def arc():
    return load_arc_agi_1()


def _ranked(candidates):
    return [(candidate.grid.tolist(), candidate.votes, candidate.score) for candidate in candidates]


def test_a_perfect_model_passes_every_held_out_test_at_one(arc):
    data = build(arc, side=30, variants=3, seed=0)
    rankings = []
    for held in data.held_out:
        _, outputs, ids = data.variants_of(held)
        predictions = [(tokens, data.augmentations[id][1], 0.5) for tokens, id in zip(outputs, ids, strict=True)]
        rankings.append(vote(predictions))
    truths = [held.output for held in data.held_out]
    assert [len(ranking) for ranking in rankings] == [1] * len(truths)
    assert task_pass_at(rankings, truths, [held.task for held in data.held_out], 1) == (1.0, 0.0, 800)


def test_a_model_right_in_most_variants_outvotes_its_errors(arc):
    data = build(subset(arc, max_side=8), side=None, variants=8, seed=0)
    rankings = []
    for held in data.held_out:
        inputs, outputs, ids = data.variants_of(held)
        mixed = [*inputs[:3], *outputs[3:]]  # three variants copy the input, with the higher score
        scores = [0.9] * 3 + [0.1] * (len(ids) - 3)
        variants = [data.augmentations[id][1] for id in ids]
        rankings.append(vote(zip(mixed, variants, scores, strict=True)))
    truths = [held.output for held in data.held_out]
    enough = [len(data.ids_of(held.task)) == 8 for held in data.held_out]
    assert sum(enough) > 80
    solved = [np.array_equal(ranking[0].grid, truth) for ranking, truth in zip(rankings, truths, strict=True)]
    assert all(hit for hit, counted in zip(solved, enough, strict=True) if counted)


def test_candidates_rank_by_votes_then_by_mean_score():
    predictions = [(A, IDENTITY, 0.1), (B, IDENTITY, 0.9), (A, IDENTITY, 0.3), (C, IDENTITY, 0.95)]
    assert _ranked(vote(predictions)) == [([[1, 2]], 2, 0.2), ([[1], [2]], 1, 0.95), ([[3, 0]], 1, 0.9)]


def test_votes_are_counted_after_undoing_the_variant():
    predictions = [(A, IDENTITY, 0.5), (TURN.apply(A), TURN, 0.7), (encode(TURN.apply(B), 5), TURN, 1.0)]
    assert _ranked(vote(predictions)) == [([[1, 2]], 2, 0.6), ([[3, 0]], 1, 1.0)]


def test_grids_of_equal_cells_and_other_shape_are_different_answers():
    assert [candidate.grid.shape for candidate in vote([(A, IDENTITY, 0), (C, IDENTITY, 0)])] == [(1, 2), (2, 1)]


def test_a_prediction_without_a_grid_is_no_vote():
    nothing = np.full(9, PAD)
    assert vote([(nothing, IDENTITY, 0.9)]) == []
    assert _ranked(vote([(nothing, IDENTITY, 0.9), (A, IDENTITY, 0.1)])) == [([[1, 2]], 1, 0.1)]
    assert vote([]) == []


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([A, B, C]), st.floats(0, 1)), max_size=12).flatmap(
        lambda votes: st.tuples(st.just(votes), st.permutations(votes))
    )
)
def test_the_ranking_does_not_depend_on_the_order_of_the_predictions(orders):
    first, second = (vote((grid, IDENTITY, score) for grid, score in order) for order in orders)
    assert _ranked(first) == _ranked(second)


def test_votes_of_one_call_do_not_reach_the_next():
    first = _ranked(vote([(B, IDENTITY, 1.0)] * 5))
    assert _ranked(vote([(A, IDENTITY, 0.0)])) == [([[1, 2]], 1, 0.0)]
    assert _ranked(vote([(B, IDENTITY, 1.0)] * 5)) == first


def test_malformed_predictions_are_refused():
    for score in (math.nan, math.inf):
        with pytest.raises(ValueError, match="predictions: expected a finite score"):
            vote([(A, IDENTITY, score)])
    with pytest.raises(ValueError, match=r"predictions: expected tokens \(side \* side,\) or a grid"):
        vote([(np.zeros((1, 2, 3), dtype=np.uint8), IDENTITY, 0.0)])
    with pytest.raises(ValueError, match=r"tokens: expected shape \(4,\) for side 2, got \(5,\)"):
        vote([(np.zeros(5, dtype=np.uint8), IDENTITY, 0.0)])


RANKINGS = [
    [Candidate(A, 3, 0.5), Candidate(B, 2, 0.5)],
    [Candidate(B, 3, 0.5), Candidate(A, 2, 0.5), Candidate(C, 1, 0.5)],
    [],
    [Candidate(C, 1, 0.5)],
]
TRUTHS = [A, C, A, C]


def test_pass_at_k_counts_truths_among_the_first_k():
    assert [task_pass_at(RANKINGS, TRUTHS, "wxyz", k).mean for k in (1, 2, 3, 100)] == [0.5, 0.5, 0.75, 0.75]


def test_a_task_scores_the_fraction_of_its_tests_and_the_error_is_over_tasks():
    # Task x solves one of two tests, y none, z its only one: 1/2, 0, 1.
    mean, error, n = task_pass_at(RANKINGS, TRUTHS, ["x", "x", "y", "z"], 1)
    assert mean == pytest.approx(0.5)
    assert error == pytest.approx(0.5 / math.sqrt(3))
    assert n == 3


def test_task_means_weigh_tasks_and_not_tests():
    rankings, truths = [RANKINGS[0], RANKINGS[2], RANKINGS[2], RANKINGS[2]], [A, A, A, A]
    assert task_pass_at(rankings, truths, [0, 1, 2, 3], 1).mean == 0.25
    assert task_pass_at(rankings, truths, [0, 1, 1, 1], 1).mean == 0.5


def test_malformed_scores_are_refused():
    with pytest.raises(ValueError, match="k: expected at least 1, got 0"):
        task_pass_at(RANKINGS, TRUTHS, "wxyz", 0)
    with pytest.raises(ValueError, match="values: expected at least one, got none"):
        pass_at([], [], 1)
    with pytest.raises(ValueError, match="tasks: expected one entry for each of 4 tests, got 2"):
        task_pass_at(RANKINGS, TRUTHS, [0, 1], 1)


def test_one_value_has_no_standard_error():
    score = mean_score([0.25])
    assert (score.mean, score.n) == (0.25, 1)
    assert math.isnan(score.standard_error)
    with pytest.raises(ValueError, match="values: expected at least one"):
        mean_score([])


def test_token_accuracy_counts_labelled_tokens_only():
    labels = np.array([[2, 3, 1, 0], [2, 3, 1, 1]])
    predicted = np.array([[2, 9, 1, 7], [2, 3, 1, 1]])
    assert token_accuracy(predicted, labels).tolist() == [2 / 3, 1.0]


def test_the_clustered_error_is_that_of_a_bootstrap_over_tasks():
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 8, 60)
    tasks = np.repeat(np.arange(60), sizes)
    values = rng.random(60)[tasks] + 0.1 * rng.random(len(tasks))
    found = clustered(values.tolist(), tasks.tolist())
    assert found.mean == pytest.approx(values.mean())
    sums = np.bincount(tasks, weights=values)
    picks = rng.integers(60, size=(4000, 60))
    means = sums[picks].sum(1) / sizes[picks].sum(1)
    assert found.standard_error == pytest.approx(means.std(), rel=0.1)
    # As if every value were independent, it would be far too small.
    assert found.standard_error > 1.5 * mean_score(values.tolist()).standard_error
    assert math.isnan(clustered([1.0, 0.0], ["a", "a"]).standard_error)
