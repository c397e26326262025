"""Write weights and the numbers of a mixer from a token's raw numbers, as one differentiable function."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from jpmhc.autodiff.precision import in_full_precision
from jpmhc.autodiff.transforms import differentiable, wants_rule
from jpmhc.kernels.bodies import asked_for_a_body
from jpmhc.kernels.gates import Gates, GatesPullback, gates_backward, gates_forward, plain_gates
from jpmhc.kernels.precision import cast
from jpmhc.kernels.transforms import recorded, signed, transform_depth

_FEW = 512  # tokens on a CPU of which plain operations take less than calling others


class Opening(NamedTuple):
    """How raw numbers behind those of the read become write weights and the numbers of a mixer."""

    bias: Tensor
    """Added to the numbers (m - n,) of write and mixer, after the scale."""
    scale: Tensor
    """Of the write's numbers and of the mixer's, (2,)."""
    gate: str
    """``"softmax"``, ``"sigmoid"`` or ``"tanh"``."""
    streams: int
    """n, the numbers of the read and of the write."""
    squashed: bool = False
    """Whether the mixer's numbers are bounded by tanh before they are scaled."""


def opened(z: Tensor, opening: Opening) -> tuple[Tensor, Tensor]:
    """Open the write gate, and scale and shift the numbers of the mixer.

    Parameters
    ----------
    z : Tensor, shape (..., m)
        Raw numbers, n of the read, n of the write, and the mixer's.
    opening : Opening
        What is done with them.

    Returns
    -------
    post : Tensor, shape (..., n)
        Write weights; see `jpmhc.kernels.gates.gates_forward` for the formulas.
    raw : Tensor, shape (..., m - 2 n)
        Numbers of the mixer.

    Notes
    -----
    One operation forward and one backward, and nothing but z, the write weights and the scale is kept for it. Passes
    that are to be differentiated again, forward mode, ``torch.func`` and compilation go through plain operations,
    which a compiler makes one of by itself, and so do few tokens on a CPU.
    """
    leading, dtype = z.shape[:-1], torch.promote_types(z.dtype, opening.bias.dtype)
    flat, bias, scale = (cast(tensor, dtype) for tensor in (z.reshape(-1, z.shape[-1]), *opening[:2]))
    given = flat, bias, scale, *opening[2:]
    # The number of tokens is asked for last: traced, the question would be a condition on it.
    if recorded() or transform_depth() or (flat.is_cpu and flat.shape[0] < _FEW and not asked_for_a_body()):
        post, raw = plain_gates(*given)
    else:
        post, raw = (_Gates.apply if wants_rule(*given) else _Gates.forward)(*given)
    return post.reshape(*leading, post.shape[-1]), raw.reshape(*leading, raw.shape[-1])


@signed
class _Gates(torch.autograd.Function):
    @staticmethod
    def forward(
        z: Tensor, bias: Tensor, scale: Tensor, gate: str, streams: int, squashed: bool
    ) -> tuple[Tensor, Tensor]:
        return gates_forward(Gates(z, bias, scale, gate, streams, squashed))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.options = inputs[3], inputs[5], len(inputs[1])
        ctx.save_for_backward(inputs[0], inputs[2], output[0])

    @staticmethod
    @in_full_precision
    def backward(ctx: Any, grad_post: Tensor, grad_raw: Tensor) -> tuple[Tensor | None, ...]:
        z, scale, post = ctx.saved_tensors
        gate, squashed, length = ctx.options
        # Of the write weights, a result, more derivatives come back to where they were made.
        rule = gates_backward.__wrapped__ if differentiable() else gates_backward  # type: ignore[attr-defined]
        grad_z, sums = rule(GatesPullback(grad_post, grad_raw, z, post, scale, gate, squashed))
        grad_bias, grad_scale = sums.split([length, 2])
        return grad_z, grad_bias, grad_scale, None, None, None
