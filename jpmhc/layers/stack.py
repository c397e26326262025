"""A stack of hyper-connections that crosses the boundary between two layers in one pass over the streams."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from jpmhc.kernels.crossing import Writing, cross
from jpmhc.kernels.transforms import transform_depth
from jpmhc.layers.arguments import check_number
from jpmhc.layers.hooks import watched
from jpmhc.layers.hyper_connection import HyperConnection
from jpmhc.layers.outputs import check_result, split_first_tensor, with_rests
from jpmhc.layers.recompute import reads_recomputed


class HyperStack(nn.Module):
    """Consecutive hyper-connections; what a layer writes and what the next one reads is one pass over the streams.

    It computes what ``for layer in stack: x = layer(x)`` computes, and ``layer.last`` is kept as there; with
    ``post_norm`` it is ``x = norm(layer(x))``.

    Parameters
    ----------
    connections : iterable of HyperConnection
        Layers of the same number of streams and width. A layer that reads several times, cuts the streams into
        fractions, has hooks (or all modules have, as a profiler's), a ``forward`` of its own or was compiled in place
        (``layer.compile()``) runs by itself between two passes, as does a wrapper that is put in a layer's place later,
        in ``stack.connections``.
    post_norm : str or None
        ``"rms"``: every stream is divided by its root mean square after every layer, without gain, as the Tiny
        Recursive Model does.
    post_norm_eps : float
        Added to the mean square under the root.
    recompute_reads : bool
        Whether the branches' inputs are read from the streams again in the backward pass instead of being kept. It
        saves d numbers a token and layer, and costs a read of the streams for every tensor that a branch would have
        kept of its input. Leave it off under ``torch.utils.checkpoint`` around the stack, which would keep what the
        branches keep. Compiled stacks leave the choice to the compiler.

    Raises
    ------
    ValueError
        For no layer, layers that differ in streams or width, or an unknown norm.
    TypeError
        For anything that is not a HyperConnection, or has no branch.

    Notes
    -----
    Per token and layer ``(2n + 2) d`` numbers are moved forward and ``(4n + 3) d`` backward where a kernel runs
    (`jpmhc.kernels.choice`), against ``(9n + 2) d`` and ``(9n + 3) d`` one operation at a time. Kept for backward are
    the streams between layers, y and, if the branch needs it and it is not recomputed, u of width d, and the
    coefficients. y is needed for the gradient of the write weights, and nothing that is kept determines it.

    Examples
    --------
    >>> import torch
    >>> from jpmhc import layers
    >>> connections = [layers.HyperConnection(8, torch.nn.Linear(8, 8), layer_index=i) for i in range(3)]
    >>> stack = layers.HyperStack(connections)
    >>> x = layers.expand_streams(torch.randn(2, 5, 8), 4)
    >>> y = stack(x)
    >>> for layer in connections:
    ...     x = layer(x)
    >>> torch.allclose(x, y, atol=1e-6)
    True
    """

    def __init__(
        self,
        connections: Iterable[HyperConnection],
        *,
        post_norm: str | None = None,
        post_norm_eps: float = 1e-5,
        recompute_reads: bool = False,
    ) -> None:
        super().__init__()
        self.connections = connected(connections)
        if any(layer.branch is None for layer in self.connections):
            raise TypeError("connections: expected layers with a branch")
        if post_norm not in (None, "rms"):
            raise ValueError(f"post_norm: expected 'rms' or None, got {post_norm!r}")
        check_number("post_norm_eps", post_norm_eps, least=0.0)
        self.post_norm, self.post_norm_eps, self.recompute_reads = post_norm, post_norm_eps, recompute_reads

    def forward(
        self, x: Tensor, *args: Any, arguments: Sequence[Mapping[str, Any] | None] | None = None, **kwargs: Any
    ) -> Any:
        """Run all layers.

        Parameters
        ----------
        x : Tensor, shape (..., n, d)
            Streams.
        *args, **kwargs
            Passed on to every branch.
        arguments : sequence of mapping or None, optional
            Further keyword arguments of each layer's branch, one entry a layer.

        Returns
        -------
        Tensor, shape (..., n, d)
            The streams after the last layer. Where branches return tuples, lists or dicts, whose first tensor is
            written to the streams, a tuple of them and a list with one entry a layer of what is left: a tuple, a dict,
            or None for a branch that returned a tensor alone; nested ones keep their depth.

        Raises
        ------
        ValueError
            As the layers, and if ``arguments`` has another length.
        TypeError
            If a branch returns no tensor.
        """
        if arguments is None:
            arguments = [None] * len(self.connections)
        elif len(arguments) != len(self.connections):
            raise ValueError(f"arguments: expected {len(self.connections)} entries, got {len(arguments)}")
        eps = self.post_norm_eps if self.post_norm else None
        before: Writing | None = None
        rests = []
        for layer, own in zip(self.connections, arguments, strict=True):
            options = {**kwargs, **(own or {})}
            if _stands_alone(layer):
                x = x if before is None else cross(x, before).streams
                before = None
                x, rest = split_first_tensor(layer(x, *args, **options))
                rests.append(rest)
                x = x if eps is None else _normed(x, eps)
                continue
            layer._check_streams(x)  # type: ignore[operator]
            u, x, pre, writing = layer._entered(x, before)  # type: ignore[operator]
            with self._keeping(u, x, pre):
                y, rest = split_first_tensor(layer.branch(u, *args, **options))  # type: ignore[operator]
            rests.append(rest)
            check_result(y, x)
            before = writing(y, eps)
        return with_rests(x if before is None else cross(x, before).streams, rests)

    def _keeping(self, u: Tensor, x: Tensor, pre: Tensor) -> AbstractContextManager[None]:
        # First of all, as a trace may not even ask whether a tensor was made in inference mode.
        if not self.recompute_reads or torch.compiler.is_compiling() or transform_depth():
            return nullcontext()
        if not torch.is_grad_enabled() or u.is_inference():
            return nullcontext()
        return reads_recomputed(u, x, pre.detach())

    def extra_repr(self) -> str:
        """Show the norm, and whether reads are recomputed."""
        return f"post_norm={self.post_norm!r}, recompute_reads={self.recompute_reads}"


def connected(connections: Iterable[HyperConnection]) -> nn.ModuleList:
    """Return layers of one number of streams and width, at least one; see the errors of `HyperStack`."""
    made = nn.ModuleList(connections)
    if not made:
        raise ValueError("connections: expected at least one HyperConnection")
    for layer in made:
        if not isinstance(layer, HyperConnection):
            raise TypeError(f"connections: expected HyperConnection, got {type(layer).__name__}")
    shapes = {(layer.streams, layer.dim) for layer in made}
    if len(shapes) > 1:
        raise ValueError(f"connections: expected one number of streams and width, got {sorted(shapes)}")
    return made


def _stands_alone(layer: nn.Module) -> bool:
    # Checkpointing and torch.compile put wrappers in the place of layers, whose calls must stay calls of the wrapper.
    if not isinstance(layer, HyperConnection):
        return True
    own_methods = any(
        getattr(type(layer), name) is not getattr(HyperConnection, name) or name in vars(layer)
        for name in ("forward", "read", "enter")
    )
    return own_methods or watched(layer) or layer.reads > 1 or layer.fractions > 1


def _normed(x: Tensor, eps: float) -> Tensor:
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return nn.functional.rms_norm(wide, x.shape[-1:], eps=eps).to(x.dtype)
