"""A line search for the strong Wolfe conditions that still works where differences of the loss are round-off."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

Payload = TypeVar("Payload")


@dataclass(frozen=True)
class Trial(Generic[Payload]):
    """A step length, with the loss and its derivative along the curve there, and what the caller keeps with it."""

    length: float
    loss: float
    slope: float
    payload: Payload


def wolfe(
    evaluate: Callable[[float], Trial[Payload]],
    start: Trial[Payload],
    length: float,
    *,
    decrease: float,
    curvature: float,
    noise: float,
    max_trials: int,
) -> Trial[Payload] | None:
    """Return a step with ``|slope| <= curvature |slope_0|`` whose loss has decreased.

    A loss has decreased if it is at most ``loss_0 + decrease length slope_0``, or at most ``loss_0 + noise``: near an
    optimum the slope still tells the way where losses no longer differ (the approximate Wolfe conditions of Hager &
    Zhang, SIAM J. Optim. 16, 2005). A bracket is found by extrapolation, and closed by cubic interpolation of losses
    and slopes, or halving where a loss is not finite.

    Parameters
    ----------
    evaluate : Callable
        Length to trial.
    start : Trial
        At length 0, its slope negative.
    length : float
        First length tried, positive.
    decrease, curvature : float
        Constants of the two conditions, ``0 < decrease < curvature < 1``.
    noise : float
        Of the loss, >= 0.
    max_trials : int
        How often `evaluate` may be called.

    Returns
    -------
    Trial or None
        If the trials run out, the furthest one so far that decreased the loss; None if none did.
    """
    low, high = start, None
    for _ in range(max_trials):
        trial = evaluate(length)
        allowed = start.loss + max(decrease * length * start.slope, noise)
        if not (math.isfinite(trial.loss) and math.isfinite(trial.slope)) or trial.loss > allowed:
            high = trial
        elif abs(trial.slope) <= -curvature * start.slope:
            return trial
        elif trial.slope < 0:
            low = trial
        else:
            high = trial
        length = _between(low, high) if high is not None else _beyond(start, low)
    return low if low.length > 0 else None


def _beyond(start: Trial[Payload], low: Trial[Payload]) -> float:
    """Return where the secant of the slopes is zero, two to ten times as far."""
    bend = low.slope - start.slope
    zero = low.length * -start.slope / bend if bend > 0 else math.inf
    return min(max(zero, 2 * low.length), 10 * low.length)


def _between(low: Trial[Payload], high: Trial[Payload]) -> float:
    """Return the minimum of the cubic through both ends, a tenth of the bracket away from either."""
    width = high.length - low.length
    if not (math.isfinite(high.loss) and math.isfinite(high.slope)):
        return low.length + width / 10
    mean = low.slope + high.slope - 3 * (high.loss - low.loss) / width
    under_root = mean * mean - low.slope * high.slope
    if under_root < 0:
        return low.length + width / 2
    root = math.sqrt(under_root)
    divisor = high.slope - low.slope + 2 * root
    share = 1 - (high.slope + root - mean) / divisor if divisor else 0.5
    return low.length + width * min(max(share, 0.1), 0.9)
