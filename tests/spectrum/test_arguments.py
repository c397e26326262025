"""Arguments of a wrong type, refused by name before anything is computed."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from jpmhc import layers, spectrum

EYE, GATE, X = torch.eye(2)[None], torch.ones(2), torch.ones(3)


def network():
    return nn.Sequential(*(layers.HyperConnection(8, nn.Linear(8, 8), layer_index=i) for i in range(2)))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: spectrum.measure(nn.Linear(3, 3), X, probes=True), ValueError, "probes: expected an integer"),
        (lambda: spectrum.measure(nn.Linear(3, 3), X, tol="a"), TypeError, "tol: expected a number, got 'a'"),
        (lambda: spectrum.measure(nn.Linear(3, 3), X, memory_gib=None), TypeError, "memory_gib: expected a number"),
        (lambda: spectrum.measure(nn.Linear(3, 3), X, batch_dims=0.5), TypeError, "batch_dims: expected an integer"),
        (lambda: spectrum.measure(nn.Linear(3, 3), X, seed=1.5), TypeError, "seed: expected an integer, got 1.5"),
        (lambda: spectrum.measure(nn.Linear(3, 3), X, seed=2**70), ValueError, "seed: expected an integer of at most"),
        (lambda: spectrum.simulate(EYE, GATE, GATE, 0.1, width=4, seed="a"), TypeError, "seed: expected an integer"),
        (lambda: spectrum.initial_chain("cayley", 4, 2, seed=1.5), TypeError, "seed: expected an integer"),
        (lambda: spectrum.inspect(network(), torch.ones(4, 8), seed=1.5), TypeError, "seed: expected an integer"),
        (lambda: spectrum.predict(EYE, GATE, GATE, regularisation="a"), TypeError, "regularisation: expected a number"),
        (lambda: spectrum.ScalarLaw("a"), TypeError, "load: expected a number, got 'a'"),
        (lambda: spectrum.ScalarLaw(800), ValueError, "load: expected one whose condition number float64 holds"),
    ],
)
def test_arguments_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("law", ["predicted", "scalar", "measured"])
def test_questions_are_named(law):
    found = {
        "predicted": lambda: spectrum.predict(EYE, GATE, GATE, 0.1),
        "scalar": lambda: spectrum.ScalarLaw(1.0),
        "measured": lambda: spectrum.measure(nn.Linear(3, 3), X),
    }[law]()
    for name, ask in (("q", found.quantile), ("s", found.cdf), ("s", found.density)):
        with pytest.raises(TypeError, match=f"{name}: expected a tensor or numbers, got str"):
            ask("a")
    with pytest.raises(TypeError, match="k: expected a number, got 'a'"):
        found.moment("a")


def test_numbers_of_other_libraries_are_numbers():
    assert spectrum.ScalarLaw(np.float32(0.5)).load == spectrum.ScalarLaw(torch.tensor(0.5)).load == 0.5
    laws = [spectrum.simulate(EYE, GATE, GATE, 0.1, width=4, seed=seed) for seed in (3, np.int64(3), torch.tensor(3))]
    assert laws[0].edges == laws[1].edges == laws[2].edges


def test_the_largest_load_of_a_scalar_law_is_finite():
    assert math.isfinite(spectrum.ScalarLaw(690).condition)
    assert spectrum.branch_budget(1e300) == pytest.approx(682.6, abs=0.1)


def test_a_layer_with_numbers_that_are_not_finite_is_named():
    x = torch.randn(5, 4, 8, generator=torch.Generator().manual_seed(0))
    for name, parameter, message in (
        ("branch.weight", "1", "model: the branch of layer '1' has a Jacobian"),
        ("branch.weight", "0", "model: the branch of layer '0' has a Jacobian"),
        ("branch.bias", "0", "model: layer '1' gets streams"),
        ("branch.bias", "1", "model: its output or loss is NaN or infinite, behind layer '1'"),
        ("static", "1", "model: layer '1' has"),
    ):
        model = network()
        with torch.no_grad():
            model.get_parameter(f"{parameter}.{name}").view(-1)[0] = math.nan
        with pytest.raises(ValueError, match=message):
            spectrum.inspect(model, x)


def test_inference_mode_is_no_obstacle():
    torch.manual_seed(0)
    model, x = network(), torch.randn(5, 4, 8)
    wanted = spectrum.inspect(model, x)
    with torch.inference_mode():
        found = spectrum.inspect(model, x.clone())
        law = spectrum.measure(model, x.clone()[0])
    assert found.table() == wanted.table()
    assert law.edges == spectrum.measure(model, x[0]).edges
