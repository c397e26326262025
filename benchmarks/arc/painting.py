"""Training rows made on the device: a thousand variants of a pair are eight pictures of it and a thousand palettes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from benchmarks.arc.augment import IDENTITY, Augmentation
from benchmarks.arc.dataset import ArcData
from benchmarks.arc.encode import encode
from benchmarks.arc.images import palettes
from benchmarks.arc.tasks import Grid

_MAPS = 8  # of the dihedral group


class Painter:
    """What the rows of a data set are made of, on a device.

    Parameters
    ----------
    data : ArcData
    device : torch.device or str
        Where it lives: ``16 side^2`` bytes a pair and 12 a puzzle id, which for the published recipe with a thousand
        variants is 54 MB where the rows themselves are 5 GB.
    """

    def __init__(self, data: ArcData, device: torch.device | str = "cpu") -> None:
        # Of each pair one row, and of each row its pair: one number says where a row is from.
        origin = (data.group * 2 + data.from_test) * (1 + data.pair.max()) + data.pair
        _, ones, pair_of = np.unique(origin, return_index=True, return_inverse=True)
        sources = []
        for group, from_test, pair in zip(data.group[ones], data.from_test[ones], data.pair[ones], strict=True):
            task = data.tasks[group]
            sources.append((task.tests if from_test else task.demos)[pair])
        dihedral = np.array([augmentation.dihedral for _, augmentation in data.augmentations], dtype=np.int64)
        self._picture_of = pair_of * _MAPS + dihedral[data.ids]
        self._ids, self._device = data.ids, torch.device(device)

        def pictures(grids: list[Grid]) -> Tensor:
            turned = (Augmentation(d, IDENTITY.colours).apply(grid) for grid in grids for d in range(_MAPS))
            squares = [encode(grid, data.side) for grid in turned]
            return torch.from_numpy(np.stack(squares)).to(device)

        self._inputs = pictures([pair.input for pair in sources])
        self._labels = pictures([pair.output for pair in sources])
        self._palettes = torch.from_numpy(palettes([augmentation for _, augmentation in data.augmentations])).to(device)

    def paint(self, rows: npt.NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Return ``data.inputs[rows]`` and ``data.labels[rows]`` on the device."""
        picture, ids = (torch.from_numpy(array[rows]).to(self._device) for array in (self._picture_of, self._ids))
        palette = self._palettes[ids]
        inputs, labels = (palette.gather(1, pictures[picture].long()) for pictures in (self._inputs, self._labels))
        return inputs, labels
