import math

import pytest
import torch

from jpmhc import spectrum

LOADS = (0.01, 0.5, 2.0, 5.0)


@pytest.mark.parametrize(
    ("load", "condition", "moments", "variance"),
    [
        (0.1, 2.464098015, (1.105170918, 1.46568331, 2.240765621), 0.05083333333),
        (0.5, 8.008132909, (1.648721271, 5.436563657, 24.64928989), 0.2708333333),
        (1.0, 21.09442325, (2.718281828, 22.1671683, 261.11198), 0.5833333333),
        (2.0, 98.61015999, (7.389056099, 272.9907502, 14926.86536), 1.333333333),
    ],
)
def test_reference_values(load, condition, moments, variance):
    law = spectrum.ScalarLaw(load)
    assert law.condition == pytest.approx(condition, rel=1e-9)
    assert law.edges[1] == pytest.approx(condition**0.5, rel=1e-9)
    assert [float(law.moment(2 * k)) for k in (1, 2, 3)] == pytest.approx(moments, rel=1e-8)
    assert law.variance_log == pytest.approx(variance, rel=1e-9)
    assert float(law.isometry_gap) == pytest.approx(load)


@pytest.mark.parametrize("load", LOADS)
def test_density_distribution_moments_and_transform_agree(load):
    law = spectrum.ScalarLaw(load)
    top = math.log(law.edges[1])
    # Gauss-Chebyshev in log s: the density ends like a square root.
    angle = math.pi * ((torch.arange(2000, dtype=torch.float64) + 0.5) / 2000 - 0.5)
    s = (top * angle.sin()).exp()
    mass = law.density(s) * s * top * angle.cos() * math.pi / 2000
    assert float(mass.sum()) == pytest.approx(1, abs=1e-6)
    assert float((mass * s.log()).sum()) == pytest.approx(0, abs=1e-9)
    assert float((mass * s.log().square()).sum()) == pytest.approx(law.variance_log, rel=1e-5)
    for k in (1, 2, 4, -2, 2.5):
        assert float((mass * s**k).sum()) == pytest.approx(float(law.moment(k)), rel=1e-5)
    assert torch.allclose(mass.cumsum(0) - mass / 2, law.cdf(s), atol=1e-5)
    for w in (0.9 + 0.4j, -1.5 + 0.2j, 0.3 - 1.0j, 2j):
        expected = (mass * w / (w * w - s.square())).sum()
        assert complex(law.stieltjes(w)) == pytest.approx(complex(expected), rel=1e-4)


@pytest.mark.parametrize("load", LOADS)
def test_a_value_and_its_inverse_are_equally_likely(load):
    law = spectrum.ScalarLaw(load)
    q = torch.tensor([0.0, 0.01, 0.2, 0.5, 0.77, 1.0], dtype=torch.float64)
    assert torch.allclose(law.quantile(q) * law.quantile(1 - q), torch.ones_like(q), rtol=1e-6)
    assert torch.allclose(law.cdf(law.quantile(q)), q, atol=1e-9)
    s = torch.tensor([0.8, 1.1, 3.0], dtype=torch.float64)
    assert torch.allclose(law.cdf(s) + law.cdf(1 / s), torch.ones_like(s))
    assert torch.allclose(law.density(s) * s, law.density(1 / s) / s)


def test_outside_of_the_support_is_nothing():
    law = spectrum.ScalarLaw(0.5)
    s = torch.tensor([-1.0, 0.0, 0.99 * law.edges[0], 1.01 * law.edges[1], math.inf], dtype=torch.float64)
    assert law.density(s).tolist() == [0] * 5
    assert law.cdf(s).tolist() == [0, 0, 0, 1, 1]
    assert law.atoms[0].numel() == 0


def test_many_rotated_layers_come_close_to_it():
    # Rotations and random gates, the load spread over 60 layers.
    generator = torch.Generator().manual_seed(0)
    L, n, c = 60, 4, 0.5
    M = torch.linalg.qr(torch.randn(L, n, n, generator=generator, dtype=torch.float64))[0]
    read, write = torch.randn(2, L, n, generator=generator, dtype=torch.float64)
    energy = c * n / L / (read.square().sum(-1) * write.square().sum(-1))
    law = spectrum.predict(M, read, write, energy)
    assert law.scalar.load == pytest.approx(c)
    q = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    assert torch.allclose(law.quantile(q), law.scalar.quantile(q), rtol=0.04)
    assert law.condition > law.scalar.condition


@pytest.mark.parametrize("load", [0.0, -1.0, math.nan, math.inf])
def test_the_load_must_be_positive(load):
    with pytest.raises(ValueError, match="load: expected a finite number > 0"):
        spectrum.ScalarLaw(load)


def test_bad_questions_are_named():
    law = spectrum.ScalarLaw(0.5)
    with pytest.raises(ValueError, match=r"q: expected numbers in \[0, 1\]"):
        law.quantile(1.5)
    with pytest.raises(ValueError, match="w: expected finite complex numbers off the real axis"):
        law.stieltjes(1.0)
    with pytest.raises(ValueError, match="k: expected a finite number"):
        law.moment(math.nan)
    with pytest.raises(ValueError, match="s: expected numbers, got NaN"):
        law.cdf(math.nan)
