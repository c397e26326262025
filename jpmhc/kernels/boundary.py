"""The boundary between two sublayers: write to the streams, normalise and project them, read from them.

One operation of two halves, each of which may be left out. N tokens, n streams of width d, m raw numbers a token.
Coefficients, which are everything but x, x', y and u, share one dtype, float32 at least and no narrower than x and y.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from jpmhc.kernels.precision import cast
from jpmhc.kernels.primitive import primitive, repeated


class Boundary(NamedTuple):
    """Arguments of `boundary_forward`; see there for shapes of what it returns."""

    x: Tensor
    """Streams (N, n, d)."""
    matrix: Tensor | None
    """Mixer M (N, n, n); None for the identity."""
    post: Tensor | None
    """Write weights (N, n); None, like `y`, where nothing is written and ``x' = x``."""
    y: Tensor | None
    """Result of the branch (N, d)."""
    weight: Tensor | None
    """Projection W (m, n d); its first n rows make the raw numbers of the read. None where nothing is projected."""
    bias: Tensor | None
    """Added to the raw numbers of the read (n,); with the gate ``"given"`` the read weights (N, n). None where nothing
    is read."""
    scale: Tensor | None
    """Of the raw numbers of the read, (1,); None with the gate ``"given"``."""
    gate: str
    """``"softmax"``, ``"sigmoid"``, ``"tanh"`` (``pre = bias + scale tanh(z)``) or ``"given"``."""
    normed: bool
    """Whether z is divided by the root mean square of the token's n d numbers."""
    eps: float
    """Added to that mean square."""
    post_eps: float
    """If not negative, every stream of x' is divided by its own root mean square, with this added to the mean
    square."""

    @property
    def like(self) -> Tensor:
        """A tensor of the dtype of the coefficients."""
        return next(tensor for tensor in (self.bias, self.post, self.x) if tensor is not None)

    @property
    def post_normed(self) -> bool:
        """Whether every stream is normalised after the write."""
        return self.post is not None and self.post_eps >= 0

    def results(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Make room for what `boundary_forward` returns."""
        x, like = self.x, self.like
        tokens, n, d = x.shape
        rows = 0 if self.weight is None else self.weight.shape[0]
        return (
            x.new_empty(0 if self.post is None else (tokens, n, d)),
            x.new_empty(0 if self.bias is None else (tokens, d)),
            like.new_empty(0 if self.weight is None else (tokens, rows)),
            like.new_empty(0 if self.bias is None else (tokens, n)),
            like.new_empty(tokens if self.weight is not None and self.normed else 0),
            like.new_empty((tokens, n) if self.post_normed else 0),
        )


class Pullback(NamedTuple):
    """Arguments of `boundary_backward`."""

    grad_streams: Tensor | None
    """Gradient of x' (N, n, d); None, like the next two, for zero."""
    grad_u: Tensor | None
    """Gradient of u (N, d)."""
    grad_z: Tensor | None
    """Gradient of z (N, m)."""
    x: Tensor
    """This and the next five as in `Boundary`."""
    matrix: Tensor | None
    post: Tensor | None
    y: Tensor | None
    weight: Tensor | None
    scale: Tensor | None
    streams: Tensor
    """x' (N, n, d), which is x where nothing is written."""
    z: Tensor | None
    """This and the next three as `boundary_forward` returned them; None where they are empty."""
    pre: Tensor | None
    rms: Tensor | None
    post_rms: Tensor | None
    gate: str
    """As in `Boundary`."""

    @property
    def like(self) -> Tensor:
        """A tensor of the dtype of the coefficients."""
        return next(tensor for tensor in (self.pre, self.post, self.x) if tensor is not None)

    def results(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Make room for what `boundary_backward` returns."""
        like, pre, scale = self.like, self.pre, self.scale
        return (
            self.x.new_empty(self.x.shape),
            like.new_empty(0 if self.matrix is None else self.matrix.shape),
            like.new_empty(0 if self.post is None else self.post.shape),
            like.new_empty(0) if self.y is None else self.y.new_empty(self.y.shape),
            like.new_empty(0 if self.weight is None else self.weight.shape),
            like.new_empty(0 if pre is None else pre.shape if scale is None else pre.shape[1]),
            like.new_empty(0 if scale is None else 1),
        )


@primitive("boundary_forward", fake=Boundary.results, vmap=repeated, arguments=Boundary)
def boundary_forward(boundary: Boundary) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Compute ``x' = M x + post y^T``, ``z = W vec(x') / rms``, ``pre = gate(bias + scale z)``, ``u = pre^T x'``.

    Parameters
    ----------
    boundary : Boundary
        Its fields are the arguments of the operation.

    Returns
    -------
    streams : Tensor, shape (N, n, d)
        x', in the dtype of x. Like every result that was not asked for it is empty, (0,), if nothing is written.
    u : Tensor, shape (N, d)
        In the dtype of x.
    z, pre : Tensor, shapes (N, m) and (N, n)
        Raw numbers, before scale and bias, and read weights.
    rms, post_rms : Tensor, shapes (N,) and (N, n)
        Reciprocal root mean squares of x' and, before that division, of its streams.

    Notes
    -----
    x' is rounded to its dtype before it is read and projected, as if another operation read it. Moves ``(2n + 2) d``
    numbers a token where both halves are one pass.
    """
    x, matrix, post, y, weight, bias, scale, gate, normed, eps, post_eps = boundary
    like = boundary.like
    streams, u = x.new_empty(0), x.new_empty(0)
    z, pre, rms, post_rms = (like.new_empty(0) for _ in range(4))
    if post is not None and y is not None:
        fresh = written(x, matrix, post, y)
        if post_eps >= 0:
            post_rms = torch.rsqrt(fresh.square().mean(-1).add_(post_eps))
            fresh.mul_(post_rms.unsqueeze(-1))
        x = streams = cast(fresh, x.dtype)
    if bias is not None:
        wide = cast(x, bias.dtype)
        if weight is not None:
            flat = wide.flatten(1)
            z = flat @ weight.t()
            if normed:
                rms = torch.rsqrt(flat.square().mean(-1).add_(eps))
                z.mul_(rms.unsqueeze(-1))
        pre = open_gate(z, bias, scale, gate)
        u = cast((pre.unsqueeze(2) * wide).sum(1), x.dtype)
    # A result may not be an argument itself.
    return streams, u, z, pre.clone() if pre is bias else pre, rms, post_rms


@primitive("boundary_backward", fake=Pullback.results, vmap=repeated, arguments=Pullback)
def boundary_backward(pullback: Pullback) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Pull gradients of x', u and z back to everything they were made of.

    Parameters
    ----------
    pullback : Pullback
        Its fields are the arguments of the operation.

    Returns
    -------
    grad_x, grad_matrix, grad_post, grad_y, grad_weight, grad_bias, grad_scale : Tensor
        In shape and dtype of what they belong to; empty, (0,), where that is None.

    Notes
    -----
    The gradient of x' is made of what comes from the next boundary, from the read, from the projection and from the
    norm, and is written once. Moves ``(4n + 3) d`` numbers a token where all is one pass. Sums over tokens are made in
    an order that depends on nothing but the number of tokens; in the reference the one of ``grad_weight`` is torch's.
    """
    grad_streams, grad_u, grad_z, x, matrix, post, y, weight, scale, streams, z, pre, rms, post_rms, gate = pullback
    like = pullback.like
    # Contiguous, as it is added to through views.
    total = torch.zeros(x.shape, dtype=like.dtype, device=x.device)
    if grad_streams is not None:
        total.copy_(grad_streams)
    grad_matrix, grad_post, grad_y, grad_weight, grad_bias, grad_scale = (like.new_empty(0) for _ in range(6))
    wide = streams.to(like.dtype)
    if pre is not None:
        slope = torch.zeros_like(pre)
        if grad_u is not None:
            arriving = grad_u.to(like.dtype)
            slope = torch.bmm(wide, arriving.unsqueeze(2)).squeeze(2)
            total.addcmul_(pre.unsqueeze(2), arriving.unsqueeze(1))
        if weight is None or scale is None or z is None:
            grad_bias = slope
        else:
            grad_raw, grad_bias, grad_scale = close_gate(slope, z, pre, scale, grad_z, gate)
            flat = wide.flatten(1)
            if rms is not None:
                radial = (grad_raw * z).sum(1).mul_(rms.square()).div_(-flat.shape[1])
                total.addcmul_(radial.view(-1, 1, 1), wide)
                grad_raw = grad_raw * rms.unsqueeze(1)
            total.flatten(1).addmm_(grad_raw, weight)
            grad_weight = grad_raw.t() @ flat
    if post_rms is not None:
        inner = (total * wide).mean(2, keepdim=True)
        total.addcmul_(inner, wide, value=-1).mul_(post_rms.unsqueeze(2))
    if post is not None and y is not None:
        result = y.to(like.dtype)
        grad_post = torch.bmm(total, result.unsqueeze(2)).squeeze(2)
        grad_y = torch.bmm(post.unsqueeze(1), total).squeeze(1).to(y.dtype)
        if matrix is not None:
            grad_matrix = torch.bmm(total, x.to(like.dtype).mT)
            total = torch.bmm(matrix.mT, total)
    return total.to(x.dtype), grad_matrix, grad_post, grad_y, grad_weight, grad_bias, grad_scale


def written(x: Tensor, matrix: Tensor | None, post: Tensor, y: Tensor) -> Tensor:
    """Return ``M x + post y^T`` in the dtype of the coefficients."""
    x, y = cast(x, post.dtype), cast(y, post.dtype)
    fresh = post.unsqueeze(2) * y.unsqueeze(1)
    return x + fresh if matrix is None else torch.baddbmm(fresh, matrix, x)


def open_gate(z: Tensor, bias: Tensor, scale: Tensor | None, gate: str) -> Tensor:
    """Return the read weights (N, n) for raw numbers z (N, m)."""
    if scale is None:
        return bias
    raw = z[:, : bias.shape[0]]
    if gate == "tanh":
        return bias + scale * torch.tanh(raw)
    raw = bias + scale * raw
    return torch.softmax(raw, 1) if gate == "softmax" else torch.sigmoid(raw)


def close_gate(
    slope: Tensor, z: Tensor, pre: Tensor, scale: Tensor, grad_z: Tensor | None, gate: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Pull the gradient ``slope`` (N, n) of the read weights back to z, bias and scale.

    Returns
    -------
    grad_z : Tensor, shape (N, m)
        With the gradient that came to z from elsewhere.
    grad_bias, grad_scale : Tensor, shapes (n,) and (1,)
    """
    raw = z[:, : pre.shape[1]]
    if gate == "softmax":
        slope = pre * (slope - (pre * slope).sum(1, keepdim=True))
    elif gate == "sigmoid":
        slope = pre * (1 - pre) * slope
    else:
        raw = torch.tanh(raw)
    total = torch.zeros_like(z) if grad_z is None else grad_z.clone()
    grad_raw = slope * scale
    total[:, : pre.shape[1]] += grad_raw * (1 - raw.square()) if gate == "tanh" else grad_raw
    return total, *gate_sums(slope, raw)


def gate_sums(slope: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
    """Sum the gradients of bias (n,) and scale (1,) over the tokens of ``slope`` and ``raw`` (N, n).

    In an order that the number of threads does not change: torch gives every thread a part of the tokens where the
    result is a single number, and columns otherwise.
    """
    bias, scale = torch.stack([slope, slope * raw], 1).sum(0)
    return bias, scale.sum().view(1)
