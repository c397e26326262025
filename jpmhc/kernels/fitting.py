"""Whether arguments of a boundary fit each other: compiled code looks at no sizes and would read behind an array."""

from __future__ import annotations

from jpmhc.kernels.boundary import Boundary, Pullback
from jpmhc.kernels.shapes import misshapen


def unfit(given: Boundary | Pullback) -> str | None:
    """Tell what does not fit the streams, or None. The reference then says so in its own words or broadcasts."""
    (tokens, n, d), weight = given.x.shape, given.weight
    projected, m = weight is not None, 0 if weight is None else len(weight)
    if n * d == 0:
        return f"no body for streams of {n} x {d}"
    if (given.post is None) != (given.y is None) or projected != (given.scale is not None):
        return "post without y, or weight without scale"
    if projected and m < n:
        return f"weight: expected at least {n} rows, got {m}"
    shapes = {
        "matrix": (tokens, n, n),
        "post": (tokens, n),
        "y": (tokens, d),
        "weight": (m, n * d),
        "bias": (n,) if projected else (tokens, n),
        "scale": (1,),
        "grad_streams": (tokens, n, d),
        "grad_u": (tokens, d),
        "grad_z": (tokens, m),
        "streams": (tokens, n, d),
        "z": (tokens, m),
        "pre": (tokens, n),
        "rms": (tokens,),
        "post_rms": (tokens, n),
    }
    return misshapen(given, shapes)
