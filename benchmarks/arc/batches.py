"""The endless stream of training samples drawn from the arrays of a data set."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from benchmarks.arc.dataset import ArcData
from benchmarks.arc.encode import PAD
from benchmarks.arc.painting import Painter


class Batches:
    """An endless, restorable stream of training samples.

    An epoch visits every task once, in random order, in one random variant, with all the pairs of that variant one
    after the other. With ``translate`` each pair is moved to a random place in the square, input and output alike, but
    for one random pair of every visit that stays in the corner, which is where tests are evaluated.

    Parameters
    ----------
    data : ArcData
    batch_size : int
        Samples that `next` returns unless told otherwise.
    seed : int
    translate : bool
    device : torch.device or str
        Where samples are made, turned, recoloured and moved; a sample costs four integers of traffic.

    Notes
    -----
    Every epoch has its own generator, made of the seed and the epoch's number. The stream thus depends on the data, the
    seed and ``translate`` alone, not on how it is cut into calls, and its position is two integers.
    """

    def __init__(
        self, data: ArcData, batch_size: int, seed: int, translate: bool, device: torch.device | str = "cpu"
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
        if seed < 0:
            raise ValueError(f"seed: expected at least 0, got {seed}")
        self.data = data
        self.batch_size = batch_size
        self.seed = seed
        self.translate = translate
        self.device = torch.device(device)
        self._painter = Painter(data, device)
        bounds = np.searchsorted(data.ids, np.arange(data.num_ids + 1))
        trained = [[(bounds[id], bounds[id + 1]) for id in data.ids_of(t)] for t in range(len(data.tasks))]
        # Rows of each variant of each task, as (start, stop). What lost all its rows to the held-out pairs is skipped.
        self._visits = [spans for task in trained if (spans := [(a, b) for a, b in task if a < b])]
        self._epoch = self._position = 0
        self._rows, self._offsets = self._plan(0)

    @property
    def samples_an_epoch(self) -> float:
        """Samples of an epoch, on average over the variants that it may draw."""
        return float(sum(np.mean([stop - start for start, stop in spans]) for spans in self._visits))

    def next(self, count: int | None = None, keep: slice = slice(None)) -> dict[str, torch.Tensor]:
        """Return the next samples of the stream, which may span several epochs.

        Parameters
        ----------
        count : int or None
            How many; None for ``batch_size``.
        keep : slice
            Which of them to return: of several processes that read one stream each makes its own samples only.

        Returns
        -------
        dict of Tensor
            ``inputs`` and ``labels`` of shape (count, side * side), uint8; ``ids``, the puzzle ids, and ``rows``, the
            rows of the training arrays, of shape (count,), int64; all on the stream's device.
        """
        count = self.batch_size if count is None else count
        if count < 0:
            raise ValueError(f"count: expected at least 0, got {count}")
        rows, offsets = np.empty(count, dtype=np.int64), np.empty((count, 2), dtype=np.int64)
        filled = 0
        while filled < count:
            if self._position == len(self._rows):
                self._epoch, self._position = self._epoch + 1, 0
                self._rows, self._offsets = self._plan(self._epoch)
            taken = min(count - filled, len(self._rows) - self._position)
            here, there = slice(filled, filled + taken), slice(self._position, self._position + taken)
            rows[here], offsets[here] = self._rows[there], self._offsets[there]
            self._position += taken
            filled += taken
        ids = torch.from_numpy(self.data.ids[rows[keep]]).to(self.device)
        here, moves = (torch.from_numpy(array[keep]).to(self.device) for array in (rows, offsets))
        inputs, labels = (_translated(made, moves, self.data.side) for made in self._painter.paint(rows[keep]))
        return {"inputs": inputs, "labels": labels, "ids": ids, "rows": here}

    def state_dict(self) -> dict[str, Any]:
        """Return the position, with what it is a position in, as a dict that JSON can hold."""
        return {**self._identity(), "epoch": self._epoch, "position": self._position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a position; ValueError if it belongs to another stream."""
        for name, value in self._identity().items():
            if state[name] != value:
                raise ValueError(f"state: {name} is {state[name]!r}, but this stream has {value!r}")
        epoch, position = state["epoch"], state["position"]
        if epoch < 0:
            raise ValueError(f"state: epoch: expected at least 0, got {epoch}")
        rows, offsets = self._plan(epoch)
        if not 0 <= position <= len(rows):
            raise ValueError(f"state: position: expected 0 to {len(rows)}, got {position}")
        self._epoch, self._position, self._rows, self._offsets = epoch, position, rows, offsets

    def _identity(self) -> dict[str, Any]:
        return {"data": self.data.sha256, "seed": self.seed, "translate": self.translate}

    def _plan(self, epoch: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return the rows of an epoch in order, (S,), and how far each is moved down and right, (S, 2)."""
        rng = np.random.default_rng([self.seed, epoch])
        visited, kept_in_corner = [], []
        for visit in rng.permutation(len(self._visits)):
            spans = self._visits[visit]
            start, stop = spans[rng.integers(len(spans))]
            visited.append(np.arange(start, stop))
            kept_in_corner.append(visited[-1] == rng.integers(start, stop))
        rows = np.concatenate(visited)
        if not self.translate:
            return rows, np.zeros((len(rows), 2), dtype=np.int64)
        offsets = rng.integers(0, self.data.side - self.data.extent[rows], endpoint=True)
        offsets[np.concatenate(kept_in_corner)] = 0
        return rows, offsets


def epoch_shares(streams: Sequence[Batches]) -> dict[int, float]:
    """Return the part of the samples of an epoch that is in each of some streams, by the side of its square."""
    samples = sum(stream.samples_an_epoch for stream in streams)
    return {stream.data.side: stream.samples_an_epoch / samples for stream in streams}


def _translated(tokens: Tensor, offsets: Tensor, side: int) -> Tensor:  # (B, side * side), (B, 2)
    """Move each square down and right; what is pushed over the edge is at most the end-of-grid mark."""
    place = torch.arange(side, device=tokens.device)
    row, column = (place - move.unsqueeze(1) for move in offsets.unbind(1))  # where each place's token comes from
    origin = row.unsqueeze(2) * side + column.unsqueeze(1)
    outside = (row < 0).unsqueeze(2) | (column < 0).unsqueeze(1)
    return tokens.gather(1, origin.clamp(min=0).flatten(1)).masked_fill(outside.flatten(1), PAD)
