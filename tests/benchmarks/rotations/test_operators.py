import pytest
import torch

from benchmarks import residuals, trainer
from benchmarks.rotations.operators import Mapping, best_rotation, householder
from benchmarks.trainer import Schedule


def test_the_best_rotation_is_a_rotation_and_no_sampled_one_is_better():
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(4, 4, generator=generator, dtype=torch.float64)
    matrix[0] *= -torch.sign(torch.linalg.det(matrix))
    rotation, most = best_rotation(matrix)
    assert torch.allclose(rotation @ rotation.T, torch.eye(4, dtype=torch.float64), atol=1e-12)
    assert torch.linalg.det(rotation).item() == pytest.approx(1.0)
    skew = torch.randn(5_000, 4, 4, generator=generator, dtype=torch.float64)
    sampled = torch.linalg.matrix_exp(2 * (skew - skew.mT)) @ rotation
    near = torch.linalg.matrix_exp(0.01 * (skew - skew.mT)) @ rotation
    for others in (sampled, near):
        assert (others * matrix).sum((-2, -1)).max() < most


def test_a_reflection_costs_a_rotation_two_directions():
    target = householder(4, seed=1)
    assert torch.linalg.det(target).item() == pytest.approx(-1.0)
    assert torch.allclose(target @ target, torch.eye(4, dtype=torch.float64), atol=1e-12)
    assert best_rotation(target)[1] == pytest.approx(4 - 2)


@pytest.mark.parametrize(("streams", "most"), [(3, 1 / 3), (4, 1.0)])
def test_the_negative_of_a_vector_needs_no_reflection_in_even_dimensions(streams, most):
    target = -torch.eye(streams, dtype=torch.float64)
    task = Mapping("negative", target, 1, None, Schedule(1, 4), samples=4_000)
    assert task.references["rotations"] == pytest.approx(most, abs=0.03)
    assert task.references["copy"] == pytest.approx(-1.0)


def aligned(arm, target):
    schedule = Schedule(60, 16, lr=0.15, final_lr=1e-3, warmup=1, weight_decay=0.0)
    task = Mapping("householder", target, 2, None, schedule, samples=200)
    (run,) = trainer.train(task, residuals.parse(arm), [0])
    return run["scores"]["alignment"], task.references["rotations"]


def test_rotations_stay_below_the_bound_that_a_reflection_passes():
    target = householder(4, seed=42)
    score, most = aligned("quaternion", target)
    assert score <= most + 1e-6
    score, most = aligned("reflection", target)
    assert score > most + 0.2


def test_arms_without_a_choice_are_left_out():
    task = Mapping("negative", -torch.eye(3, dtype=torch.float64), 1, 4, Schedule(1, 4), samples=8)
    assert not task.supports(residuals.parse("identity"))
    assert not task.supports(residuals.parse("quaternion"))
    assert task.supports(residuals.parse("plain"))
