"""Mean logarithms of mixers whose determinants are small, large or zero."""

import math

import pytest
import torch

from jpmhc import spectrum
from jpmhc.spectrum.closed_forms import mean_log
from jpmhc.spectrum.model import make_model
from tests.spectrum.jacobians import gates, mixers

BRANCHES = ["gaussian", "haar", "relu", spectrum.Branch(lambda f: (1 + f) ** -2)]


def averaging(n, a):
    """``(1 - a) J + a I``: doubly stochastic, one singular value 1 and n - 1 of a."""
    return ((1 - a) / n * torch.ones(n, n, dtype=torch.float64) + a * torch.eye(n, dtype=torch.float64))[None]


@pytest.mark.parametrize("branch", BRANCHES)
@pytest.mark.parametrize(("n", "a"), [(4, 1e-6), (4, 1e-10), (8, 1e-3), (16, 1e-2), (64, 1e-4)])
def test_small_determinants_are_no_zeros(n, a, branch):
    # A branch that acts on the mean of the streams alone, where the mixer is one: it is weaker, so M alone counts.
    gates = torch.full((n,), 1 / n), torch.ones(n)
    expected = (n - 1) / n * math.log(a)
    # An error of round-off in M is one of round-off over a in its singular values.
    within = 1e-15 / a + 1e-12
    for energy in (0.0, 0.01):
        law = spectrum.predict(averaging(n, a), *gates, energy, branch)
        assert float(law.mean_log) == pytest.approx(expected, abs=within)
        second = (1 + energy + (n - 1) * a * a) / n
        gap = spectrum.isometry_gap(averaging(n, a), *gates, energy, branch)
        assert float(gap) == pytest.approx(math.log(second) - 2 * expected, abs=2 * within)
        assert float(law.isometry_gap) == pytest.approx(float(gap), abs=1e-12)


@pytest.mark.parametrize("branch", BRANCHES)
@pytest.mark.parametrize("scale", [1e-150, 1e-8, 1e8, 1e150])
def test_units_only_shift_it(scale, branch):
    n = 40
    M, (read, write) = mixers("haar", 2, n), gates("random", 2, n)
    model = make_model(scale * M, read, write, [1e-4 * scale**2, 9.0 * scale**2], branch)
    unit = make_model(M, read, write, [1e-4, 9.0], branch)
    assert float(mean_log(model)) == pytest.approx(float(mean_log(unit)) + 2 * math.log(scale), abs=1e-10)
    deep = [spectrum.isometry_gap(c * M.repeat(20, 1, 1), read[0], write[0], 0.0, branch) for c in (1.0, scale)]
    assert [float(value) for value in deep] == pytest.approx([0, 0], abs=1e-10)


@pytest.mark.parametrize("branch", ["gaussian", "haar", "relu"])
def test_near_uniform_mixers_are_those_of_draws(branch):
    logits = 0.01 * torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    M = logits.exp()
    for _ in range(50):
        M = M / M.sum(-1, keepdim=True)
        M = M / M.sum(-2, keepdim=True)
    read, write = gates("random", 3, 8)
    law = spectrum.predict(M, read, write, 0.02, branch)
    draws = [spectrum.simulate(M, read, write, 0.02, branch, width=24, seed=seed).mean_log for seed in range(4)]
    assert float(law.mean_log) == pytest.approx(float(torch.stack(draws).mean()), abs=0.03)


def test_one_lost_direction_is_filled_by_the_branch():
    # det (M + q p^T X) = X per direction of a projector that loses one: E log |lambda| = -1/2 over a disc.
    n = 5
    M = torch.diag(torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0], dtype=torch.float64))[None]
    frame = mixers("haar", 1, n)
    gate = (frame[0, :, -1] + frame[0, :, 0]) / 2**0.5
    turned = frame @ M @ frame.mT
    found = mean_log(make_model(turned, gate, 3 * gate, 4.0, "gaussian"))
    # p and q reach the lost direction by 1 / sqrt 2 each.
    assert float(found) == pytest.approx((math.log(2 * 3 / 2) - 0.5) / n, abs=1e-12)
    for gate in (frame[0, :, 0], torch.zeros(n)):
        assert float(mean_log(make_model(turned, gate, gate, 4.0, "gaussian"))) == -math.inf
    two = torch.diag(torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0]))[None]
    assert float(mean_log(make_model(two, torch.ones(n), torch.ones(n), 4.0, "gaussian"))) == -math.inf


def test_derivatives_are_those_of_the_determinant_however_small():
    a = torch.tensor(1e-5, dtype=torch.float64, requires_grad=True)
    n, eye, ones = 8, torch.eye(8, dtype=torch.float64), torch.ones(8, 8, dtype=torch.float64)
    M = ((1 - a) / n * ones + a * eye)[None]
    (slope,) = torch.autograd.grad(spectrum.predict(M, torch.full((n,), 1 / n), torch.ones(n), 0.01).mean_log, a)
    assert float(slope) == pytest.approx((n - 1) / n / 1e-5, rel=1e-8)


# A ReLU's branch has a kernel of its own, which would leave minus infinity.
@pytest.mark.parametrize("branch", [*BRANCHES[:2], *map(spectrum.Hidden, (1.0, 2.0)), BRANCHES[3]])
def test_derivatives_of_singular_mixers_and_of_gates_at_right_angles(branch):
    singular = mixers("projector", 2, 3)
    read, write = gates("random", 2, 3)
    energy = torch.tensor([0.5, 2.0], dtype=torch.float64)
    inputs = tuple(tensor.clone().requires_grad_() for tensor in (read, write, energy))

    def question(read, write, energy):
        return mean_log(make_model(singular, read, write, energy, branch))

    assert torch.autograd.gradcheck(question, inputs)
    eye = torch.eye(3, dtype=torch.float64)[None].clone().requires_grad_()
    apart = mean_log(make_model(eye, torch.eye(3)[0], torch.eye(3)[1], 2.0, branch))
    (gradient,) = torch.autograd.grad(apart, eye)
    torch.testing.assert_close(gradient[0], torch.eye(3, dtype=torch.float64) / 3)


def test_a_product_that_is_zero_has_an_infinite_gap():
    zero = torch.zeros(2, 3, 3)
    assert float(spectrum.isometry_gap(zero, torch.ones(3), torch.ones(3), 0.0)) == math.inf
    assert float(spectrum.predict(zero, torch.ones(3), torch.ones(3), 0.0).isometry_gap) == math.inf
    assert float(spectrum.measure(lambda x: 0 * x, torch.zeros(3)).isometry_gap) == math.inf
    assert float(spectrum.measure(lambda x: 0 * x, torch.zeros(3), "lanczos").isometry_gap) == math.inf
