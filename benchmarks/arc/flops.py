"""Floating-point operations of the model by hand: a multiplication and an addition count as two.

A profiler sees only what is written as a matrix product, and no element-wise work: to it, twenty Sinkhorn sweeps cost
nothing. These closed forms count the matrix products of the network, the projection to the coefficients, and the
passes over the streams; the maps themselves (tens to hundreds of operations a token) are left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Size

from benchmarks.arc.arms import Arm
from benchmarks.arc.encode import VOCAB
from benchmarks.arc.model import ModelConfig
from jpmhc import layers


def net_call(config: ModelConfig) -> int:
    """Return the operations of one call of the net on one sample, without its residuals, forward."""
    t, d = config.positions, config.width
    weights = 4 * d * d + 3 * d * config.inner
    return config.blocks * t * (2 * weights + 4 * t * d)


class Residuals(NamedTuple):
    """Operations of one net call's residuals on one sample, forward."""

    projection: int  # streams to raw numbers
    mixing: int  # M x
    read_write: int  # sum_i pre_i x_i and post y^T


def residuals(config: ModelConfig, arm: Arm) -> Residuals:
    """Return the operations of one net call's residuals on one sample, forward; the plain one's addition is free."""
    if not arm.has_streams:
        return Residuals(0, 0, 0)
    n, d = config.streams, config.width
    layer = _layer(config, arm)
    # A layer that does not depend on the token has no projection; a shared one is applied to every stream.
    weights = 0 if layer.projection is None else layer.projection.numel() * (n if layer.shared else 1)
    places = 2 * config.blocks * config.positions
    return Residuals(places * 2 * weights, places * 2 * n * n * d * layer.mixer.mixes, places * 4 * n * d)


def segment(config: ModelConfig, arm: Arm, train: bool) -> int:
    """Return the operations of one segment on one sample.

    Forward, all ``h_cycles (l_cycles + 1)`` net calls and the heads; with ``train``, twice that again for the calls
    that carry gradient and the heads.
    """
    call = net_call(config) + sum(residuals(config, arm))
    heads = 2 * config.width * (VOCAB * config.side**2 + 1)
    forward = config.calls * call + heads
    return forward + 2 * (config.gradient_calls * call + heads) if train else forward


def mean_segment(config: ModelConfig, arm: Arm, shares: Mapping[int, float], train: bool) -> float:
    """Return the operations of one segment on one sample, on average over sides with these shares of the samples."""
    return sum(share * segment(replace(config, side=side), arm, train) for side, share in shares.items())


def chart(config: ModelConfig, arm: Arm) -> int | None:
    """Return the operations of the map from raw numbers to one mixer, forward: what the paper counts.

    Counted by hand from the formula that is evaluated, exponentials and the drawing of the skew matrix left out. None
    where the number of iterations depends on the data (an exact Sinkhorn) or no formula has been written down.

    Notes
    -----
    With n streams: T Sinkhorn sweeps, each normalising rows and columns, ``T (4 n^2 - 2 n)``; s steps of the truncated
    Cayley iteration ``Y <- I + B (I + Y)``, ``s (2 n^3 + 2 n^2) + n^2 + n``; the exact Cayley map at n = 4,
    ``(I + B)^2 ((1 + p) I + B^2) / (1 + p + q)``, two products, 16 for p and q and five passes over n^2 numbers.
    """
    if not arm.has_streams:
        return 0
    mixer, n = _layer(config, arm).mixer, config.streams
    if isinstance(mixer, layers.CayleyIterated):
        return mixer.iterations * (2 * n**3 + 2 * n**2) + n**2 + n
    if isinstance(mixer, layers.Cayley) and n == 4:
        return 2 * 2 * n**3 + 16 + 5 * n**2
    if isinstance(mixer, layers.Sinkhorn) and mixer.iterations is not None:
        return mixer.iterations * (4 * n**2 - 2 * n)
    return 0 if not mixer.mixes or isinstance(mixer, layers.Free) else None


def _boundary_forward(
    x: Size, matrix: Size | None, post: Size | None, _y: Size | None, weight: Size | None, *_: Any, **_k: Any
) -> int:
    return _boundary_products(x, matrix if post is not None else None, weight)


def _boundary_backward(
    _streams: Size | None, _u: Size | None, _z: Size | None, x: Size, matrix: Size | None, post: Size | None,
    _y: Size | None, weight: Size | None, *_: Any, **_k: Any,
) -> int:  # fmt: skip
    return 2 * _boundary_products(x, matrix if post is not None else None, weight)


def _boundary_products(x: Size, matrix: Size | None, weight: Size | None) -> int:
    tokens, n, d = x
    return 2 * tokens * n * d * ((0 if matrix is None else n) + (0 if weight is None else weight[0]))


# For torch's counter, which cannot look into an operation of ours: its matrix products.
COUNTER = {
    torch.ops.jpmhc.boundary_forward: _boundary_forward,
    torch.ops.jpmhc.boundary_backward: _boundary_backward,
}


def text(operations: float) -> str:
    """Write a number of operations with a unit that suits it.

    Examples
    --------
    >>> text(0), text(1.593e15)
    ('0', '1.593 PFLOP')
    """
    if not operations:
        return "0"
    power = min(max(int(math.log10(operations) // 3), 0), 7)
    return f"{operations / 1000**power:.4g} {('', 'k', 'M', 'G', 'T', 'P', 'E', 'Z')[power]}FLOP"


def _layer(config: ModelConfig, arm: Arm) -> layers.HyperConnection:
    return arm.layer(config.width, None, config.streams, 0, dynamic=config.dynamic, static=config.static)
