"""One grid encoded in many variants at once: a thousand cost little more than the eight turned grids among them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from benchmarks.arc.augment import IDENTITY, Augmentation
from benchmarks.arc.encode import FIRST_COLOUR, VOCAB, encode
from benchmarks.arc.tasks import COLOURS, Grid


class Variants:
    """Augmentations ready to be applied to grids.

    Parameters
    ----------
    augmentations : sequence of Augmentation, length V
    side : int
        Of the square of tokens.
    """

    def __init__(self, augmentations: Sequence[Augmentation], side: int) -> None:
        self.side = side
        dihedral = np.array([a.dihedral for a in augmentations])
        # Where the variants of each dihedral map are.
        self.places = {d: np.flatnonzero(dihedral == d) for d in range(8)}
        self.tokens = palettes(augmentations)

    def encode(self, grid: Grid) -> npt.NDArray[np.uint8]:
        """Return ``encode(augmentation.apply(grid), side)`` for every augmentation, shape (V, side * side)."""
        images = np.empty((len(self.tokens), self.side**2), dtype=np.uint8)
        for dihedral, here in self.places.items():
            if len(here):
                turned = encode(Augmentation(dihedral, IDENTITY.colours).apply(grid), self.side)
                images[here] = self.tokens[here].take(turned, axis=1)
        return images

    def extent(self, *grids: Grid) -> npt.NDArray[np.int64]:
        """Return the rows and columns that the images of some grids take together, shape (V, 2)."""
        most = np.max([grid.shape for grid in grids], axis=0)
        extent = np.tile(most, (len(self.tokens), 1))
        for dihedral, here in self.places.items():
            if (dihedral >= 4) != (dihedral % 2 == 1):
                extent[here] = most[::-1]
        return extent


def palettes(augmentations: Sequence[Augmentation]) -> npt.NDArray[np.uint8]:
    """Return what every token becomes in each variant, (V, VOCAB): colours are renamed, what is no colour stays."""
    tokens = np.tile(np.arange(VOCAB, dtype=np.uint8), (len(augmentations), 1))
    renamed = np.array([a.colours for a in augmentations], dtype=np.uint8).reshape(-1, COLOURS)
    tokens[:, FIRST_COLOUR:] = FIRST_COLOUR + renamed
    return tokens
