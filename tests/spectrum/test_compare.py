import math

import pytest
import torch

from jpmhc import spectrum
from jpmhc.spectrum import MeasuredLaw


def measured(values):
    values = torch.as_tensor(values, dtype=torch.float64).reshape(1, 1, -1)
    size = values.numel()
    return MeasuredLaw(values, torch.full_like(values, 1 / size), shape=(size, size), method="exact")


class Stated(spectrum.Law):
    """A law in closed form: log-uniform between two ends, with an atom of a given mass at one place."""

    def __init__(self, low, high, atom=1.0, mass=0.0):
        self.low, self.high, self.atom, self.mass = low, high, atom, mass

    def stieltjes(self, w):
        raise NotImplementedError

    def density(self, s):
        s = torch.as_tensor(s, dtype=torch.float64)
        inside = (s >= self.low) & (s <= self.high)
        return torch.where(inside, (1 - self.mass) / (s * math.log(self.high / self.low)), 0)

    def cdf(self, s):
        s = torch.as_tensor(s, dtype=torch.float64)
        bulk = (s / self.low).log().div(math.log(self.high / self.low)).clamp(0, 1)
        return (1 - self.mass) * bulk + self.mass * (s >= self.atom)

    def quantile(self, q):
        q = torch.as_tensor(q, dtype=torch.float64)
        grid = torch.logspace(math.log10(self.low), math.log10(self.high), 20_001, dtype=torch.float64)
        return grid[torch.searchsorted(self.cdf(grid), q).clamp(max=20_000)]

    def moment(self, k):
        raise NotImplementedError

    @property
    def mean_log(self):
        raise NotImplementedError

    @property
    def edges(self):
        return self.low, self.high

    @property
    def atoms(self):
        count = 1 if self.mass else 0
        return tuple(torch.full((count,), x, dtype=torch.float64) for x in (self.atom, self.mass))


def test_distances_between_closed_forms():
    # Log-uniform on [1, e] against [1, e^2]: F = t against t / 2 in t = log s.
    found = spectrum.compare(Stated(1.0, math.e), Stated(1.0, math.e**2))
    assert found.kolmogorov == pytest.approx(0.5, abs=2e-3)
    assert found.wasserstein_log == pytest.approx(0.5, abs=2e-3)
    swapped = spectrum.compare(Stated(1.0, math.e**2), Stated(1.0, math.e))
    assert (swapped.kolmogorov, swapped.wasserstein_log) == (found.kolmogorov, found.wasserstein_log)
    same = spectrum.compare(Stated(0.5, 2.0), Stated(0.5, 2.0))
    assert (same.kolmogorov, same.wasserstein_log) == (0.0, 0.0)


def test_a_sample_of_a_law_is_as_far_as_statistics_allow():
    generator = torch.Generator().manual_seed(0)
    sample = torch.exp(torch.rand(4000, generator=generator, dtype=torch.float64))
    found = spectrum.compare(Stated(1.0, math.e), measured(sample))
    exact = ((torch.arange(4000) + 1) / 4000 - sample.sort().values.log()).abs().max()
    assert found.kolmogorov == pytest.approx(float(exact), abs=4e-3)
    assert found.wasserstein_log < 0.01
    assert all(abs(row["error"]) < 0.05 for row in found.table())


@pytest.mark.parametrize("atom", [0.7, 1.0])
def test_atoms_meet_the_measured_values_around_them(atom):
    law = Stated(0.5, 2.0, atom, 0.5)
    bulk = torch.logspace(math.log10(0.5), math.log10(2.0), 1000, dtype=torch.float64)
    noise = 1e-9 * torch.randn(1000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = spectrum.compare(law, measured(torch.cat([bulk, atom * (1 + noise)])))
    assert found.kolmogorov < 5e-3
    apart = spectrum.compare(law, measured(torch.cat([bulk, torch.full((1000,), 1.001 * atom)])))
    assert apart.kolmogorov == pytest.approx(0.5, abs=5e-3)


def test_zeros_meet_round_off():
    found = spectrum.compare(measured([0.0, 0.0, 1.0, 2.0]), measured([1e-17, 3e-16, 1.0, 2.0]))
    assert found.kolmogorov == 0
    assert found.wasserstein_log == pytest.approx(0, abs=1e-12)
    lost = spectrum.compare(measured([0.0, 0.0, 1.0, 2.0]), measured([0.5, 0.5, 1.0, 2.0]))
    assert lost.kolmogorov == pytest.approx(0.5)
    assert lost.wasserstein_log == pytest.approx(0.5 * math.log(0.5 / 2e-9), rel=0.05)
    assert spectrum.compare(measured([0.0]), measured([0.0, 0.0])).kolmogorov == 0


def test_the_table_names_levels_and_errors():
    found = spectrum.compare(measured([1.1, 2.2, 0.0]), measured([1.0, 2.0, 0.0]), levels=[0.1, 0.5, 1.0])
    assert [row["error"] for row in found.table()] == pytest.approx([0.0, 0.1, 0.1])
    assert "mean |log error|" in str(found)
    assert spectrum.compare(measured([1.0]), measured([0.0]), levels=[0.5]).table()[0]["error"] == math.inf


class Failing(Stated):
    def cdf(self, s):
        value = super().cdf(s)
        return torch.where(torch.as_tensor(s) > 1.5, torch.nan, value)


def test_places_without_a_prediction_are_counted():
    found = spectrum.compare(Failing(0.5, 2.0), Stated(0.5, 2.0))
    assert found.kolmogorov == pytest.approx(0, abs=1e-12)
    assert found.lost > 0
    assert "did not converge" in str(found)


@pytest.mark.parametrize("log", [False, True])
def test_the_overlay_shows_both(log):
    pytest.importorskip("matplotlib").use("agg")
    ax = spectrum.compare(Stated(0.5, 2.0), measured(torch.logspace(-0.3, 0.3, 200))).plot(log=log)
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["measured", "predicted"]


def test_mistakes_are_named():
    law = measured([1.0])
    with pytest.raises(TypeError, match="measured: expected a law, got Tensor"):
        spectrum.compare(law, torch.zeros(3))
    with pytest.raises(ValueError, match="levels: expected numbers in"):
        spectrum.compare(law, law, levels=[2.0])


def test_what_both_laws_have_near_zero_is_no_error():
    # A kernel: zero in the prediction, round-off in a decomposition.
    M = torch.diag(torch.tensor([1.0, 0.0])).double().expand(2, 2, 2)
    gates = torch.tensor([1.0, 0.0])
    law = spectrum.predict(M, gates, gates, 0.1)
    drawn = spectrum.simulate(M, gates, gates, 0.1, width=16)
    assert [row["error"] for row in spectrum.compare(law, drawn, [0.1, 0.4]).table()] == [0.0, 0.0]
    assert spectrum.compare(drawn, law, [0.9]).table()[0]["error"] != 0
