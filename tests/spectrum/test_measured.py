import math
import warnings

import pytest
import torch

from jpmhc.spectrum import ExtremesWarning, MeasuredLaw, compare, measure


def law(values, shares=None):
    values = torch.tensor(values, dtype=torch.float64).reshape(1, 1, -1)
    shares = (
        torch.full_like(values, 1 / values.numel()) if shares is None else torch.tensor(shares).reshape(values.shape)
    )
    return MeasuredLaw(values, shares, shape=(values.numel(), values.numel()), method="exact")


def test_statistics_are_those_of_the_values():
    found = law([3.0, 1.0, 2.0, 4.0])
    assert found.edges == (1.0, 4.0)
    assert found.condition == 4.0
    assert found.cdf(torch.tensor([0.5, 1.0, 2.5, 4.0])).tolist() == [0.0, 0.25, 0.5, 1.0]
    assert found.quantile(torch.tensor([0.0, 0.25, 0.26, 0.5, 1.0])).tolist() == [1.0, 1.0, 2.0, 2.0, 4.0]
    assert float(found.moment(2)) == pytest.approx(7.5)
    assert float(found.mean_log) == pytest.approx(math.log(24) / 4)
    assert float(found.isometry_gap) == pytest.approx(math.log(7.5) - math.log(24) / 2)
    assert found.moment_error(2) == 0
    assert "s from 1 to 4" in str(found)
    with pytest.raises(ValueError, match=r"q: expected numbers in \[0, 1\]"):
        found.quantile(1.5)


def test_density_is_one_on_the_half_line():
    generator = torch.Generator().manual_seed(0)
    found = law(torch.rand(500, generator=generator).tolist())
    s = torch.linspace(-1, 3, 8001, dtype=torch.float64)
    assert float(torch.trapezoid(found.density(s), s)) == pytest.approx(1.0, abs=1e-3)
    # The reflection at zero keeps the density of uniform numbers flat there.
    assert float(found.density(0.0)) == pytest.approx(1.0, abs=0.25)
    assert (found.density(s[s < 0]) == 0).all()


def test_weightless_nodes_do_not_count():
    found = law([0.0, 2.0, 1.0], [0.0, 0.5, 0.5])
    assert float(found.mean_log) == pytest.approx(math.log(2) / 2)
    assert found.quantile(0.0) == 1.0
    assert float(found.expectation(torch.log)[0]) == pytest.approx(math.log(2) / 2)


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("values", [[0.0, 0.1, 0.5, 1.0, 1.1], [1.0, 1.0, 1.0], [0.0, 0.0]])
def test_histograms_have_the_area_of_what_they_show(log, values):
    pytest.importorskip("matplotlib").use("agg")
    found = law(values)
    ax = found.plot(log=log)
    bars = ax.patches[0].get_data()
    edges = torch.tensor(bars.edges).log() if log else torch.tensor(bars.edges)
    area = float((torch.tensor(bars.values) * edges.diff()).sum())
    nonzero = sum(v > 0 for v in values) / len(values)
    assert area == pytest.approx(nonzero if log else 1.0, rel=1e-6)
    if log and 0 < nonzero < 1:
        assert "% zero" in bars_label(ax)


def test_bins_of_a_histogram_are_not_rounded_to_the_default_dtype():
    pytest.importorskip("matplotlib").use("agg")
    found, edges = law([0.5, 1.0, 2.0]), []
    before = torch.get_default_dtype()
    for dtype in (torch.float64, torch.bfloat16):
        torch.set_default_dtype(dtype)
        try:
            edges.append(found.plot(log=True).patches[0].get_data().edges.tolist())
        finally:
            torch.set_default_dtype(before)
    assert edges[0] == edges[1]


def bars_label(ax):
    return ax.patches[0].get_label()


def test_what_round_off_leaves_of_zero_is_not_shown_as_a_singular_value():
    pytest.importorskip("matplotlib").use("agg")
    # A projector of rank two in single precision, off by its round-off.
    frame = torch.linalg.qr(torch.randn(4, 2, generator=torch.Generator().manual_seed(0)))[0]
    projector = frame @ frame.T
    found = measure(lambda x: projector @ (projector @ x), torch.zeros(4))
    assert 0 < found.edges[0] < found.floor < 1e-6
    assert bars_label(found.plot(log=True)) == "measured (50 % zero)"
    zeros = law([0.0, 0.0, 1.0, 1.0])
    assert compare(zeros, found).kolmogorov == 0
    assert measure(lambda x: x.double(), torch.zeros(4)).floor < 1e-15


def test_a_quadrature_is_drawn_and_printed_with_its_errors():
    pytest.importorskip("matplotlib").use("agg")
    # Two probes that find shares of 0.2 and 0.4 at one: 0.3 +- 0.1.
    values = torch.tensor([1.0, 2.0], dtype=torch.float64).expand(2, 1, 2)
    weights = torch.tensor([[[0.2, 0.8]], [[0.4, 0.6]]], dtype=torch.float64)
    found = MeasuredLaw(values, weights, shape=(9, 9), method="lanczos")
    ax = found.plot(points=2)
    (bars,) = ax.containers[0].lines[2]
    width = 1.02
    spans = [float(segment[1][1] - segment[0][1]) for segment in bars.get_segments()]
    assert spans == pytest.approx([0.2 / width, 0.2 / width])
    assert "E[s^2] 3.1 +- 0.3" in str(found)
    assert not law([1.0, 2.0]).plot().containers
    assert "+-" not in str(law([1.0, 2.0]))


