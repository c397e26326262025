"""A block of somebody else's class that runs on streams: its class is specialised, its code and its weights stay."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, cast

from torch import Tensor, nn

from jpmhc.layers.adapters.vector import ResidualVector, read_arguments
from jpmhc.layers.hyper_connection import HyperConnection
from jpmhc.layers.streams import expand_streams, reduce_streams


class Connections(nn.Module):
    """The hyper-connections of one block, one for each of its residual additions; reads like a list of them.

    It is no ``ModuleList``, in whose place libraries of adapters (``modules_to_save`` of PEFT) put no copy.

    Parameters
    ----------
    connections : iterable of HyperConnection
        In the order in which the additions run.
    first, last : bool
        Whether the block is the first of its chain and makes the streams, the last and takes their mean.
    ndim : int
        Dimensions of the residual vectors (..., d) between blocks.
    argument : str
        Name of the block's argument that holds them.
    """

    # While vectors between blocks are collected: the streams of the vector that was handed on, beside it.
    beside: list[tuple[Tensor, Tensor]] | None = None

    def __init__(
        self, connections: Iterable[HyperConnection], *, first: bool, last: bool, ndim: int, argument: str
    ) -> None:
        super().__init__()
        layers = list(connections)
        for number, layer in enumerate(layers):
            self.add_module(str(number), layer)
        self.first, self.last, self.ndim, self.argument = first, last, ndim, argument
        self.streams: int = layers[0].streams
        self.width: int = layers[0].dim

    def __len__(self) -> int:
        return len(self._modules)

    def __getitem__(self, index: int) -> HyperConnection:
        return cast("HyperConnection", list(self._modules.values())[index])

    def __iter__(self) -> Iterator[HyperConnection]:
        return (self[number] for number in range(len(self)))

    # Not forward, by which modules that can be called are told from lists.
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse to run: a block that is a list of modules and goes through all of them comes here."""
        raise RuntimeError("a list that runs all its modules one after the other has no place for connections")

    def enter(self, x: Tensor) -> ResidualVector:
        """Return the residual vector of what a block is called with: (..., d) at the first, else (..., n, d)."""
        if self.beside and self.beside[-1][0] is x:
            x = self.beside.pop()[1]
        ndim, end = (self.ndim, (self.width,)) if self.first else (self.ndim + 1, (self.streams, self.width))
        if x.ndim != ndim or x.shape[-len(end) :] != end:
            raise ValueError(
                f"{self.argument}: expected {ndim} dimensions that end in {end}, got {tuple(x.shape)}; a converted "
                "block runs at its place in the converted model: remove or reorder layers before you convert, and "
                "switch layer drop off"
            )
        x = expand_streams(x, self.streams) if self.first else x
        return ResidualVector(x, cast("Sequence[HyperConnection]", self))

    def leave(self, x: ResidualVector) -> Tensor:
        """Return what the block hands on: streams; their mean after the last block and for a collection."""
        if not isinstance(x, ResidualVector) or x.place != len(self):
            got = f"{x.place}" if isinstance(x, ResidualVector) else "a result that is not their sum"
            raise RuntimeError(
                f"block: expected its {len(self)} residual additions as at conversion, got {got}; "
                "convert with an example that takes this path (example=...); a norm on the residual path cannot be "
                "replaced after conversion"
            )
        x.spend()
        streams = x.streams()
        if self.last or self.beside is None:
            return reduce_streams(streams) if self.last else streams
        vector = reduce_streams(streams)
        self.beside.append((vector, streams))
        return vector


class Specialised:
    """Base of the mix-ins: an instance of a class made on the fly copies and pickles like any other."""

    _original: type[nn.Module]

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        made = next(c for c in type(self).__mro__ if "_original" in vars(c))
        return _revive, (made.__bases__[0], made.__bases__[1]), self.__getstate__()


class ConvertedBlock(Specialised):
    """Mix-in of a block: takes streams, runs the original forward on a residual vector, returns streams."""

    hyper_connections: Connections

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the original forward; its first argument is streams, or one vector a token at the first block."""
        connections = self.hyper_connections
        args, kwargs = swap_first(connections.argument, args, kwargs, connections.enter)
        return swap_result(super().forward(*args, **kwargs), connections.leave)  # type: ignore[misc]


class Collector(Specialised):
    """Mix-in of a model that collects what its blocks hand on, in a method of its own: it collects vectors."""

    def forward_intermediates(self, *args: Any, **kwargs: Any) -> Any:
        """Run the original method with means in the place of streams; streams go from block to block beside them."""
        chain = [m for m in self.modules() if isinstance(m, Connections)]  # type: ignore[attr-defined]
        beside: list[tuple[Tensor, Tensor]] = []
        for connections in chain:
            connections.beside = beside
        try:
            return super().forward_intermediates(*args, **kwargs)  # type: ignore[misc]
        finally:
            for connections in chain:
                connections.beside = None


class StreamNorm(Specialised):
    """Mix-in of a norm that stands on the residual path: it normalises every stream."""

    def forward(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """Run the original norm, on the streams if it is given a residual vector."""
        norm = super().forward  # type: ignore[misc]
        if isinstance(x, ResidualVector):
            return x.map(lambda streams: norm(streams, *args, **kwargs))
        return norm(x, *args, **kwargs)


def specialise(module: nn.Module, mixin: type[Specialised]) -> None:
    """Put a mix-in before the class of a module, in place: weights, names and ``isinstance`` stay as they are."""
    module.__class__ = _specialised(mixin, type(module))


def generalise(module: nn.Module) -> None:
    """Undo :func:`specialise`."""
    module.__class__ = type(module)._original  # type: ignore[attr-defined]


_MADE: dict[tuple[type[Specialised], type[nn.Module]], type[nn.Module]] = {}


def _specialised(mixin: type[Specialised], original: type[nn.Module]) -> type[nn.Module]:
    if (mixin, original) not in _MADE:
        # The name stays: wrapping policies and device maps of other libraries know blocks by their class name.
        names = {"__module__": original.__module__, "__qualname__": original.__qualname__, "__doc__": original.__doc__}
        _MADE[mixin, original] = type(original.__name__, (mixin, original), {**names, "_original": original})
    return _MADE[mixin, original]


def _revive(mixin: type[Specialised], original: type[nn.Module]) -> nn.Module:
    cls = _specialised(mixin, original)
    return cls.__new__(cls)


def swap_first(
    name: str, args: tuple[Any, ...], kwargs: dict[str, Any], fn: Callable[[Any], Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of a call with ``fn`` applied to the first one, which may be passed by name."""
    if args:
        return (fn(args[0]), *args[1:]), kwargs
    if name not in kwargs:
        raise TypeError(f"{name}: a converted block needs it")
    return args, {**kwargs, name: fn(kwargs[name])}


def swap_result(result: Any, fn: Callable[[Any], Any]) -> Any:
    """Return the result of a block with ``fn`` applied to it, or to its first item if it is a list or tuple."""
    if type(result) in (list, tuple):
        return type(result)((fn(result[0]), *result[1:]))
    return fn(result)


def read_before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> tuple[Any, ...]:
    """Forward pre-hook of a module inside a branch: it gets the read, a true tensor, whatever kernel it calls.

    Quantisation hands hooks on to the module that it puts in the place of another, without keyword arguments.
    """
    read = read_arguments(args, kwargs or {})
    return read[0] if kwargs is None else read
