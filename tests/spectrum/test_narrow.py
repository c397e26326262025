"""Laws with peaks and bands narrower than the angle at which they are solved."""

import math

import pytest
import torch

from jpmhc import spectrum
from tests.spectrum.jacobians import energies, jacobian


def test_a_peak_narrower_than_the_regularisation_is_not_smeared():
    # Two layers of M = I: a fifth of the singular values lie within a thousandth of one.
    gate = torch.randn(2, 2, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64).softmax(-1)
    M, read, write = torch.eye(4, dtype=torch.float64).expand(2, 4, 4), gate[0], 4 * gate[1]
    energy = energies(read, write, 0.5)
    law = spectrum.predict(M, read, write, energy)
    draw = torch.linalg.svdvals(jacobian(M, read, write, energy, 192))
    for width in (3e-4, 1e-3, 3e-3):
        share = float(((draw - 1).abs() < width).double().mean())
        assert share > 0.05
        assert float(law.cdf(1 + width) - law.cdf(1 - width)) == pytest.approx(share, abs=0.01)
    assert float(law.points(1 + 3e-4).cdf_error) < 1e-3


def test_quantiles_of_a_law_narrower_than_the_regularisation_invert_it():
    # The scalar law of so small a load is a semicircle of log s of that variance over two, around one.
    load = 1e-8
    law = spectrum.predict(torch.ones(10, 1, 1), [1.0], [1.0], load / 10)
    shares = torch.tensor([1e-3, 0.01, 0.1, 0.3, 0.5, 0.9, 0.99], dtype=torch.float64)
    found = law.quantile(shares)
    t = found.log() / (2 * load) ** 0.5
    semicircle = 0.5 + (t * (1 - t * t).clamp_min(0).sqrt() + t.clamp(-1, 1).asin()) / math.pi
    assert torch.allclose(semicircle, shares, atol=5e-3)
    assert torch.allclose(law.cdf(found), shares, atol=1e-6)


def test_quantiles_in_a_steep_band_beside_a_gap_invert_the_law():
    # Strong branches leave the values of diagonal mixers in narrow bands far apart.
    raw = torch.tensor([0.98, 0.92, 1.03, 1.15], dtype=torch.float64)
    gate = torch.tensor([0.9, -0.4, 1.1, 0.3], dtype=torch.float64)
    energy = 20 * 4 / 6 / gate.square().sum().square()
    law = spectrum.predict(torch.diag(raw).expand(6, 4, 4), gate, gate, energy)
    shares = torch.linspace(0.02, 0.98, 25, dtype=torch.float64)
    # Of a band a fifth of a percent wide, a tenth is as much as halving resolves.
    found = law.quantile(shares)
    assert torch.allclose(law.cdf(found), shares, atol=1e-5)


def test_a_narrow_peak_beside_a_place_is_read_on_the_right_side():
    # Half of the values lie in a band some 1e-5 wide next to one: seen from 5e-4 half of them lie on either side.
    move = torch.tensor([[0.3, -0.8], [0.5, -0.6]], dtype=torch.float64)
    M = (torch.eye(2, dtype=torch.float64) + 4e-5 * move).unsqueeze(0)
    gates = torch.tensor([[0.6, 0.8]], dtype=torch.float64)
    law = spectrum.predict(M, gates, gates, 1.0)
    draw = torch.linalg.svdvals(jacobian(M, gates, gates, torch.ones(1).double(), 256))
    peak = draw[(draw - 1).abs() < 1e-3].sort().values
    assert len(peak) > 200
    places = torch.stack([peak[0] - 5e-5, peak[0] - 2e-5, peak[-1] + 2e-5, peak[-1] + 5e-5])
    measured = (draw <= places[:, None]).double().mean(1)
    assert torch.allclose(law.cdf(places), measured, atol=0.01)


def test_beside_the_middle_of_a_narrow_law_its_distribution_function_rises():
    # There the estimate from the regularisation vanishes.
    law = spectrum.predict(torch.ones(1, 1, 1), [1.0], [1.0], 1e-8)
    s = 1 + 1e-5 * torch.linspace(-3, 3, 61, dtype=torch.float64)
    cdf = law.cdf(s)
    assert (cdf.diff() > 0).all()
    t = (s - 1) / 2e-4  # the real part of a Gaussian matrix: a semicircle of variance v / 2
    scaled = (2**0.5 * t).clamp(-1, 1)
    assert torch.allclose(cdf, 0.5 + (scaled * (1 - scaled**2).sqrt() + scaled.asin()) / math.pi, atol=5e-3)
