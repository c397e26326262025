"""The stand-in for a residual vector that runs through a block's own forward code."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor


class Connection(Protocol):
    """What one residual addition becomes: :class:`~jpmhc.layers.HyperConnection`, or a plain residual while tracing."""

    def read(self, x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Return the branch input and the function that writes the branch's result."""


class ResidualVector:
    """n streams that look like one vector (..., d) to the code of a residual block.

    The block runs as its author wrote it. Where it hands this object to a sub-module or a torch function, that sees
    the read ``sum_i pre_i x_i``; where it adds a branch's result to it, the result is written to the streams and the
    sum is the next vector. Anything else raises, so that an operation on the residual that has no meaning for streams
    (a scaling, a slice) is never lost.

    A vector is read at most once, by one connection, and added to at most once. Additions with no read between them
    are one write of their sum: the parallel block ``x + attention(x) + mlp(x)`` is one connection around both branches.

    Parameters
    ----------
    x : Tensor, shape (..., n, d), or None
        Streams; None where they are still to be written.
    connections : sequence of Connection
        One for each residual addition of the block, in the order in which they run.
    place : int
        Which of them reads this vector.
    """

    def __init__(self, x: Tensor | None, connections: Sequence[Connection], place: int = 0) -> None:
        self._x = x
        self._connections = connections
        self.place = place
        self._sum: tuple[ResidualVector, Tensor] | None = None
        self._read: tuple[Tensor, Callable[[Tensor], Tensor]] | None = None
        self._spent = False
        self._grad_mode, self._pass = torch.is_grad_enabled(), _backward_pass()

    def streams(self) -> Tensor:
        """Return the streams (..., n, d), written now if they were not yet."""
        if self._x is None:
            assert self._sum is not None
            before, y = self._sum
            self._x = before._connect()[1](y)
        return self._x

    def read(self) -> Tensor:
        """Return the branch input (..., d)."""
        return self._connect()[0]

    def _connect(self) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        # Inside a torch.autograd.Function gradients are off and torch sees no tensor to differentiate by. A checkpoint
        # inside a block computes a part again in the backward pass, where the read has been made already.
        passes = {_backward_pass(), self._pass} - {None}
        if torch.is_grad_enabled() != self._grad_mode or len(passes) > 1:
            raise RuntimeError(
                "the residual vector is read in another pass or under another gradient mode than it was made in, as "
                "inside a torch.autograd.Function or a checkpoint around a part of a block; checkpoint whole blocks"
            )
        if self._read is None:
            if self.place >= len(self._connections):
                raise RuntimeError(f"the residual vector is read again after its {self.place} additions")
            self._read = self._connections[self.place].read(self.streams())
        return self._read

    def add(self, y: Tensor) -> ResidualVector:
        """Return the vector with a branch's result y (..., d) written to it."""
        if not isinstance(y, Tensor):
            raise TypeError(f"a residual addition takes a tensor, got {type(y).__name__}")
        if y.shape != self.shape:
            raise TypeError(f"a residual addition takes shape {tuple(self.shape)}, got {tuple(y.shape)}")
        self.spend()
        if self._x is None:
            assert self._sum is not None
            before, first = self._sum
            return self._after(before, first + y)
        return self._after(self, y)

    __add__ = __radd__ = __iadd__ = add

    def _after(self, before: ResidualVector, y: Tensor) -> ResidualVector:
        result = ResidualVector(None, self._connections, before.place + 1)
        result._sum = (before, y)
        return result

    def spend(self) -> None:
        """Mark that the residual path goes on from this vector; it can do so once."""
        if self._spent:
            raise RuntimeError("two residual additions start from the same vector")
        self._spent = True

    def map(self, fn: Callable[[Tensor], Tensor]) -> ResidualVector:
        """Return the vector with a function of single vectors, a norm, applied to every stream."""
        self.spend()
        return ResidualVector(fn(self.streams()), self._connections, self.place)

    def reshape(self, *shape: Any) -> Any:
        """Return the vector under another leading shape, or what it reads under a shape that cuts d up."""
        if len(shape) == 1 and isinstance(shape[0], torch.dtype):
            return self.read().view(shape[0])
        sizes = list(shape[0] if len(shape) == 1 and isinstance(shape[0], tuple | list) else shape)
        if sizes.count(-1) == 1:
            known = math.prod(size for size in sizes if size != -1)
            sizes[sizes.index(-1)] = math.prod(self.shape) // max(known, 1)
        target = torch.Size(sizes)
        if not target or target[-1] != self.shape[-1] or math.prod(target) != math.prod(self.shape):
            return self.read().reshape(*shape)
        return self._under(target)

    view = reshape

    def flatten(self, start_dim: int = 0, end_dim: int = -1) -> Any:
        """Return the vector with some leading dimensions made one, or what it reads, flattened."""
        start, end = start_dim % self.ndim, end_dim % self.ndim
        if start > end or end == self.ndim - 1:
            return self.read().flatten(start_dim, end_dim)
        return self.reshape(*self.shape[:start], math.prod(self.shape[start : end + 1]), *self.shape[end + 1 :])

    def _under(self, shape: torch.Size) -> ResidualVector:
        return self if shape == self.shape else ReshapedVector(self, shape)

    @property
    def shape(self) -> torch.Size:
        """Of one vector, (..., d)."""
        if self._x is None:
            assert self._sum is not None
            return self._sum[1].shape
        return self._x.shape[:-2] + self._x.shape[-1:]

    @property
    def dtype(self) -> torch.dtype:
        """Of the streams; that of a sum is known before it is written."""
        return self._known().dtype

    @property
    def device(self) -> torch.device:
        """Of the streams."""
        return self._known().device

    def _known(self) -> Tensor:
        """Return the last streams that are written; a write changes neither dtype nor device."""
        if self._x is not None:
            return self._x
        assert self._sum is not None
        return self._sum[0]._known()

    @property
    def ndim(self) -> int:
        """Of one vector."""
        return len(self.shape)

    def dim(self) -> int:
        """Return the number of dimensions of one vector."""
        return len(self.shape)

    def size(self, dim: int | None = None) -> torch.Size | int:
        """Return the shape of one vector, or one of its sizes."""
        return self.shape if dim is None else self.shape[dim]

    def __getitem__(self, index: Any) -> Tensor:
        return self.read()[index]

    def __getattr__(self, name: str) -> Any:
        # Methods of a tensor read; those that would change it in place have no meaning for streams.
        if name.startswith("__") or name.endswith("_") or not hasattr(Tensor, name):
            raise AttributeError(f"a residual vector in streams has no {name!r}")
        return getattr(self.read(), name)

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Write for an addition, read for every other function of torch."""
        if func in _ADDITIONS and not kwargs and len(args) == 2:
            left, right = args
            if isinstance(left, ResidualVector) and isinstance(right, ResidualVector):
                raise RuntimeError("the residual vector is added to itself")
            return left.add(right) if isinstance(left, ResidualVector) else right.add(left)
        if func == Tensor.add_ and not kwargs and not isinstance(args[0], ResidualVector):
            # What `y += x` of a branch's result y arrives as: it gives the name y to what is returned.
            return args[1].add(args[0])
        if func in _RESHAPES and isinstance(args[0], ResidualVector):
            return getattr(args[0], _RESHAPES[func])(*args[1:], **(kwargs or {}))
        args, kwargs = read_arguments(args, kwargs or {})
        return func(*args, **kwargs)


def _backward_pass() -> int | None:
    """Return which backward pass is running, -1 if none is; a compiler cannot tell."""
    return None if torch.compiler.is_compiling() else torch._C._current_graph_task_id()


class ReshapedVector(ResidualVector):
    """A residual vector under another leading shape: reads and additions are those of the vector itself.

    Blocks that fold batch and tokens into one dimension (OPT, timm's Swin) go on from here and fold back.
    """

    def __init__(self, vector: ResidualVector, shape: torch.Size) -> None:
        self._vector, self._shape = vector, shape

    @property
    def shape(self) -> torch.Size:
        """Of one vector, as it was asked for."""
        return self._shape

    @property
    def place(self) -> int:  # type: ignore[override]
        """Of the vector itself."""
        return self._vector.place

    def _known(self) -> Tensor:
        return self._vector._known()

    def streams(self) -> Tensor:
        """Return the streams under this leading shape."""
        return self._fold(self._vector.streams())

    def read(self) -> Tensor:
        """Return the branch input under this shape."""
        return self._vector.read().reshape(self._shape)

    def add(self, y: Tensor) -> ResidualVector:
        """Return the vector with a branch's result of this shape written to it, under this shape."""
        if not isinstance(y, Tensor) or y.shape != self._shape:
            got = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
            raise TypeError(f"a residual addition takes shape {tuple(self._shape)}, got {got}")
        return self._vector.add(y.reshape(self._vector.shape))._under(self._shape)

    __add__ = __radd__ = __iadd__ = add

    def spend(self) -> None:
        """Mark that the residual path goes on from this vector."""
        self._vector.spend()

    def map(self, fn: Callable[[Tensor], Tensor]) -> ResidualVector:
        """Return the vector with a norm applied to every stream, under this shape."""
        return self._vector.map(lambda x: fn(self._fold(x)).reshape(x.shape))._under(self._shape)

    def _under(self, shape: torch.Size) -> ResidualVector:
        return self._vector._under(shape)

    def _fold(self, streams: Tensor) -> Tensor:
        # The last dimensions are (n, d), or (d,) while a model is traced.
        return streams.reshape(*self._shape[:-1], *streams.shape[len(self._vector.shape) - 1 :])


_RESHAPES = {
    torch.reshape: "reshape",
    Tensor.reshape: "reshape",
    Tensor.view: "view",
    torch.flatten: "flatten",
    Tensor.flatten: "flatten",
}
# Python's own operators are what `torch.export(strict=True)` hands over.
_ADDITIONS = {
    torch.add,
    Tensor.add,
    Tensor.__add__,
    Tensor.__radd__,
    Tensor.__iadd__,
    operator.add,
    operator.iadd,
}
# Functions that carry the residual path on; others take a read.
PATH = _ADDITIONS | {Tensor.add_, *_RESHAPES}


def read_arguments(args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Replace every residual vector among the arguments of a call, also inside a list or tuple, by what it reads."""
    return tuple(_read(a) for a in args), {name: _read(a) for name, a in kwargs.items()}


def _read(value: Any) -> Any:
    if isinstance(value, ResidualVector):
        return value.read()
    if type(value) in (list, tuple):
        return type(value)(_read(item) for item in value)
    return value
