"""Laws of the learning curves."""

import re
import xml.etree.ElementTree as ET

import matplotlib
import numpy as np
import pytest

from benchmarks.arc import curves, palette


def run(steps, value=None, seed=0):
    values = np.random.default_rng(seed).uniform(0.1, 2, len(steps)) if value is None else np.full(len(steps), value)
    return {"step": np.asarray(steps, dtype=float)} | {plot.metric: values for plot in curves.PLOTS}


@pytest.mark.parametrize("width", [1, 3, 7, 41])
def test_smoothing_is_the_mean_of_the_neighbours_that_exist(width):
    values = np.random.default_rng(0).normal(size=20)
    half = width // 2
    expected = [values[max(0, i - half) : i + half + 1].mean() for i in range(len(values))]
    np.testing.assert_allclose(curves.smooth(values, width), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 19, 40, 300, 100_000])
def test_the_window_is_odd_and_no_longer_than_the_run(steps):
    assert curves.window(steps) % 2 == 1
    assert 1 <= curves.window(steps) <= steps


def test_constants_stay_what_they_are_in_both_kinds_of_average():
    for log in (False, True):
        curve = curves.curve([run(range(1, 31), 0.5), run(range(1, 31), 2.0, seed=1)], "loss", log)
        np.testing.assert_allclose(curve.low, 0.5)
        np.testing.assert_allclose(curve.high, 2.0)
        np.testing.assert_allclose(curve.mean, 1.0 if log else 1.25)


def test_seeds_of_different_length_meet_on_the_steps_that_all_have():
    curve = curves.curve([run(range(1, 31)), run(range(1, 21), seed=1)], "loss")
    np.testing.assert_array_equal(curve.steps, np.arange(1, 21))


def test_a_long_run_is_drawn_with_few_points():
    curve = curves.curve([run(range(1, 100_001))], "loss")
    assert len(curve.steps) == len(curve.mean) <= 500
    styles = palette.styles(["plain"])
    assert len(curves.curves_svg(curves.PLOTS[0], {"plain": [run(range(1, 100_001))]}, styles)) < 60_000


@pytest.mark.parametrize("plot", curves.PLOTS, ids=lambda plot: plot.metric)
@pytest.mark.parametrize("seeds", [1, 3])
def test_a_drawing_takes_colour_and_typeface_from_the_page(plot, seeds):
    arms = {"plain": [run(range(1, 41), seed=s) for s in range(seeds)], "free": [], "cayley": [run(range(1, 41))]}
    svg = curves.curves_svg(plot, arms, palette.styles(list(arms)), baseline=0.6 if plot.percent else None)
    ET.fromstring(svg)
    assert "var(--arm-plain)" in svg
    assert "var(--arm-cayley)" in svg
    assert "var(--arm-free)" not in svg, "an arm without a run is not drawn"
    assert not re.search(r"#[0-9a-fA-F]{6}", svg.replace("href=", "")), "no colour of its own"
    assert "font-family" not in svg
    assert "http" not in svg
    assert ("copying the input: 60 %" in svg) == plot.percent


@pytest.mark.parametrize("norms", [(0.98, 1.02), (0.7, 1.4), (0.3, 4.0), (0.001, 0.2), (1e-7, 1e5)])
def test_the_labels_of_a_logarithmic_axis_are_few_and_true(norms):
    arms = {"plain": [run(range(1, 41), norm) for norm in norms]}
    svg = curves.curves_svg(curves.PLOTS[3], arms, palette.styles(["plain"]))
    texts = [(element.text, float(element.get("y"))) for element in ET.fromstring(svg).iter("text")]
    after_the_steps = [text for text, _ in texts].index("step") + 1
    values, heights = np.array([(float(text), y) for text, y in texts[after_the_steps:]]).T
    assert 3 <= len(values) <= 10
    line = np.polyfit(np.log(values), heights, 1)
    np.testing.assert_allclose(np.polyval(line, np.log(values)), heights, atol=0.02)


def test_ids_are_unique_across_the_drawings_of_a_page():
    arms = {"plain": [run(range(1, 41))]}
    styles = palette.styles(["plain"])
    ids = [re.findall(r'\bid="([^"]+)"', curves.curves_svg(plot, arms, styles)) for plot in curves.PLOTS]
    flat = [name for several in ids for name in several]
    assert len(flat) == len(set(flat))


def test_equal_runs_give_equal_drawings_whatever_the_user_has_set():
    arms = {"plain": [run(range(1, 41))]}
    first = curves.curves_svg(curves.PLOTS[3], arms, palette.styles(["plain"]))
    with matplotlib.rc_context({"axes.facecolor": "red", "lines.marker": "o", "svg.hashsalt": None}):
        second = curves.curves_svg(curves.PLOTS[3], arms, palette.styles(["plain"]))
        assert matplotlib.rcParams["axes.facecolor"] == "red"
    assert first == second
