import pytest
import torch

from jpmhc import spectrum
from jpmhc.spectrum import figures

plt = pytest.importorskip("matplotlib.pyplot")


@pytest.fixture(autouse=True)
def closed():
    plt.switch_backend("agg")
    yield
    plt.close("all")


PROJECTOR = torch.diag(torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64))


def test_zeros_do_not_stretch_the_axis_of_singular_values():
    _, ax = plt.subplots()
    figures.singular_values(ax, PROJECTOR.expand(12, 3, 3))
    assert len(ax.lines) == 6
    low, high = ax.get_ylim()
    assert 0.1 < low < 1 < high < 10


def test_what_decays_is_followed_to_round_off():
    _, ax = plt.subplots()
    figures.singular_values(ax, (0.1 * torch.eye(2, dtype=torch.float64)).expand(20, 2, 2))
    low, high = ax.get_ylim()
    assert 1e-13 < low < 1e-12
    assert 0.1 < high < 1


def test_a_density_with_zeros_is_drawn_where_it_lies():
    law = spectrum.predict(PROJECTOR.expand(2, 3, 3), torch.tensor([1.0, 0.0, 0.0]), torch.ones(3), 0.1)
    ax = law.plot(log=True)
    places = ax.lines[0].get_xdata()
    assert places[0] > 1e-3 * law.edges[1]
    assert law.cdf(float(places[0])) == pytest.approx(float(law.cdf(0.0)), abs=1e-3)


def test_a_law_of_zeros_has_no_logarithms_to_draw():
    law = spectrum.predict(torch.zeros(1, 2, 2), torch.zeros(2), torch.ones(2), 0.1)
    assert law.edges == (0, 0)
    with pytest.raises(ValueError, match="log: expected a law with singular values above zero, got one of zeros"):
        law.plot(log=True)
    assert not plt.get_fignums()
    assert law.plot().get_xlabel() == "singular value s"


@pytest.mark.parametrize("log", [False, True])
def test_predictions_are_drawn_over_the_histogram(log):
    chain = spectrum.initial_chain("cayley", streams=2, depth=2)
    law = spectrum.predict(**chain, energy=0.3)
    drawn = spectrum.simulate(**chain, energy=0.3, width=16)
    figure = figures.prediction(law, chain["mixers"], drawn, log=log)
    left, right = figure.axes
    assert [text.get_text() for text in left.get_legend().get_texts()] == ["drawn", "predicted"]
    assert left.get_xscale() == right.get_yscale() == ("log" if log else "linear")
    low, high = left.get_xlim()
    assert low < drawn.edges[0] < drawn.edges[1] < high


def test_a_curve_may_be_given_by_its_points():
    s = torch.linspace(0.1, 2, 30)
    _, ax = plt.subplots()
    figures.densities(ax, None, {"recipe": (s, torch.ones(30))}, log=True)
    (line,) = ax.lines
    assert torch.allclose(torch.as_tensor(line.get_ydata()), s)
