"""Learning curves as inline SVG that takes its colours and its typeface from the page around it."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from benchmarks.arc.palette import Style
from benchmarks.arc.results import Metrics
from benchmarks.extras import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_POINTS = 500
_SMALLEST = 1e-12

# Matplotlib knows no CSS colours. These stand for them and are replaced in the SVG.
_INK, _RULE = "#010201", "#010202"


class Plot(NamedTuple):
    """One picture: what is drawn, how it is called, in which unit, and on which axis."""

    metric: str
    title: str
    percent: bool = False
    log: bool = False


PLOTS = (
    Plot("loss", "Training loss"),
    Plot("token_accuracy", "Token accuracy, %", percent=True),
    Plot("exact", "Exact match, %", percent=True),
    Plot("gradient_norm", "Gradient norm", log=True),
)


class Curve(NamedTuple):
    """An arm's curve over its seeds: lowest, mean and highest of the smoothed seeds, each of shape (points,)."""

    steps: npt.NDArray[np.float64]
    low: npt.NDArray[np.float64]
    mean: npt.NDArray[np.float64]
    high: npt.NDArray[np.float64]


def window(steps: int) -> int:
    """Return the width of the moving average, an odd number of steps: about a twentieth of the run."""
    return max(1, steps // 20) | 1


def smooth(values: npt.NDArray[np.float64], width: int) -> npt.NDArray[np.float64]:
    """Return the centred moving average of an odd number of values; at the ends it is over those that exist.

    Examples
    --------
    >>> smooth(np.array([0.0, 3.0, 0.0, 3.0]), 3).tolist()
    [1.5, 1.0, 2.0, 1.5]
    """
    padded = np.concatenate([np.zeros(width // 2), values, np.zeros(width // 2)])
    present = np.concatenate([np.zeros(width // 2), np.ones_like(values), np.zeros(width // 2)])
    kernel = np.ones(width)
    return np.convolve(padded, kernel, "valid") / np.convolve(present, kernel, "valid")


def curve(runs: Sequence[Metrics], metric: str, log: bool = False) -> Curve:
    """Smooth the runs of an arm and put them over each other, on the steps that all of them have.

    On a logarithmic axis averages are geometric.
    """
    steps = runs[0]["step"]
    for run in runs[1:]:
        steps = np.intersect1d(steps, run["step"])
    smoothed = []
    for run in runs:
        values = run[metric][np.isin(run["step"], steps)]
        smoothed.append(smooth(np.log(np.maximum(values, _SMALLEST)) if log else values, window(len(values))))
    stack = np.stack(smoothed)
    parts = (stack.min(0), stack.mean(0), stack.max(0))
    return Curve(_thin(steps), *(_thin(np.exp(part) if log else part) for part in parts))


def curves_svg(
    plot: Plot, runs: Mapping[str, Sequence[Metrics]], styles: Mapping[str, Style], baseline: float | None = None
) -> str:
    """Draw one metric of every arm.

    Parameters
    ----------
    plot : Plot
        What to draw.
    runs : mapping of sequence of Metrics
        Complete runs by arm, one a seed; an arm without any is left out.
    styles : mapping of Style
        By arm.
    baseline : float, optional
        What copying the input scores, a fraction, drawn as a horizontal line; for a plot in percent.

    Returns
    -------
    str
        An ``<svg>`` element. Its colours are ``currentColor``, ``var(--rule)`` and ``var(--arm-INK)`` with the inks of
        `palette.INKS`, so one drawing serves light and dark pages.

    Raises
    ------
    ModuleNotFoundError
        If matplotlib is not installed.
    """
    style = require("matplotlib.style", "bench")
    figure_module = require("matplotlib.figure", "bench")
    stand_ins = {_INK: "currentColor", _RULE: "var(--rule)"}
    scale = 100 if plot.percent else 1
    # No pyplot: a figure of its own touches no backend and no global state; "default" leaves out the user's settings.
    # Text stays text, set in the page's typeface; the salt makes names in the SVG reproducible and unlike other plots'.
    with style.context(["default", {"svg.fonttype": "none", "svg.hashsalt": plot.metric}]):
        figure = figure_module.Figure(figsize=(5.4, 3.0), layout="constrained")
        axes = figure.add_subplot()
        for number, (arm, several) in enumerate(runs.items()):
            if several:
                colour = f"#0103{number:02x}"
                stand_ins[colour] = f"var(--arm-{styles[arm].ink})"
                _draw_arm(axes, plot, several, colour, styles[arm].dashes, scale)
        if baseline is not None:
            axes.axhline(scale * baseline, color=_INK, linewidth=1, linestyle=(0, (1, 2)), zorder=1)
            note = axes.annotate(
                f"copying the input: {scale * baseline:.0f} %", (0, scale * baseline), (6, 3),
                xycoords=("axes fraction", "data"), textcoords="offset points", ha="left", va="bottom",
                color=_INK, fontsize=9, zorder=4,
            )  # fmt: skip
            note.set_in_layout(False)
        _set_axes(axes, plot)
        buffer = io.StringIO()
        figure.savefig(
            buffer, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type"))
        )
    return _for_page(buffer.getvalue(), stand_ins)


class Band(NamedTuple):
    """Lowest and highest of several numbers at some places, each of shape (places,); None is drawn as a gap."""

    places: Sequence[float]
    low: Sequence[float | None]
    high: Sequence[float | None]


def bands_svg(bands: Mapping[str, Band], styles: Mapping[str, Style], label: str) -> str:
    """Draw a band for every arm, on a logarithmic axis.

    Parameters
    ----------
    bands : mapping of Band
        By arm; what is below 1e-12 is drawn there.
    styles : mapping of Style
        By arm.
    label : str
        Of the horizontal axis.

    Returns
    -------
    str
        An ``<svg>`` element, as of `curves_svg`.
    """
    style, figure_module = require("matplotlib.style", "bench"), require("matplotlib.figure", "bench")
    stand_ins = {_INK: "currentColor", _RULE: "var(--rule)"}
    with style.context(["default", {"svg.fonttype": "none", "svg.hashsalt": label}]):
        figure = figure_module.Figure(figsize=(5.4, 3.0), layout="constrained")
        axes = figure.add_subplot()
        for number, (arm, band) in enumerate(bands.items()):
            colour = f"#0103{number:02x}"
            stand_ins[colour] = f"var(--arm-{styles[arm].ink})"
            low, high = ([math.nan if v is None else max(v, _SMALLEST) for v in side] for side in band[1:])
            pattern = (0, tuple(map(float, styles[arm].dashes.split()))) if styles[arm].dashes else "solid"
            axes.fill_between(band.places, low, high, color=colour, alpha=0.12, lw=0)
            for side, width in ((high, 1.8), (low, 0.9)):
                axes.plot(band.places, side, color=colour, linewidth=width, linestyle=pattern)
        _set_axes(axes, Plot("band", "", log=True))
        axes.set_xlabel(label, color=_INK, fontsize=10)
        buffer = io.StringIO()
        figure.savefig(
            buffer, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type"))
        )
    return _for_page(buffer.getvalue(), stand_ins)


def _draw_arm(axes: Axes, plot: Plot, runs: Sequence[Metrics], colour: str, dashes: str, scale: float) -> None:
    line = curve(runs, plot.metric, plot.log)
    if len(runs) == 1:
        raw = _thin(runs[0][plot.metric])
        axes.plot(line.steps, scale * raw, color=colour, alpha=0.22, linewidth=0.7, zorder=2)
    else:
        axes.fill_between(line.steps, scale * line.low, scale * line.high, color=colour, alpha=0.16, lw=0, zorder=2)
    pattern = (0, tuple(map(float, dashes.split()))) if dashes else "solid"
    axes.plot(line.steps, scale * line.mean, color=colour, linewidth=1.8, linestyle=pattern, zorder=3)


def _set_axes(axes: Axes, plot: Plot) -> None:
    ticker = require("matplotlib.ticker", "bench")
    axes.margins(x=0.01, y=0.1)
    axes.set_xlabel("step", color=_INK, fontsize=10)
    if plot.log:
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        decades = np.log10(high / low)
        # Less than a factor of five may hold one of 1, 2, 5 only; more than three decades hold too many of them.
        narrow, wide = decades < 0.7, decades > 3
        locator = ticker.MaxNLocator(5) if narrow else ticker.LogLocator(subs=(1,) if wide else (1, 2, 5))
        axes.yaxis.set_major_locator(locator)
        axes.yaxis.set_minor_locator(ticker.NullLocator())
        # Powers of ten would be set by Matplotlib's own typesetter, in its own typeface.
        axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    else:
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_locator(ticker.MaxNLocator(6, steps=(1, 2, 2.5, 5, 10)))
    axes.xaxis.set_major_locator(ticker.MaxNLocator(7, integer=True, steps=(1, 2, 5, 10)))
    axes.grid(axis="y", color=_RULE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelsize=10, labelcolor=_INK, pad=5)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(_RULE)


def _thin(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Average neighbours until at most `_MOST_POINTS` are left, so that a long run does not make a large file."""
    if len(values) <= _MOST_POINTS:
        return values
    return np.array([part.mean() for part in np.array_split(values, _MOST_POINTS)])


def _for_page(svg: str, stand_ins: Mapping[str, str]) -> str:
    """Cut an SVG file down to an element of an HTML page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'\sxmlns(:xlink)?="[^"]*"', "", svg).replace("xlink:href", "href")
    svg = re.sub(r'<svg[^>]*?(viewBox="[^"]*")[^>]*>', r'<svg \1 aria-hidden="true">', svg, count=1)
    # Groups are called the same in every figure, and an id may stand once in a page; what is referred to has a hash.
    svg = re.sub(r'\sid="[A-Za-z0-9.]+_\d+"', "", svg)
    # Typeface and line joins are the page's business; a hundredth of a point is finer than a pixel.
    svg = re.sub(r"font-family: [^;\"]+; ", "", svg)
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'="[^"]*"', lambda attribute: re.sub(r"(\d\.\d\d)\d+", r"\1", attribute[0]), svg)
    for stand_in, colour in stand_ins.items():
        svg = svg.replace(stand_in, colour)
    return svg.strip()
