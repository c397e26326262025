"""Memory that knows who wrote and who read each of its bytes since the last barrier."""

from __future__ import annotations

import ctypes

import numpy as np

NOBODY, SEVERAL = -1, -2
# Barriers that a program may meet, and warps that it may have.
_BARRIERS, _WARPS = 1 << 24, 64


class Fault(Exception):
    """What a GPU would compute here is undefined, or not known to this machine."""


class Memory:
    """Bytes, and who touched them.

    Parameters
    ----------
    size : int
        In bytes.
    first : int
        Address of the first.
    """

    def __init__(self, size: int, first: int) -> None:
        self.first = first
        self.data = np.full(size, 0xFF, np.uint8)  # no number, in any format
        self.there = np.ones(size, bool)
        self.coming = np.zeros(size, bool)  # copied beside the threads, and not waited for yet
        self._writer = np.full(size, NOBODY, np.int64)
        self._reader = np.full(size, NOBODY, np.int64)
        self._written = np.zeros(size, np.int64)
        self._read = np.zeros(size, np.int64)

    def places(self, addresses: np.ndarray, size: int) -> np.ndarray:
        """Return indices (threads, size) of so many bytes from each address on."""
        first = addresses.astype(np.int64) - self.first
        places = first[:, None] + np.arange(size)
        inside = (places >= 0) & (places < len(self.data))
        inside &= self.there[np.where(inside, places, 0)]
        if not inside.all():
            raise Fault(f"{first[~inside.all(1)][0]} is outside")
        if (first % size).any():
            raise Fault(f"{first[first % size != 0][0]} is not aligned to {size} bytes")
        return places

    def read(self, places: np.ndarray, who: Who) -> np.ndarray:
        """Return the bytes (threads, size) for threads of the given warps."""
        if self.coming[places].any():
            raise Fault("race: reads what is being copied, and was not waited for")
        if self._writer_conflicts(places, who).any():
            raise Fault("race: reads what another warp wrote, no barrier is between")
        reader, me = self._reader[places], np.broadcast_to(who.codes, places.shape)
        fresh = (self._read[places] != who.moment) | (reader == NOBODY) | (reader == me)
        self._reader[places] = np.where(fresh, me, SEVERAL)
        self._reader[places[self._reader[places] != me]] = SEVERAL  # of this instruction, too
        self._read[places] = who.moment
        return self.data[places]

    def write(self, places: np.ndarray, values: np.ndarray, who: Who) -> None:
        """Store bytes (threads, size); several warps may write one value to one place."""
        self.claim(places, who, self.data[places] != values)
        self.data[places] = values
        if (self.data[places] != values).any():
            raise Fault("race: threads write different values to one place")
        self._writer[places], self._written[places] = who.codes, who.moment

    def claim(self, places: np.ndarray, who: Who, changes: np.ndarray | bool = True) -> None:
        """Raise if others wrote to or read from there since the last barrier."""
        if (self._writer_conflicts(places, who) & changes).any():
            raise Fault("race: overwrites what another warp wrote, no barrier is between")
        reader, moment = self._reader[places], self._read[places]
        others = (moment // _BARRIERS != who.program) | ((moment == who.moment) & (reader != who.codes))
        if ((reader != NOBODY) & others).any():
            raise Fault("race: overwrites what another warp reads, no barrier is between")

    def _writer_conflicts(self, places: np.ndarray, who: Who) -> np.ndarray:
        writer, moment = self._writer[places], self._written[places]
        others = (writer // _WARPS != who.program) | ((moment == who.moment) & (writer != who.codes))
        return (writer != NOBODY) & others


class Who:
    """Threads of one program between two barriers, by their warps."""

    def __init__(self, program: int, barriers: int, warps: np.ndarray) -> None:
        self.program = program
        self.moment = program * _BARRIERS + barriers
        self.codes = program * _WARPS + warps.astype(np.int64)[:, None]


class Tensors(Memory):
    """Global memory: tensors at addresses of their own, nothing between them.

    Parameters
    ----------
    tensors : list of torch.Tensor
        Contiguous; those that begin at one address are one.
    """

    _GAP = 512

    def __init__(self, tensors: list) -> None:
        self._tensors = {tensor.data_ptr(): tensor for tensor in tensors if tensor.numel()}
        sizes = [tensor.numel() * tensor.element_size() for tensor in self._tensors.values()]
        starts = np.cumsum([self._GAP, *(-(-size // self._GAP) * self._GAP + self._GAP for size in sizes)])
        super().__init__(int(starts[-1]), 1 << 40)
        self.there[:] = False
        self._starts = dict(zip(self._tensors, starts[:-1].tolist(), strict=True))
        for (pointer, start), size in zip(self._starts.items(), sizes, strict=True):
            self.there[start : start + size] = True
            self.data[start : start + size] = np.frombuffer(ctypes.string_at(pointer, size), np.uint8)

    def address(self, tensor) -> int:
        """Return where a tensor begins."""
        return self.first + self._starts[tensor.data_ptr()] if tensor.numel() else 0

    def give_back(self) -> None:
        """Copy everything to the tensors."""
        for pointer, tensor in self._tensors.items():
            start, size = self._starts[pointer], tensor.numel() * tensor.element_size()
            ctypes.memmove(pointer, self.data[start : start + size].tobytes(), size)
