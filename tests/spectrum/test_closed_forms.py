import math

import pytest
import torch

from jpmhc import spectrum
from jpmhc.spectrum.closed_forms import mean_log, second_and_fourth_moment
from jpmhc.spectrum.model import make_model
from tests.spectrum.jacobians import energies, gates, jacobian, mixers

KINDS = ["identity", "haar", "cayley", "bistochastic", "reflector", "free"]


@pytest.mark.parametrize("branch", ["gaussian", "haar", "relu", "isotropic"])
@pytest.mark.parametrize("kind", ["haar", "bistochastic", "free"])
def test_moments_and_mean_log_are_those_of_draws(kind, branch):
    M = mixers(kind, 3)
    read, write = gates("random", 3)
    energy = energies(read, write, 1.0) * torch.tensor([0.2, 1.0, 3.0], dtype=torch.float64)
    given = (None, None) if branch == "isotropic" else (read, write)
    model = make_model(M, *given, energy, branch)
    draws = torch.stack([torch.linalg.svdvals(jacobian(M, read, write, energy, 64, branch, seed)) for seed in range(6)])
    second, fourth = second_and_fourth_moment(model)
    assert float(second) == pytest.approx(float((draws**2).mean()), rel=0.04)
    assert float(fourth) == pytest.approx(float((draws**4).mean()), rel=0.1)
    assert float(mean_log(model)) == pytest.approx(float(draws.log().mean()), abs=0.02)


def test_second_moment_is_the_mean_over_draws_at_any_width():
    M, (read, write) = mixers("free", 4, 3), gates("random", 4, 3)
    energy = energies(read, write, 1.0)
    squares = torch.stack([jacobian(M, read, write, energy, 2, seed=seed).square().sum() / 6 for seed in range(3000)])
    expected, _ = second_and_fourth_moment(make_model(M, read, write, energy, "gaussian"))
    assert abs(float(expected - squares.mean())) < 4 * float(squares.std()) / 3000**0.5


@pytest.mark.parametrize("strength", [0.5, 1.0, 3.0, 8.0])
def test_mean_log_of_one_stream_below_and_above_criticality(strength):
    # |1 + x| with x in the uniform disc of that radius: E log max(1, |lambda|).
    law = make_model(torch.eye(1).expand(1, 1, 1), [1.0], [1.0], strength**2, "gaussian")
    expected = 0.0 if strength <= 1 else math.log(strength) - (1 - strength**-2) / 2
    assert float(mean_log(law)) == pytest.approx(expected, abs=1e-12)
    one = torch.ones(1, 1, dtype=torch.float64)
    draws = torch.linalg.svdvals(jacobian(one[None], one, one, one[0] * strength**2, 300))
    assert float(draws.log().mean()) == pytest.approx(expected, abs=0.03)


def test_mean_log_adds_up_over_layers_and_is_zero_for_rotations():
    M, (read, write) = mixers("free", 6), gates("random", 6)
    energy = energies(read, write, 1.0)
    whole = mean_log(make_model(M, read, write, energy, "relu"))
    halves = [mean_log(make_model(M[i], read[i], write[i], energy[i], "relu")) for i in (slice(0, 2), slice(2, 6))]
    assert float(whole) == pytest.approx(float(sum(halves)), abs=1e-12)
    assert abs(float(mean_log(make_model(mixers("haar", 6), read, write, 0.01, "gaussian")))) < 1e-12


def test_mean_log_of_a_singular_mixer_needs_the_branch():
    projector = mixers("projector", 1, 3)
    read, write = gates("random", 1, 3)
    filled = make_model(projector, read, write, 2.0, "gaussian")
    draw = torch.linalg.svdvals(jacobian(projector, read, write, torch.tensor([2.0]).double(), 200))
    assert float(mean_log(filled)) == pytest.approx(float(draw.log().mean()), abs=0.02)
    rank_one = torch.ones(1, 3, 3).double() / 3
    assert float(mean_log(make_model(rank_one, read, write, 2.0, "gaussian"))) == -math.inf


@pytest.mark.parametrize("kind", KINDS)
def test_isometry_gap_is_positive_and_zero_without_branches_on_rotations(kind):
    M, (read, write) = mixers(kind, 8), gates("softmax", 8)
    assert float(spectrum.isometry_gap(M, read, write, 0.05)) > 0
    silent = float(spectrum.isometry_gap(M, read, write, 0.0))
    values = torch.linalg.svdvals(torch.linalg.multi_dot(list(M.flip(0))))
    assert silent == pytest.approx(float(values.square().mean().log() - 2 * values.log().mean()), abs=1e-9)


def test_isometry_gap_is_differentiable_to_second_order():
    read, write = gates("random", 3)
    inputs = (mixers("free", 3), read, write, torch.tensor([0.1, 0.3, 0.2], dtype=torch.float64))
    inputs = tuple(tensor.clone().requires_grad_() for tensor in inputs)
    for branch in ("gaussian", "haar", "relu"):
        assert torch.autograd.gradcheck(lambda *a, b=branch: spectrum.isometry_gap(*a, branch=b), inputs)
    assert torch.autograd.gradgradcheck(spectrum.isometry_gap, inputs)


def test_scalar_condition_is_the_reference():
    from jpmhc.spectrum.closed_forms import scalar_condition

    reference = {0.1: 2.464098015, 0.5: 8.008132909, 1.0: 21.09442325, 2.0: 98.61015999, 5.0: 4420.325051}
    for load, condition in reference.items():
        assert scalar_condition(load) == pytest.approx(condition, rel=1e-9)
    assert scalar_condition(0.0) == 1
