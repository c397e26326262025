"""Floating-point operations of the model by hand: a multiplication and an addition count as two.

A profiler sees only what is written as a matrix product, and no element-wise work: to it, twenty Sinkhorn sweeps cost
nothing. These closed forms count the matrix products of the network, the projection to the coefficients, and the
passes over the streams; the maps themselves (tens to hundreds of operations a token) are left out.
"""

from __future__ import annotations

from typing import NamedTuple

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
    if arm.mixer is None:
        return Residuals(0, 0, 0)
    n, d = config.streams, config.width
    places = 2 * config.blocks * config.positions
    outputs = 2 * n + _coefficients(arm, n)
    return Residuals(places * 2 * outputs * n * d, places * 2 * n * n * d, places * 4 * n * d)


def segment(config: ModelConfig, arm: Arm, train: bool) -> int:
    """Return the operations of one segment on one sample.

    Forward, all ``h_cycles (l_cycles + 1)`` net calls and the heads; with ``train``, twice that again for the calls
    that carry gradient and the heads (once for the mixing where the mixer has no gradient).
    """
    calls, with_gradient = config.calls, config.gradient_calls
    parts = residuals(config, arm)
    call = net_call(config) + sum(parts)
    heads = 2 * config.width * (VOCAB * config.side**2 + 1)
    forward = calls * call + heads
    if not train:
        return forward
    constant = arm.mixer is not None and _coefficients(arm, config.streams) == 0
    return forward + 2 * (with_gradient * call + heads) - (with_gradient * parts.mixing if constant else 0)


def _coefficients(arm: Arm, streams: int) -> int:
    assert arm.mixer is not None
    return layers.make_mixer(arm.mixer, streams, **arm.arguments).n_coefficients
