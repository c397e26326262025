"""Lower ends of predicted laws: where the density reaches zero, and where it only comes close."""

import math

import pytest
import torch

from jpmhc import spectrum

# Below a millionth levels are round-off of the solve.
LOW_LEVELS = torch.tensor([0.0, 1e-6, 1e-5, 1e-4, 0.01], dtype=torch.float64)


def one_layer(energy, branch="gaussian", skip=1.0):
    return spectrum.predict(torch.tensor([[[skip]]]), [1.0], [1.0], energy, branch)


def lower_edge(energy):
    """Of 1 + sqrt(v) X, X Gaussian, as in Bordenave and Chafai, Around the circular law (2012)."""
    root = math.sqrt(1 + 8 / energy)
    return math.sqrt(energy * max(root - 3, 0) ** 3 / (8 * (root - 1)))


@pytest.mark.parametrize("energy", [1.0, 1.05, 1.1, 1.2, 1.5, 2.0, 4.0, 30.0])
def test_a_branch_as_strong_as_the_skip_reaches_zero(energy):
    law = one_layer(energy)
    assert law.edges[0] == 0
    assert law.condition == math.inf
    assert 0 < law.floor < 1e-8
    quantiles = law.quantile(LOW_LEVELS)
    assert quantiles[0] == 0
    assert (quantiles.diff() >= 0).all()
    # With a density at zero this moment is infinite, and that of less is not.
    assert float(law.moment(-1.5)) == math.inf
    assert 0 < float(law.moment(-0.5)) < math.inf


@pytest.mark.parametrize("energy", [0.1, 0.5, 0.9, 0.99])
def test_a_weaker_one_stays_off_zero(energy):
    law = one_layer(energy)
    assert law.edges[0] == pytest.approx(lower_edge(energy), rel=5e-3)
    assert law.floor == 0
    quantiles = law.quantile(LOW_LEVELS)
    assert (quantiles.diff() >= 0).all()


def test_an_edge_next_to_zero_is_known_to_what_the_solve_sees():
    law = one_layer(0.999)
    assert lower_edge(0.999) / 3 < law.edges[0] < float(law.quantile(1e-6))
    assert (law.quantile(LOW_LEVELS).diff() >= 0).all()


def test_products_reach_zero_where_a_factor_does():
    def law(energies, **options):
        eye = torch.eye(4, dtype=torch.float64).expand(3, 4, 4)
        read = torch.full((4,), 0.25, dtype=torch.float64)
        return spectrum.predict(eye, read, torch.ones(4), torch.tensor(energies), **options)

    assert law([0.2, 1.5, 0.2]).edges[0] == 0
    assert law([0.9, 0.9, 0.9]).edges[0] > 1e-6
    # A rotation moves the eigenvalues of a layer on a circle, which meets zero at one energy alone.
    assert law([0.5, 4.0, 0.5], branch="haar").edges[0] > 1e-3


@pytest.mark.parametrize(("share", "zero"), [(0.9, False), (1.0, True), (1.2, True)])
def test_noise_reaches_zero_where_it_outweighs_the_inverse(share, zero):
    mixer = torch.diag(torch.tensor([2.0, 0.6], dtype=torch.float64))
    inverse = float(mixer.diagonal().pow(-2).mean())
    law = spectrum.predict(mixer[None], energy=share / inverse, branch="isotropic")
    assert (law.edges[0] == 0) == zero
