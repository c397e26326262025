"""What a token's raw numbers become beside the read weights: write weights, and the numbers that a mixer is made of.

N tokens of m raw numbers z: n of the read, n of the write, and those of the mixer. All tensors share one dtype.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from jpmhc.kernels.primitive import primitive, repeated
from jpmhc.kernels.shapes import misshapen

GATES = ("softmax", "sigmoid", "tanh")


class Gates(NamedTuple):
    """Arguments of `gates_forward`."""

    z: Tensor
    """Raw numbers (N, m), in the order read, write, mixer; those of the read are passed over."""
    bias: Tensor
    """Added to the raw numbers (m - n,) of the write and the mixer, after the scale."""
    scale: Tensor
    """Of the write's raw numbers and of the mixer's, (2,)."""
    gate: str
    """``"softmax"``, ``"sigmoid"`` or ``"tanh"``, as in `boundary.Boundary`."""
    streams: int
    """n."""
    squashed: bool
    """Whether the mixer's raw numbers are bounded by tanh before the scale."""

    def results(self) -> tuple[Tensor, Tensor]:
        """Make room for what `gates_forward` returns."""
        tokens, m = self.z.shape
        return self.z.new_empty(tokens, self.streams), self.z.new_empty(tokens, m - 2 * self.streams)


class GatesPullback(NamedTuple):
    """Arguments of `gates_backward`."""

    grad_post: Tensor
    """Gradient of the write weights (N, n)."""
    grad_raw: Tensor
    """Gradient of the mixer's numbers (N, m - 2 n)."""
    z: Tensor
    """This and the next two as in `Gates`."""
    post: Tensor
    """Write weights, as `gates_forward` returned them."""
    scale: Tensor
    gate: str
    squashed: bool

    def results(self) -> tuple[Tensor, Tensor]:
        """Make room for what `gates_backward` returns."""
        (_, m), n = self.z.shape, self.post.shape[-1]
        return self.z.new_empty(self.z.shape), self.z.new_empty(m - n + 2)


def unfit(given: Gates | GatesPullback) -> str | None:
    """Tell what does not fit, or None: compiled code looks at no sizes and would read behind an array."""
    tokens, m = given.z.shape[0], given.z.shape[-1]
    n = given.streams if isinstance(given, Gates) else given.post.shape[-1]
    if given.gate not in GATES:
        return _unknown(given.gate)
    if given.z.ndim != 2 or not 1 <= n <= m // 2:
        return f"z: expected (N, m) with m of at least {2 * n}, got {tuple(given.z.shape)}"
    rows = {"post": (tokens, n), "grad_post": (tokens, n), "grad_raw": (tokens, m - 2 * n)}
    return misshapen(given, {"bias": (m - n,), "scale": (2,), **rows})


def _unknown(gate: str) -> str:
    return f"gate: expected one of {', '.join(GATES)}, got {gate!r}"


@primitive("gates_forward", fake=Gates.results, vmap=repeated, arguments=Gates)
def gates_forward(gates: Gates) -> tuple[Tensor, Tensor]:
    """Open the write gate and shift the numbers of the mixer.

    Parameters
    ----------
    gates : Gates
        Its fields are the arguments of the operation.

    Returns
    -------
    post : Tensor, shape (N, n)
        ``n softmax(b + s z)``, ``2 sigmoid(b + s z)`` or ``1 + b + s tanh(z)`` of the write's raw numbers.
    raw : Tensor, shape (N, m - 2 n)
        ``b + s z``, or with tanh(z) in the place of z, of the mixer's.
    """
    return plain_gates(*gates)


@primitive("gates_backward", fake=GatesPullback.results, vmap=repeated, arguments=GatesPullback)
def gates_backward(pullback: GatesPullback) -> tuple[Tensor, Tensor]:
    """Pull gradients of write weights and of the mixer's numbers back to the raw numbers, bias and scale.

    Parameters
    ----------
    pullback : GatesPullback
        Its fields are the arguments of the operation.

    Returns
    -------
    grad_z : Tensor, shape (N, m)
        Zero for the raw numbers of the read.
    grad_parameters : Tensor, shape (m - n + 2,)
        Of the bias, then of the two scales. One tensor, as it is one sum over the tokens, in an order that depends on
        nothing but their number.
    """
    grad_post, grad_raw, z, post, scale, gate, squashed = pullback
    n = post.shape[1]
    write, mixing = z[:, n : 2 * n], z[:, 2 * n :]
    slope = grad_post
    if gate == "softmax":
        slope = post * (grad_post - (post * grad_post).sum(1, keepdim=True) / n)
    elif gate == "sigmoid":
        slope = post * (1 - post / 2) * grad_post
    else:
        write = write.tanh()
    if squashed:
        mixing = mixing.tanh()
    by_write, by_mixer = slope * scale[0], grad_raw * scale[1]
    if gate == "tanh":
        by_write = by_write * (1 - write.square())
    if squashed:
        by_mixer = by_mixer * (1 - mixing.square())
    grad_z = torch.cat([torch.zeros_like(slope), by_write, by_mixer], 1)
    # By columns, which the number of threads does not change; sums to one number would be cut by it.
    sums = torch.cat([slope, grad_raw, slope * write, grad_raw * mixing], 1).sum(0)
    bias, scales = sums.tensor_split([z.shape[1] - n])
    return grad_z, torch.cat([bias, scales[:n].sum(0, keepdim=True), scales[n:].sum(0, keepdim=True)])


def plain_gates(
    z: Tensor, bias: Tensor, scale: Tensor, gate: str, streams: int, squashed: bool
) -> tuple[Tensor, Tensor]:
    """Do as `gates_forward` in operations that torch can differentiate."""
    if gate not in GATES:
        raise ValueError(_unknown(gate))
    _, write, mixing = z.tensor_split([streams, 2 * streams], 1)
    of_write, of_mixer = scale.unbind()
    if gate == "tanh":
        write = write.tanh()
    if squashed:
        mixing = mixing.tanh()
    write = bias[:streams] + of_write * write
    mixing = bias[streams:] + of_mixer * mixing
    if gate == "softmax":
        return streams * write.softmax(1), mixing
    return 2 * write.sigmoid() if gate == "sigmoid" else 1 + write, mixing
