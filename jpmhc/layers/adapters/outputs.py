"""What a model with streams shows to the outside: hidden states are vectors, and outputs are those of the original."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from jpmhc.layers.streams import reduce_streams


class HiddenStates:
    """Forward hook of a module around a chain of blocks: replaces streams in its output by their mean.

    Libraries that collect what every block returns (``output_hidden_states=True``) collect streams.

    Parameters
    ----------
    ndim : int
        Dimensions of the residual vectors (..., d) between blocks.
    streams, width : int
        The last two sizes (n, d) of the streams.
    """

    def __init__(self, ndim: int, streams: int, width: int) -> None:
        self.ndim, self.end = ndim, (streams, width)

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        """Return the output with collected streams replaced; raise if streams themselves came out."""
        if isinstance(output, Mapping):
            self._refuse(next(iter(output.values()), None))
            for name, value in output.items():
                if "hidden_states" in name and isinstance(value, tuple):
                    output[name] = self._vectors(value)  # type: ignore[index]
            return output
        if type(output) is tuple and output:
            self._refuse(output[0])
            # One vector beside (batch, 1, tokens, d) may be of the last token alone.
            beside = {shape for shape in self._vector_shapes(output) if len(shape) < 3 or shape[-2] > 1}
            return tuple(self._vectors(item) if self._are_collected(item, beside) else item for item in output)
        self._refuse(output)
        return output

    def _vectors(self, values: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(reduce_streams(value) if self._are_streams(value) else value for value in values)

    def _are_collected(self, value: Any, beside: set[torch.Size]) -> bool:
        """Whether streams stand beside a vector for the same tokens, in the tuple or in the output that holds it.

        Keys and values of one head look like streams.
        """
        if not isinstance(value, tuple):
            return False
        vectors = self._vector_shapes(value) | beside
        return any(self._are_streams(item) and item.shape[:-2] + item.shape[-1:] in vectors for item in value)

    def _vector_shapes(self, values: tuple[Any, ...]) -> set[torch.Size]:
        return {item.shape for item in values if isinstance(item, Tensor) and item.ndim == self.ndim}

    def _are_streams(self, value: Any) -> bool:
        return isinstance(value, Tensor) and value.ndim == self.ndim + 1 and value.shape[-2:] == self.end

    def _refuse(self, value: Any) -> None:
        if self._are_streams(value):
            raise RuntimeError(
                "the last converted block did not run, so the streams were not reduced: remove layers before you "
                "convert, and switch layer drop off"
            )


def shapes(output: Any) -> list[tuple[int, ...]]:
    """Return the shapes of the floating tensors at every depth of tuples, lists and mappings."""
    return [tuple(value.shape) for value in _tensors(output)]


def largest_difference(ours: Any, theirs: Any) -> tuple[float, float, torch.dtype]:
    """Return the largest difference of two outputs of the same shapes, the size of the second, its coarsest dtype.

    Floating tensors are compared at every depth of tuples, lists and mappings.
    """
    right = list(_tensors(theirs))
    pairs = zip(_tensors(ours), right, strict=True)
    difference = max((float((a.double() - b.double()).abs().max()) for a, b in pairs), default=0.0)
    size = max((float(value.double().abs().max()) for value in right), default=0.0)
    dtype = max((value.dtype for value in right), key=lambda d: torch.finfo(d).eps, default=torch.float32)
    return difference, size, dtype


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        if output.is_floating_point() and output.numel():
            yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from _tensors(value)
    elif isinstance(output, list | tuple):
        for value in output:
            yield from _tensors(value)
