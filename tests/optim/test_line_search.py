import math

import pytest

from jpmhc.optim.line_search import Trial, wolfe


def bell(t):
    return math.exp(-(((t - 200) / 100) ** 2))


FUNCTIONS = {
    "quadratic": (lambda t: (t - 3) ** 2, lambda t: 2 * (t - 3)),
    "far": (lambda t: -bell(t), lambda t: bell(t) * (t - 200) / 5000),
    "near": (lambda t: t**2 - 1e-6 * t, lambda t: 2 * t - 1e-6),
    "quartic": (lambda t: (t - 1) ** 4, lambda t: 4 * (t - 1) ** 3),
    "wave": (lambda t: math.cos(t + 0.5), lambda t: -math.sin(t + 0.5)),
    "barrier": (
        lambda t: -t - 0.01 * math.log(2 - t) if t < 2 else math.nan,
        lambda t: -1 + 0.01 / (2 - t) if t < 2 else math.nan,
    ),
}
OPTIONS = {"decrease": 1e-4, "curvature": 0.1, "noise": 0.0, "max_trials": 30}


@pytest.mark.parametrize("length", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize(("loss", "slope"), FUNCTIONS.values(), ids=list(FUNCTIONS))
def test_the_step_satisfies_the_strong_wolfe_conditions(loss, slope, length):
    start = Trial(0.0, loss(0.0), slope(0.0), None)
    found = wolfe(lambda t: Trial(t, loss(t), slope(t), t), start, length, **OPTIONS)
    assert found.payload == found.length > 0
    assert found.loss <= start.loss + 1e-4 * found.length * start.slope
    assert abs(slope(found.length)) <= 0.1 * abs(start.slope)


def test_slopes_lead_where_losses_are_equal_to_round_off():
    start = Trial(0.0, 1.0, -1e-9, None)
    found = wolfe(lambda t: Trial(t, 1.0, 1e-9 * (t - 1), None), start, 0.3, **{**OPTIONS, "noise": 1e-15})
    assert abs(found.length - 1) < 0.1


def test_no_step_is_better_than_one_that_does_not_decrease():
    start = Trial(0.0, 0.0, -1.0, None)
    assert wolfe(lambda t: Trial(t, 1.0, 1.0, None), start, 1.0, **OPTIONS) is None


def test_trials_are_limited_and_the_furthest_decrease_is_kept():
    start, calls = Trial(0.0, 0.0, -1.0, None), []
    found = wolfe(lambda t: calls.append(t) or Trial(t, -t, -1.0, None), start, 1.0, **{**OPTIONS, "max_trials": 4})
    assert found.length == max(calls)
    assert len(calls) == 4
