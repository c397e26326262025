"""The boundary between two sublayers as one differentiable function, and its two halves alone."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from jpmhc.kernels.boundary import Boundary, Pullback, boundary_backward, boundary_forward, open_gate, written
from jpmhc.kernels.once import anchor
from jpmhc.kernels.precision import cast, full_precision
from jpmhc.kernels.primitive import choice
from jpmhc.kernels.transforms import signed, transform_depth, wants_derivative


class Writing(NamedTuple):
    """What is written to the streams: ``M x + post y^T``, and the norm after it."""

    matrix: Tensor | None
    """Mixer (..., n, n) or (n, n); None for the identity."""
    post: Tensor
    """Write weights (..., n) or (n,)."""
    y: Tensor
    """Result of the branch (..., d)."""
    eps: float | None = None
    """If given, every stream is then divided by its root mean square, with this added under the root."""


class Reading(NamedTuple):
    """How the streams are read: with weights that are given, or that a gate makes of the token's own streams."""

    bias: Tensor
    """Raw read weights (n,), or with the gate ``"given"`` read weights (..., n) or (n,)."""
    weight: Tensor | None = None
    """Projection (m, n d) to the raw numbers, the first n of the read; None with the gate ``"given"``."""
    scale: Tensor | None = None
    """Of the read's raw numbers, (1,)."""
    gate: str = "given"
    """``"given"``, ``"softmax"``, ``"sigmoid"`` or ``"tanh"``."""
    eps: float | None = None
    """If given, the raw numbers are divided by the root mean square of the token, with this added under the root."""


class Crossing(NamedTuple):
    """The other side of a boundary."""

    streams: Tensor
    """Streams (..., n, d) to go on with: the written ones, or those that came in. Use these alone from here on, so
    that their gradient comes back in one piece."""
    u: Tensor | None
    """Input (..., d) of the next branch."""
    z: Tensor | None
    """Raw numbers (..., m) of that sublayer, before scale and bias."""
    pre: Tensor | None
    """Its read weights (..., n), without gradient."""


def cross(x: Tensor, write: Writing | None = None, read: Reading | None = None) -> Crossing:
    """Write to the streams and read from them, in one pass over them where there is a body for it.

    Parameters
    ----------
    x : Tensor, shape (..., n, d)
        Streams.
    write, read
        The two halves, one of them at least.

    Returns
    -------
    Crossing
        Streams and u in the dtype of x, z and pre in that of the coefficients.

    Notes
    -----
    Reverse mode of every order and ``torch.compile`` go through the operations ``jpmhc::boundary_forward`` and
    ``jpmhc::boundary_backward``, which save the small results, x, x' and y only; backward passes that are to be
    differentiated again, forward mode, ``torch.func`` and compilation without a body go through plain PyTorch.
    """
    leading, (n, d) = x.shape[:-2], x.shape[-2:]
    halves = [t for half in (write, read) if half is not None for t in half if isinstance(t, Tensor)]
    dtype = torch.float32
    for tensor in (x, *halves):
        dtype = torch.promote_types(dtype, tensor.dtype)

    def tokens(tensor: Tensor | None, *size: int) -> Tensor | None:
        if tensor is None:
            return None
        tensor = cast(tensor, dtype)
        # Traced, the question would be a condition on sizes.
        flat = len(leading) == 1 and not torch.compiler.is_compiling() and tensor.shape == (*leading, *size)
        return tensor if flat else tensor.expand(*leading, *size).reshape(-1, *size)

    matrix = post = y = weight = bias = scale = None
    post_eps, gate, normed, eps = -1.0, "given", False, 0.0
    if write is not None:
        matrix, post, y = tokens(write.matrix, n, n), tokens(write.post, n), write.y.reshape(-1, d)
        post_eps = -1.0 if write.eps is None else write.eps
    if read is not None:
        gate, normed, eps = read.gate, read.eps is not None, read.eps or 0.0
        if read.weight is None or read.scale is None:
            bias = tokens(read.bias, n)
        else:
            bias, weight, scale = (cast(t, dtype) for t in (read.bias, read.weight, read.scale))
    given = Boundary(x.reshape(-1, n, d), matrix, post, y, weight, bias, scale, gate, normed, eps, post_eps)
    # Autocast would take the products of plain operations to half precision.
    with full_precision(x.device):
        if _needs_plain(x, dtype):
            streams, u, z, pre = _plain(given)
        else:
            # Where nothing asks for a derivative, a node would be a good part of what a token costs.
            # Nor can a graph of jit.trace hold one; its operations raise where they are differentiated.
            node = torch.compiler.is_compiling() or (
                wants_derivative(*given) and (not torch._C._is_tracing() or transform_depth() > 0)
            )
            run = _Boundary.apply if node else _Boundary.forward
            streams, u, z, pre = run(*given, _mark(given))[:4]
    # Exported, there and back again would be a condition on sizes that are free: nothing differentiates it, so x does.
    same = write is None and torch.compiler.is_exporting()
    return Crossing(
        x if same else streams.reshape(x.shape),
        None if read is None else u.reshape(*leading, d),
        None if weight is None else z.reshape(*leading, weight.shape[0]),
        None if read is None else pre.detach().reshape(*leading, n),
    )


