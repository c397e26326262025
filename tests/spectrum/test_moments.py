"""Moments of laws that are known, next to where they diverge and over bands with a gap between them."""

import math
import warnings

import pytest
import torch

from jpmhc import spectrum


def fuss_catalan_moment(layers, k):
    """``E[s^k]`` of a product of square Gaussian matrices."""
    k = k / 2
    return math.gamma((layers + 1) * k + 1) / (math.gamma(k + 1) * math.gamma(layers * k + 2))


@pytest.mark.parametrize(
    ("layers", "orders"), [(1, [-0.25, -0.5, -0.75, -0.9, -0.95, -0.98, 1, 3]), (3, [-0.1, -0.2, -0.4, -0.48, 1, 3])]
)
def test_moments_of_gaussian_products(layers, orders):
    law = spectrum.predict(torch.zeros(layers, 1, 1), [1.0], [1.0], 1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for k in (*orders, 10, 20):
            assert float(law.moment(k)) == pytest.approx(fuss_catalan_moment(layers, k), rel=1e-4)
        # Where the density of the values stops being integrable.
        assert float(law.moment(-2 / (layers + 1))) == math.inf


def test_bands_are_integrated_one_by_one():
    # Three streams apart: 1 + X and twice 10 + 10 X.
    M = torch.eye(3).repeat(3, 1, 1)
    M[0] = torch.diag(torch.tensor([1.0, 10.0, 10.0]))
    law = spectrum.predict(M, torch.eye(3), torch.eye(3), 0.01)
    single = spectrum.predict(torch.ones(1, 1, 1), [1.0], [1.0], 0.01)
    for k in (1, 3, 6, -1, -2):
        assert float(law.moment(k)) == pytest.approx((1 + 2 * 10.0**k) / 3 * float(single.moment(k)), rel=1e-5)


@pytest.mark.parametrize("energy", [0.1, 0.5, 0.9])
def test_the_inverse_square_of_a_noisy_stream(energy):
    # E |1 + sqrt(v) X|^-2 = 1 / (1 - v) below criticality.
    law = spectrum.predict(torch.ones(1, 1, 1), [1.0], [1.0], energy)
    assert float(law.moment(-2)) == pytest.approx(1 / (1 - energy), rel=2e-5)


def test_a_power_that_is_none_of_a_product_is_warned_about():
    law = spectrum.predict(torch.zeros(1, 1, 1), [1.0], [1.0], 1.0)
    law.__dict__["_power_at_zero"] = 0.97
    with pytest.warns(UserWarning, match=r"k: the moment of order -0.9 is about to diverge, .* like s\^0.97"):
        law.moment(-0.9)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        law.moment(-0.5)


def test_negative_moments_carry_derivatives():
    energy = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    moment = spectrum.predict(torch.zeros(1, 1, 1), [1.0], [1.0], energy).moment(-0.9)
    (slope,) = torch.autograd.grad(moment, energy)
    # sqrt(v) to that power.
    assert float(slope) == pytest.approx(-0.45 * fuss_catalan_moment(1, -0.9), rel=1e-3)


def test_moments_of_bands_carry_derivatives():
    M = torch.eye(3).repeat(3, 1, 1)
    M[0] = torch.diag(torch.tensor([1.0, 10.0, 10.0]))
    scale = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    moment = spectrum.predict(M * scale, torch.eye(3), torch.eye(3), 0.01 * scale**2).moment(-1)
    (slope,) = torch.autograd.grad(moment, scale)
    # Three layers in another unit.
    assert float(slope) == pytest.approx(-3 * float(moment.detach()), rel=1e-4)


@pytest.mark.parametrize("branch", ["gaussian", "haar", "relu"])
@pytest.mark.parametrize("k", [-1.0, -0.5])
def test_negative_moments_of_laws_off_zero_have_slopes(branch, k):
    read = torch.ones(4, dtype=torch.float64) / 4

    def moment(energy):
        return spectrum.predict(
            torch.eye(4, dtype=torch.float64).expand(4, 4, 4), read, 4 * read, energy, branch
        ).moment(k)

    energy = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    slope = torch.autograd.grad(moment(energy), energy)[0]
    difference = (moment(energy.detach() + 1e-3) - moment(energy.detach() - 1e-3)) / 2e-3
    assert float(slope) == pytest.approx(float(difference), rel=0.02)
