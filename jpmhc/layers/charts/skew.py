"""The packing of a skew matrix into its upper triangle."""

from functools import partial

import torch
from torch import Tensor, nn

from jpmhc.layers.constants import ConstantModule


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
        padded = nn.functional.pad(packed, (0, 1))
        return padded[..., self.constant("place", packed.device)].unflatten(-1, (self.size, self.size))


def _places(size: int) -> Tensor:
    count = size * (size - 1) // 2
    upper = torch.triu_indices(size, size, 1)
    # Every entry that is not packed takes the zero behind the packed numbers.
    places = torch.full((size, size), count)
    places[upper[0], upper[1]] = torch.arange(count)
    return places.flatten()