def _needs_plain(x: Tensor, dtype: torch.dtype) -> bool:
    if transform_depth():
        return True
    # Inductor makes better code of plain operations than of a reference that it cannot look into.
    return torch.compiler.is_compiling() and not _has_body(x.device.type, x.dtype, dtype)


def _mark(boundary: Boundary) -> Tensor | None:
    if not torch.compiler.is_compiling():
        return None
    return next((anchor(t) for t in boundary[:7] if isinstance(t, Tensor) and t.requires_grad), None)


def _has_body(device: str, streams: torch.dtype, coefficients: torch.dtype) -> bool:
    # Many tokens, as their number may be a symbol; no memory of that size is taken.
    x = torch.empty(1, 2, 2, dtype=streams, device=device).expand(4096, 2, 2)
    bias = torch.empty(1, 2, dtype=coefficients, device=device).expand(4096, 2)
    given = Boundary(x, None, None, None, None, bias, None, "given", False, 0.0, -1.0)
    return choice("boundary_forward", *given).backend != "reference"


# What torch.compiler.assume_constant_result does, without importing the compiler.
_has_body._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _plain(boundary: Boundary) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`boundary_forward` in operations that torch can differentiate in every way."""
    x, matrix, post, y, weight, bias, scale, gate, normed, eps, post_eps = boundary
    nothing = x.new_empty(0)
    u, z, pre = nothing, nothing, nothing
    if post is not None and y is not None:
        fresh = written(x, matrix, post, y)
        if post_eps >= 0:
            fresh = fresh * torch.rsqrt(fresh.square().mean(-1, keepdim=True) + post_eps)
        x = fresh.to(x.dtype)
    if bias is not None:
        wide = x.to(bias.dtype)
        if weight is not None:
            flat = wide.flatten(1)
            z = flat @ weight.t()
            if normed:
                z = z * torch.rsqrt(flat.square().mean(-1, keepdim=True) + eps)
        pre = open_gate(z, bias, scale, gate)
        u = (pre.unsqueeze(2) * wide).sum(1).to(x.dtype)
    return x, u, z, pre


@signed
class _Boundary(torch.autograd.Function):
    """The boundary with its rule for reverse mode; forward mode raises, as there is no rule for it."""

    @staticmethod
    def forward(  # every argument by name: traced without a gradient, one of variable length would get ctx too
        x: Tensor,
        matrix: Tensor | None,
        post: Tensor | None,
        y: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        scale: Tensor | None,
        gate: str,
        normed: bool,
        eps: float,
        post_eps: float,
        _anchor: Tensor | None,
    ) -> tuple[Tensor, ...]:
        given = Boundary(x, matrix, post, y, weight, bias, scale, gate, normed, eps, post_eps)
        streams, *others = boundary_forward(given)
        # What is not written is handed on, so that its gradient arrives here and is added to in one place.
        return (x.view_as(x) if post is None else streams), *others

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        boundary = Boundary(*inputs[:-1])
        streams, _, z, pre, rms, post_rms = output
        writes, reads, projects = (t is not None for t in (boundary.post, boundary.bias, boundary.weight))
        kept = (
            streams if writes and (reads or boundary.post_normed) else None,
            z if projects else None,
            pre if reads else None,
            rms if projects and boundary.normed else None,
            post_rms if boundary.post_normed else None,
        )
        ctx.mark_non_differentiable(pre, rms, post_rms)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*boundary[:7], *kept)
        ctx.options = boundary[7:]

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        *inputs, streams, z, pre, rms, post_rms = ctx.saved_tensors
        boundary = Boundary(*inputs, *ctx.options)
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            return *_differentiable_backward(boundary, grads[:3]), None, None, None, None, None
        x, matrix, post, y, weight, _, scale = inputs
        kept = (x if streams is None else streams, z, pre, rms, post_rms)
        results = boundary_backward(
            Pullback._make((*grads[:3], x, matrix, post, y, weight, scale, *kept, boundary.gate))
        )
        absent = [given is None for given in inputs]
        return *(None if a else g for a, g in zip(absent, results, strict=True)), None, None, None, None, None


def _differentiable_backward(boundary: Boundary, grads: tuple[Tensor | None, ...]) -> list[Tensor | None]:
    """Do the backward pass in plain operations on aliases of the inputs, so that it has a derivative.

    Aliases, because the inputs depend on one another, and a gradient must not take that way too.
    """
    aliases: list[Any] = [None if tensor is None else tensor.view_as(tensor) for tensor in boundary[:7]]
    outputs = _plain(Boundary._make((*aliases, *boundary[7:])))[:3]
    chosen = [(o, g) for o, g in zip(outputs, grads, strict=True) if g is not None and o.requires_grad]
    wanted = [alias for alias in aliases if alias is not None and alias.requires_grad]
    found = torch.autograd.grad(
        [output for output, _ in chosen], wanted, [g for _, g in chosen], create_graph=True, allow_unused=True
    )
    places = iter(found)
    return [None if alias is None or not alias.requires_grad else next(places) for alias in aliases]
