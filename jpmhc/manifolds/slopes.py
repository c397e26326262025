"""The order at which a remainder vanishes, read off a log-log plot."""

import math
from collections.abc import Callable

_STEPS = tuple(0.1 * 2.0**-k for k in range(12))
_FLOOR = 1e-12  # below this a remainder in float64 is round-off


def slope(remainder: Callable[[float], float]) -> float:
    """Estimate the power p of ``remainder(t) = c t^p`` for small t.

    Parameters
    ----------
    remainder : callable
        From a step length to a size, in float64.

    Returns
    -------
    float
        The slope between the two shortest steps whose remainders are above round-off; infinite if fewer than two are,
        as then the remainder is zero; NaN if one is not finite.
    """
    points = [(t, remainder(t)) for t in _STEPS]
    if any(not math.isfinite(size) for _, size in points):
        return math.nan
    seen = [(t, size) for t, size in points if size > _FLOOR]
    if len(seen) < 2:
        return math.inf
    (t1, e1), (t2, e2) = seen[-2:]
    return math.log(e1 / e2) / math.log(t1 / t2)
