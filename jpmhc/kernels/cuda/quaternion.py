"""Rotations by two quaternions on a GPU: one thread a token, eight numbers and sixteen in registers."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from jpmhc.kernels.bodies import body
from jpmhc.kernels.cuda.blocks import DTYPES, ROUNDED, numbers_of, token_block
from jpmhc.kernels.quaternion import COMPONENT, LEFT, RIGHT
from jpmhc.kernels.shapes import unpaired

_BLOCK = 128
_COMPONENT: tl.constexpr = tl.constexpr(COMPONENT)
_LEFT: tl.constexpr = tl.constexpr(LEFT)
_RIGHT: tl.constexpr = tl.constexpr(RIGHT)


@body(DTYPES, unpaired)
def quaternion_forward(pair: Tensor) -> Tensor:
    """Run `_forward` over all tokens."""
    result = pair.new_empty(*pair.shape[:-2], 4, 4)
    _launch(_forward, pair, result)
    return result


@body(DTYPES, unpaired)
def quaternion_adjoint(pair: Tensor, cotangent: Tensor) -> Tensor:
    """Run `_adjoint` over all tokens."""
    result = torch.empty_like(pair, memory_format=torch.contiguous_format)
    _launch(_adjoint, pair, cotangent, result)
    return result


def _launch(kernel, *tensors: Tensor) -> None:
    tokens = tensors[0].numel() // 8
    if tokens:
        tiny = torch.finfo(tensors[0].dtype).tiny
        with torch.cuda.device_of(tensors[0]):  # Triton launches on the current device
            kernel[(triton.cdiv(tokens, _BLOCK),)](*(t.contiguous() for t in tensors), tokens, tiny, _BLOCK, **ROUNDED)


@triton.jit
def _unit(a, b, c, d, tiny: tl.constexpr):
    """Return the unit quaternion and the inverse of the length, zero where there is none."""
    largest = tl.maximum(tl.maximum(tl.abs(a), tl.abs(b)), tl.maximum(tl.abs(c), tl.abs(d)))
    # Not by the largest, which passes over what is not a number.
    usable = ~((tl.abs(a) <= tiny) & (tl.abs(b) <= tiny) & (tl.abs(c) <= tiny) & (tl.abs(d) <= tiny))
    scale = 1.0 / tl.where(usable, largest, 1.0)
    a, b, c, d = a * scale, b * scale, c * scale, d * scale
    total = tl.where(usable, a * a + b * b + c * c + d * d, 1.0)
    factor = tl.where(usable, 1.0 / tl.sqrt(total), 0.0)
    unit = (tl.where(usable, a * factor, 1.0), b * factor, c * factor, d * factor)
    return unit, factor * scale


@triton.jit(do_not_specialize=["tokens"])
def _forward(pairs, result, tokens, tiny: tl.constexpr, BLOCK: tl.constexpr):
    t, inside = token_block(tl.program_id(0), tokens, BLOCK)
    x = numbers_of(pairs, t, inside, 8)
    p, _ = _unit(x[0], x[1], x[2], x[3], tiny)
    q, _ = _unit(x[4], x[5], x[6], x[7], tiny)
    for i in tl.static_range(4):
        for j in tl.static_range(4):
            total = p[0] * 0.0
            for k in tl.static_range(4):
                total += (_LEFT[i][k] * _RIGHT[k][j]) * (p[_COMPONENT[i][k]] * q[_COMPONENT[k][j]])
            tl.store(result + t * 16 + (4 * i + j), total, mask=inside)


@triton.jit(do_not_specialize=["tokens"])
def _adjoint(pairs, cotangent, result, tokens, tiny: tl.constexpr, BLOCK: tl.constexpr):
    t, inside = token_block(tl.program_id(0), tokens, BLOCK)
    x, g = numbers_of(pairs, t, inside, 8), numbers_of(cotangent, t, inside, 16)
    p, inverse_p = _unit(x[0], x[1], x[2], x[3], tiny)
    q, inverse_q = _unit(x[4], x[5], x[6], x[7], tiny)
    slopes_p, slopes_q = (), ()
    inner_p, inner_q = p[0] * 0.0, p[0] * 0.0
    for c in tl.static_range(4):
        first, second = p[0] * 0.0, p[0] * 0.0
        for i in tl.static_range(4):
            # The column where component c stands in row i, of both matrices.
            for k in tl.static_range(4):
                if _COMPONENT[i][k] == c:
                    for j in tl.static_range(4):
                        first += (_LEFT[i][k] * _RIGHT[k][j]) * (g[4 * i + j] * q[_COMPONENT[k][j]])
                        second += (_RIGHT[i][k] * _LEFT[j][i]) * (p[_COMPONENT[j][i]] * g[4 * j + k])
        slopes_p, slopes_q = slopes_p + (first,), slopes_q + (second,)
        inner_p += first * p[c]
        inner_q += second * q[c]
    for c in tl.static_range(4):
        tl.store(result + t * 8 + c, (slopes_p[c] - inner_p * p[c]) * inverse_p, mask=inside)
        tl.store(result + t * 8 + (4 + c), (slopes_q[c] - inner_q * q[c]) * inverse_q, mask=inside)
