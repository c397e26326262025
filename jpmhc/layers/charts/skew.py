"""The packing of a skew matrix into its upper triangle."""

from functools import partial

import torch
from torch import Tensor, nn

from jpmhc.layers.constants import ConstantModule

# Numbers on a CPU from which moving them takes longer than calling a function for each row.
_MANY = 2048


class UpperTriangle(ConstantModule):
    """Put ``n(n-1)/2`` numbers into the strict upper triangle of an n x n matrix, row by row; zeros elsewhere."""

    place: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.count = size * (size - 1) // 2
        self.register_constant("place", partial(_places, size))

    def forward(self, packed: Tensor) -> Tensor:
        """Unpack (..., n(n-1)/2) to (..., n, n)."""
        if not torch.compiler.is_compiling() and (not packed.is_cpu or packed.numel() >= _MANY):
            return self._joined(packed).unflatten(-1, (self.size, self.size))
        padded = nn.functional.pad(packed, (0, 1))
        return padded[..., self.constant("place", packed.device)].unflatten(-1, (self.size, self.size))

    def _joined(self, packed: Tensor) -> Tensor:
        """Join rows and zeros, whose gradients are parts; that of an index is a sorted sum of all places."""
        zeros = packed.new_zeros(()).expand(*packed.shape[:-1], self.size)
        pieces = [zeros[..., :1]]
        for row, numbers in enumerate(packed.split([*range(self.size - 1, 0, -1)], -1), 2):
            pieces += [numbers, zeros[..., :row]]
        return torch.cat(pieces, -1)


def _places(size: int) -> Tensor:
    count = size * (size - 1) // 2
    upper = torch.triu_indices(size, size, 1)
    # Every entry that is not packed takes the zero behind the packed numbers.
    places = torch.full((size, size), count)
    places[upper[0], upper[1]] = torch.arange(count)
    return places.flatten()
