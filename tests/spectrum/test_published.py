import math

import pytest
import torch

from jpmhc import spectrum
from tests.spectrum.jacobians import mixers

PLACES = torch.tensor([0.5, 0.9, 1.3], dtype=torch.float64)


def smeared(law, s, eta):
    """Density of law as the recipe smears it: ``-2 s Im G / pi`` at ``s^2 + i eta``."""
    w = torch.sqrt(s.square() + 1j * eta)
    return -2 * s * (law.stieltjes(w) / w).imag / math.pi


@pytest.mark.parametrize(("kind", "layers"), [("bistochastic", 1), ("haar", 2), ("identity", 10)])
def test_recipe_is_right_for_one_layer_and_for_rotations(kind, layers):
    M = mixers(kind, layers)
    law = spectrum.predict(M, energy=0.05, branch="isotropic")
    assert torch.allclose(spectrum.published(M, 0.05, PLACES), smeared(law, PLACES, 0.02), atol=1e-6)


def test_recipe_is_wrong_for_doubly_stochastic_mixers():
    M = mixers("bistochastic", 10)
    law = spectrum.predict(M, energy=0.05, branch="isotropic")
    recipe = spectrum.published(M, 0.05, PLACES)
    assert float(((recipe - smeared(law, PLACES, 0.02)) / recipe).abs().max()) > 0.2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"eta": 0.0}, "eta: expected a number > 0, got 0.0"),
        ({"noise": -1.0}, "noise: expected a finite number of at least 0, got -1.0"),
        ({"noise": math.nan}, "noise: expected a finite number of at least 0"),
        ({"mixers": torch.zeros(0, 2, 2)}, "mixers: expected at least one layer"),
        ({"s": torch.zeros(1)}, "s: expected finite numbers > 0"),
    ],
)
def test_bad_input_is_named(change, message):
    given = {"mixers": torch.eye(2).expand(2, 2, 2), "noise": 0.1, "s": PLACES}
    with pytest.raises(ValueError, match=message):
        spectrum.published(**{**given, **change})
