"""What one traced call of a block shows: its residual vector, watched from the entry to the exit."""

from __future__ import annotations

import linecache
import sys
import traceback
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from jpmhc.layers.adapters.axis import Axes, Reader
from jpmhc.layers.adapters.vector import ReshapedVector, ResidualVector
from jpmhc.layers.residual import Residual

_LIBRARIES = (str(Path(torch.__file__).parent), str(Path(__file__).parent))
# While tracing, every addition is a plain one; no block has more of them than this.
_PLAIN = (Residual(),) * 1024


@dataclass
class Anatomy:
    """What conversion must know of one block.

    Attributes
    ----------
    name : str
        Of the block in the model.
    block : Module
        The block.
    argument : str
        Its argument that holds the residual vector.
    additions : list of str
        Where each of its residual additions stands; additions with no read between them count as one.
    norms : list of Module
        Norms on the residual path (post-norm).
    readers : list of Module
        Modules that are handed the residual vector and do not carry it on.
    shape : torch.Size
        Of the residual vectors in the example, (..., d).
    """

    name: str
    block: nn.Module
    argument: str
    additions: list[str] = field(default_factory=list)
    norms: list[nn.Module] = field(default_factory=list)
    readers: list[nn.Module] = field(default_factory=list)
    shape: torch.Size = field(default_factory=torch.Size)


class TracedVector(ResidualVector):
    """A residual vector of one stream (..., d) that keeps a record of what becomes of it."""

    def __init__(self, x: Tensor | None, record: Record, place: int = 0, normed: Normed | None = None) -> None:
        super().__init__(x, _PLAIN, place)
        self.record = record
        self.normed = normed

    @property
    def shape(self) -> torch.Size:
        """Of the vector, (..., d)."""
        return self._sum[1].shape if self._x is None and self._sum else self.streams().shape

    def read(self) -> Tensor:
        """Return the branch input; note which module took it, and where."""
        self.record.reads.append((self.record.stack[-1] if self.record.stack else None, here()))
        x = super().read()
        self.record.axes.watch(x)
        return x

    def add(self, y: Tensor) -> ResidualVector:
        """Return the next vector; note where the addition stands."""
        self.record.carriers.update(self.record.stack)
        self.record.adds |= self.record.inner.isdisjoint(self.record.stack)
        merged = self._x is None
        result = super().add(y)
        if merged:
            self.record.additions[-1] += f" and {here()}"
        else:
            self.record.additions.append(here())
        self.record.adding[self.record.stack[-1] if self.record.stack else self.record.anatomy.block] = None
        return result

    __add__ = __radd__ = __iadd__ = add

    def _after(self, before: ResidualVector, y: Tensor) -> ResidualVector:
        result = TracedVector(None, self.record, before.place + 1)
        result._sum = (before, y)
        return result

    def spend(self) -> None:
        """Go on from this vector; if a norm made it, that stands on the residual path."""
        super().spend()
        if self.normed is not None:
            self.normed.before.spend()
            self.normed.check()
            self.record.norms.append(self.normed.norm)
            self.record.carriers.update(self.normed.stack)

    @property
    def on_residual_path(self) -> bool:
        """False for the output of a norm that only a branch read."""
        return self.normed is None or self._spent

    def has_been_read(self) -> bool:
        """Whether anything took the vector as a plain one."""
        return self._read is not None

    def _under(self, shape: torch.Size) -> ResidualVector:
        return self if shape == self.shape else TracedReshaped(self, shape)


class TracedReshaped(ReshapedVector, TracedVector):
    """A watched vector under another leading shape."""

    _vector: TracedVector

    def read(self) -> Tensor:
        """Return the branch input under this shape, whose last dimension is the same."""
        x = super().read()
        self.record.axes.watch(x)
        return x

    @property
    def record(self) -> Record:  # type: ignore[override]
        """Of the vector itself."""
        return self._vector.record

    @property
    def on_residual_path(self) -> bool:
        """As the vector itself."""
        return self._vector.on_residual_path

    def has_been_read(self) -> bool:
        """As the vector itself."""
        return self._vector.has_been_read()


@dataclass
class Normed:
    """A norm was given the vector ``before``: whether it stands on the residual path shows when its result is used."""

    before: TracedVector
    norm: nn.Module
    stack: tuple[nn.Module, ...]

    def check(self) -> None:
        """Refuse a norm that would not do to every stream what it does to a vector."""
        x = self.before.streams()
        if not torch.allclose(self.norm(x.unsqueeze(-2)).squeeze(-2), self.norm(x), rtol=1e-3, atol=1e-3):
            raise RuntimeError(f"{type(self.norm).__name__} on the residual path does not act on single vectors")


@dataclass
class Record:
    """One call of one block."""

    anatomy: Anatomy
    # Members of lists inside the block; what these add is found again when they are tried.
    inner: set[nn.Module]
    axes: Axes
    readers: list[Reader] = field(default_factory=list)
    # Whether the block takes another size of the last dimension, found out where there are no readers.
    any_size: bool = False
    adds: bool = False
    # Modules in whose code it adds.
    adding: dict[nn.Module, None] = field(default_factory=dict)
    additions: list[str] = field(default_factory=list)
    reads: list[tuple[nn.Module | None, str]] = field(default_factory=list)
    stack: list[nn.Module] = field(default_factory=list)
    carriers: set[nn.Module] = field(default_factory=set)
    norms: list[nn.Module] = field(default_factory=list)
    received: list[tuple[nn.Module, tuple[nn.Module, ...], TracedVector]] = field(default_factory=list)

    def anatomise(self) -> None:
        """Write down what the call showed."""
        readers: dict[nn.Module, None] = {}
        for module, ancestors, vector in self.received:
            topmost = all(ancestor in self.carriers for ancestor in ancestors)
            if vector.on_residual_path and topmost and module not in self.carriers and module not in self.norms:
                readers[module] = None
        self.anatomy.additions = self.additions
        self.anatomy.norms = list(dict.fromkeys(self.norms))
        self.anatomy.readers = list(readers)

    def last_uses(self) -> str:
        """Describe where the block's own code took the residual vector as a plain one."""
        return _listed(place for module, place in self.reads if module is None or module in self.carriers)

    def uses(self) -> str:
        """Describe where the residual vector was read, in the block's own code or in a module."""
        return _listed(place for _, place in self.reads)


def _listed(places: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(places)) or "none"


def vectors(values: Sequence[Any]) -> Iterator[TracedVector]:
    """Yield the watched vectors among values, also inside lists and tuples."""
    for value in values:
        if isinstance(value, TracedVector):
            yield value
        elif isinstance(value, list | tuple):
            yield from vectors(value)


def _foreign(filename: str) -> bool:
    return not filename.startswith(_LIBRARIES) and not filename.startswith("<")


def here() -> str:
    """Name the line of the model's code that is running."""
    frame = sys._getframe(1)
    while frame.f_back is not None and not _foreign(frame.f_code.co_filename):
        frame = frame.f_back
    filename, line = frame.f_code.co_filename, frame.f_lineno
    return f"{Path(filename).name}:{line} `{linecache.getline(filename, line).strip()}`"


def where(trace: TracebackType | None) -> str:
    """Name the last line of the model's code in a traceback."""
    frames = [frame for frame in traceback.extract_tb(trace) if _foreign(frame.filename)]
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno} `{frames[-1].line}`" if frames else "its end"