@pytest.mark.parametrize("steps", [4, 16, 64])
def test_a_quadrature_says_how_far_its_distribution_function_may_be_off(steps):
    # Half of the values are alike; the others span seven decades, of which few steps see little.
    diagonal = torch.cat([torch.ones(400), torch.logspace(-7, 0.5, 400)]).double()
    zero = torch.zeros(800).double()
    exact = measure(lambda x: diagonal * x, zero)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExtremesWarning)
        found = measure(lambda x: diagonal * x, zero, "lanczos", steps=steps, max_steps=steps)
    s = torch.logspace(-8, 1, 90).double()  # not at 1, where equal values are equal up to round-off
    error, bound = (found.cdf(s) - exact.cdf(s)).abs(), found.cdf_error(s)
    assert (error <= bound + 0.02).all()
    assert float(bound.max()) > 0.1
    # Not everywhere: above the law there is nothing to be wrong about.
    assert float(bound[-1]) < 0.01
    assert (exact.cdf_error(s) == 0).all()
    comparison = compare(exact, found)
    assert comparison.kolmogorov <= comparison.uncertainty + 0.02
    assert f"within {comparison.uncertainty:.2g}" in str(comparison)
    assert compare(exact, exact).uncertainty == 0


def test_a_quadrature_that_found_every_value_is_sure():
    diagonal = torch.tensor([1.0, 2.0, 3.0]).repeat(10).double()
    found = measure(lambda x: diagonal * x, torch.zeros(30).double(), "lanczos", probes=30, steps=10)
    s = torch.tensor([0.5, 1.5, 2.5, 3.5]).double()
    assert float(found.cdf_error(s)[[0, 3]].max()) < 1e-12
    # What is left is the scatter of the probes, which is none over a whole basis of them.
    assert torch.allclose(found.cdf(s), torch.tensor([0, 1 / 3, 2 / 3, 1]).double(), atol=1e-9)
    assert float(found.cdf_error(s).max()) < 0.05


@pytest.mark.parametrize("method", ["exact", "lanczos"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_jacobian_without_full_rank_has_zeros_whatever_round_off_makes_of_them(method, dtype):
    generator = torch.Generator().manual_seed(0)
    left, right = torch.linalg.qr(torch.randn(2, 30, 10, generator=generator, dtype=torch.float64))[0]
    values = torch.linspace(1, 2, 10, dtype=torch.float64)
    matrix = ((left * values) @ right.T).to(dtype)
    # As many probes as directions: no scatter.
    found = measure(lambda x: matrix @ x, torch.zeros(30, dtype=dtype), method, probes=30, steps=30)
    assert found.condition == math.inf
    assert float(found.mean_log) == -math.inf
    assert float(found.isometry_gap) == math.inf
    assert float(found.moment(-1)) == math.inf
    assert float(found.mass_below(0)) == pytest.approx(2 / 3, abs=1e-5)
    assert float(found.quantile(0.5)) == 0
    assert float(found.moment(2)) == pytest.approx(float(values.square().sum()) / 30, rel=1e-5)
    # Of a largest value of two, from products in that dtype and singular values in float64.
    noise = max(4 * torch.finfo(dtype).eps, 30 * torch.finfo(torch.float64).eps)
    assert found.floor == pytest.approx(2 * noise, rel=1e-5)


def test_in_half_precision_values_count_as_they_were_found():
    values = torch.linspace(0.01, 1, 400).bfloat16()
    found = measure(lambda x: values * x, torch.zeros(400, dtype=torch.bfloat16))
    assert found.floor == pytest.approx(4 * 2**-7)
    assert found.condition == pytest.approx(100, rel=0.01)
    assert float(found.mass_below(0)) == 0
    assert float(found.mean_log) == pytest.approx(float(values.double().log().mean()), rel=1e-6)
    many = law([float(value) for value in range(1, 1001)])
    assert [float(many.quantile(torch.tensor(q, dtype=torch.bfloat16))) for q in (0.5, 1.0)] == [500, 1000]


def test_samples_of_different_sizes_have_zeros_of_their_own():
    scales = torch.tensor([[1.0, 2.0], [1e-20, 2e-20]], dtype=torch.float64)
    found = measure(lambda x: scales * x, torch.zeros(2, 2, dtype=torch.float64), batch_dims=1)
    assert found.condition == pytest.approx(2e20)
    assert float(found.mass_below(0)) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_levels_mean_the_same_in_every_dtype(dtype):
    found = law([float(value) for value in range(1, 11)])
    levels = torch.arange(11, dtype=torch.float64) / 10
    assert found.quantile(levels.to(dtype)).tolist() == [1.0, *range(1, 11)]


def test_questions_without_an_answer_are_refused():
    found = law([1.0, 2.0])
    for w in (1.0, 2.0, complex("nan"), torch.tensor([1j, 3.0])):
        with pytest.raises(ValueError, match="w: expected finite complex numbers off the real axis"):
            found.stieltjes(w)
    for question in (found.cdf, found.density, found.mass_below):
        with pytest.raises(ValueError, match="s: expected numbers, got NaN"):
            question(math.nan)
    with pytest.raises(ValueError, match=r"q: expected numbers in \[0, 1\], got \[0.5, nan\]"):
        found.quantile(torch.tensor([0.5, math.nan]))
