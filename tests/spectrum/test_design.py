import math

import pytest
import torch

from jpmhc import spectrum
from jpmhc.spectrum.closed_forms import scalar_condition


def test_design_of_a_forgetting_mixer():
    found = spectrum.design("sinkhorn", 4, 8, load=0.3)
    chain = spectrum.initial_chain("sinkhorn", 4, 8)
    centre = torch.eye(4, dtype=torch.float64) - 0.25
    values = [torch.linalg.matrix_norm(centre @ torch.linalg.matrix_power(chain["mixers"][0], k), 2) for k in (8, 40)]
    assert found.contrast == pytest.approx(float(values[0]), rel=1e-6)
    assert (
        float(
            torch.linalg.matrix_norm(
                centre @ torch.linalg.matrix_power(chain["mixers"][0], math.ceil(found.contrast_depth)), 2
            )
        )
        < 0.5
    )
    assert found.load == pytest.approx(0.3)
    assert found.mean_log < 0 < found.isometry_gap
    assert found.row()["condition"] == found.largest / found.smallest > scalar_condition(0.3)


def test_budget_inverts_the_scalar_condition():
    for condition in (1.0, 2.0, 10.0, 1e4):
        assert scalar_condition(spectrum.branch_budget(condition)) == pytest.approx(condition)
    assert 0.60 <= spectrum.branch_budget(10) < 0.61


def test_budget_of_a_mixer_is_below_the_scalar_one():
    budget = spectrum.branch_budget(10, "cayley", 2, 3)
    assert spectrum.design("cayley", 2, 3, load=budget).row()["condition"] == pytest.approx(10, rel=0.03)
    assert 0 < budget < spectrum.branch_budget(10)
    # Averaging loses a factor of more than two by itself.
    assert spectrum.branch_budget(1.5, "sinkhorn", 4, 8) == 0


@pytest.mark.parametrize("condition", [1.5, 10.0, 100.0])
def test_budget_of_rotations_in_one_layer_exceeds_the_scalar_one(condition):
    # 1 + sqrt(c) U: from 1 - sqrt c to 1 + sqrt c, and the other way round beyond c = 1.
    expected = ((condition - 1) / (condition + 1)) ** 2
    found = spectrum.branch_budget(condition, "identity", 1, 1, branch="haar")
    # A percent of its own, and what the edges of the laws are known to.
    assert found == pytest.approx(expected, rel=0.02)
    if condition == 10.0:
        assert found > spectrum.branch_budget(condition)


@pytest.mark.parametrize(("streams", "depth", "threshold"), [(4, 48, 0.5), (2, 1, 0.9), (16, 200, 0.1)])
def test_diagonal_bias_keeps_just_that_much(streams, depth, threshold):
    b = spectrum.diagonal_bias(streams, depth, threshold)
    logits = b * torch.eye(streams, dtype=torch.float64)
    M = torch.linalg.matrix_power(torch.softmax(logits, -1), depth)
    difference = torch.eye(streams, dtype=torch.float64)[0] - torch.eye(streams, dtype=torch.float64)[1]
    assert torch.allclose(M @ difference, threshold * difference)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: spectrum.design("sinkhorn", 4, 0), "depth: expected at least 1, got 0"),
        (lambda: spectrum.design("sinkhorn", 4, 2, load=-1.0), "load: expected a finite number of at least 0"),
        (lambda: spectrum.design("attic", 4, 2), "mixer: unknown name 'attic'"),
        (lambda: spectrum.diagonal_bias(1, 2), "streams: expected at least 2"),
        (lambda: spectrum.diagonal_bias(4, 2, 1.0), r"threshold: expected a number in \(0, 1\), got 1.0"),
        (lambda: spectrum.design("sinkhorn", 4, 2, condition=0.5), "condition: expected a finite number of at least 1"),
        (lambda: spectrum.branch_budget(0.5), "condition: expected a finite number of at least 1"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_design_answers_what_a_depth_would_need():
    found = spectrum.design("cayley", 2, 3, load=0.1, condition=10.0)
    assert found.budget == spectrum.branch_budget(10, "cayley", 2, 3)
    # Neither rotations nor I need a diagonal.
    assert found.bias is None
    assert spectrum.design("identity", 2, 3).bias is None
    averaging = spectrum.design("permutations", 4, 12, threshold=0.9)
    assert averaging.bias == spectrum.diagonal_bias(4, 12, 0.9)
    assert averaging.budget is None


@pytest.mark.slow
def test_table_has_every_mixer():
    from jpmhc import layers

    table = spectrum.design_table(4, 3)
    assert [row.mixer for row in table] == [info.name for info in layers.mixers() if info.supports(4)]
    for row in table:
        # The branches of this load are weaker than the skip, so that only the mixers' determinants count.
        product = torch.linalg.multi_dot([*spectrum.initial_chain(row.mixer, 4, 3)["mixers"]])
        assert row.mean_log == pytest.approx(float(torch.linalg.slogdet(product)[1]) / 4, abs=1e-9)
        assert (row.bias is not None) == (row.mixer in ("kronecker", "orthostochastic", "permutations", "sinkhorn"))
        if row.mixer in ("identity", "cayley", "quaternion", "reflection"):
            assert row.contrast_depth == math.inf
