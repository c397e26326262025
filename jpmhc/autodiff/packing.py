"""Trees of tensors as one matrix: the layout of a state with common batch dimensions in a tensor ``(*batch, D)``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from jpmhc.autodiff.precision import LOW_PRECISION, raised


@dataclass(frozen=True)
class Layout:
    """Structure, sizes and dtypes of a state; in its ``working_dtypes`` it is solved, float32 or more."""

    tree: pytree.TreeSpec
    batch: torch.Size
    sizes: tuple[torch.Size, ...]
    dtypes: tuple[torch.dtype, ...]
    working_dtypes: tuple[torch.dtype, ...]
    device: torch.device

    @classmethod
    def of(cls, state: Any, batch_dims: int) -> Layout:
        """Take the layout of ``state``, every leaf of which starts with the same ``batch_dims`` dimensions.

        Raises
        ------
        TypeError
            A leaf is no tensor of real floating-point numbers.
        ValueError
            No leaf, no entry, or leaves with different batch dimensions or devices.
        """
        leaves, tree = pytree.tree_flatten(state)
        if not leaves:
            raise ValueError("z0: expected at least one tensor, got an empty tree")
        for leaf in leaves:
            if not isinstance(leaf, Tensor) or not leaf.is_floating_point():
                found = leaf.dtype if isinstance(leaf, Tensor) else type(leaf).__name__
                raise TypeError(f"z0: expected real floating-point tensors as leaves, got {found}")
        shapes = [tuple(leaf.shape) for leaf in leaves]
        if any(len(shape) < batch_dims or shape[:batch_dims] != shapes[0][:batch_dims] for shape in shapes):
            raise ValueError(
                f"z0: expected leaves with the same first {batch_dims} dimensions, the batch, got {shapes}"
            )
        if len({leaf.device for leaf in leaves}) > 1:
            raise ValueError(f"z0: expected one device, got {sorted({str(leaf.device) for leaf in leaves})}")
        if sum(math.prod(shape[batch_dims:]) for shape in shapes) == 0:
            raise ValueError(f"z0: expected at least one entry per sample, got shapes {shapes}")
        return cls(
            tree,
            leaves[0].shape[:batch_dims],
            tuple(leaf.shape[batch_dims:] for leaf in leaves),
            tuple(leaf.dtype for leaf in leaves),
            tuple(torch.float32 if leaf.dtype in LOW_PRECISION else leaf.dtype for leaf in leaves),
            leaves[0].device,
        )

    def pack(self, state: Any) -> Tensor:
        """Join the leaves to one tensor ``(*batch, D)`` in the widest working dtype."""
        leaves = pytree.tree_leaves(state)
        rows = [leaf.reshape(*self.batch, math.prod(size)) for leaf, size in zip(leaves, self.sizes, strict=True)]
        if len(rows) == 1:
            return raised(rows[0])
        widest = torch.float64 if torch.float64 in self.dtypes else torch.float32
        return torch.cat([row.to(widest) for row in rows], dim=-1)

    def unpack(self, packed: Tensor, dtypes: tuple[torch.dtype, ...]) -> Any:
        """Restore the tree, its leaves in ``dtypes``."""
        rows = [packed] if len(self.sizes) == 1 else packed.split([math.prod(size) for size in self.sizes], dim=-1)
        leaves = [
            row.reshape(self.batch + size).to(dtype) for row, size, dtype in zip(rows, self.sizes, dtypes, strict=True)
        ]
        return pytree.tree_unflatten(leaves, self.tree)

    def require(self, output: Any) -> None:
        """Refuse an ``output`` of the function that is not a state of this layout in the working dtypes.

        Raises
        ------
        ValueError
            With both structures printed.
        """
        leaves, tree = pytree.tree_flatten(output)
        expected = [
            (self.batch + size, dtype, self.device) for size, dtype in zip(self.sizes, self.working_dtypes, strict=True)
        ]
        if tree != self.tree or expected != [_signature(leaf) for leaf in leaves]:
            wanted = pytree.tree_unflatten([_words(*parts) for parts in expected], self.tree)
            found = pytree.tree_unflatten([_words(*_signature(leaf)) for leaf in leaves], tree)
            raise ValueError(f"fn: expected an output like z0,\n  {wanted},\ngot\n  {found}")


def _signature(leaf: Any) -> tuple[Any, ...]:
    return (leaf.shape, leaf.dtype, leaf.device) if isinstance(leaf, Tensor) else (type(leaf).__name__,)


def _words(shape_or_type: Any, dtype: torch.dtype | None = None, device: torch.device | None = None) -> Any:
    if dtype is None:
        return _Words(shape_or_type)
    return _Words(f"{str(dtype).removeprefix('torch.')}{list(shape_or_type)} on {device}")


class _Words(str):
    """Text that prints without quotes inside a tree."""

    __slots__ = ()

    __repr__ = str.__str__
