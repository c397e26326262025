import copy
import math
import pickle

import pytest
import torch

from jpmhc import spectrum
from jpmhc.spectrum import Law


class Uniform(Law):
    """Half an atom at 1, half uniform on [1, 3]."""

    def stieltjes(self, w):
        raise NotImplementedError

    def density(self, s):
        return torch.where((s >= 1) & (s <= 3), 0.25, 0.0).double()

    def cdf(self, s):
        s = torch.as_tensor(s, dtype=torch.float64)
        return torch.where(s < 1, 0, 0.5 + 0.25 * (s - 1).clamp(0, 2))

    def quantile(self, q):
        raise NotImplementedError

    def moment(self, k):
        return torch.tensor(0.5 + 0.25 * (3 ** (k + 1) - 1) / (k + 1), dtype=torch.float64)

    @property
    def mean_log(self):
        return torch.tensor(0.25 * (3 * math.log(3) - 2), dtype=torch.float64)

    @property
    def edges(self):
        return 1.0, 3.0

    @property
    def atoms(self):
        return torch.tensor([1.0]), torch.tensor([0.5])


def test_what_follows_from_the_distribution():
    law = Uniform()
    assert law.condition == 3
    assert float(law.mass_below(2)) == 0.75
    s = torch.cat([torch.ones(100_000), torch.linspace(1, 3, 100_001)[1:]]).double()
    assert float(law.isometry_gap) == pytest.approx(float((s**2).mean().log() - 2 * s.log().mean()), abs=1e-4)


@pytest.mark.parametrize("log", [False, True])
def test_plot_draws_the_density_and_a_stem_for_an_atom(log):
    plt = pytest.importorskip("matplotlib.pyplot")
    ax = Uniform().plot(log=log, points=50, label="law")
    (line,) = ax.get_lines()
    s, density = torch.tensor(line.get_xdata()), torch.tensor(line.get_ydata())
    assert len(s) == 50
    inside = (s > 1) & (s < 3)
    assert torch.allclose(density[inside], 0.25 * s[inside] if log else torch.full_like(s[inside], 0.25))
    assert [text.get_text() for text in ax.texts] == ["0.50"]
    assert ax.get_xscale() == ("log" if log else "linear")
    plt.close("all")


def test_condition_is_infinite_where_a_direction_is_lost():
    class Lossy(Uniform):
        edges = (0.0, 3.0)

    assert Lossy().condition == math.inf


@pytest.mark.parametrize("branch", ["gaussian", "haar", "relu", "isotropic"])
def test_predicted_laws_are_pickled(branch):
    gates = (None, None) if branch == "isotropic" else (torch.tensor([0.7, 0.3]), torch.ones(2))
    law = spectrum.predict(torch.eye(2).expand(3, 2, 2), *gates, 0.1, branch)
    levels = torch.tensor([0.1, 0.5, 0.9])
    fresh = pickle.loads(pickle.dumps(law))
    torch.testing.assert_close(fresh.quantile(levels), law.quantile(levels))
    solved = copy.deepcopy(pickle.loads(pickle.dumps(law)))
    torch.testing.assert_close(solved.quantile(levels), law.quantile(levels))
    assert solved.edges == law.edges
