"""Whether the features of a block's residual vectors are their last dimension, as streams need them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from jpmhc.layers.adapters.vector import PATH, read_arguments

if TYPE_CHECKING:
    from jpmhc.layers.adapters.record import Record

# Named after the functions of torch, which come under one name as methods, operators and functions.
_CHANNEL_NORMS = {"batch_norm", "group_norm", "instance_norm"}
_NORMS = {"layer_norm", "rms_norm", *_CHANNEL_NORMS}
_CONVOLUTIONS = {f"conv{transpose}{n}d" for transpose in ("", "_transpose") for n in (1, 2, 3)}
_PRODUCTS = {
    *("linear", "bilinear", "matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "addmm", "baddbmm", "einsum"),
    *("tensordot", "inner", "mv", "addmv", "addbmm"),
}
_RECURRENT = {"lstm", "gru", "rnn_tanh", "rnn_relu"}
_CONTRACTIONS = {"multi_head_attention_forward", *_CONVOLUTIONS, *_PRODUCTS, *_RECURRENT}
_MOVES = {
    *("transpose", "swapaxes", "swapdims", "permute", "movedim", "moveaxis", "t", "__get__"),
    *("reshape", "view", "flatten", "unflatten", "ravel", "unsqueeze", "squeeze", "expand", "expand_as"),
    *("chunk", "split", "tensor_split", "unbind", "select", "narrow", "__getitem__", "roll", "flip", "repeat"),
    *("contiguous", "mean", "amax", "pad"),
}
_JOINS = {"cat", "concat", "concatenate", "stack"}
# What a norm is made of that is written by hand: x over the root of a sum of squares, or over a deviation.
_SQUARES = {"pow", "__pow__", "square", "abs", "__abs__"}
_SUMS, _DEVIATIONS = {"mean", "sum"}, {"var", "std", "norm", "vector_norm", "linalg_vector_norm", "linalg_norm"}
_TIMES = {"mul", "__mul__", "__rmul__", "multiply"}
_OVER = {"div", "__truediv__", "__rtruediv__", "__rdiv__", "__div__", "true_divide", "divide"}


@dataclass
class Reader:
    """A norm or a contraction that takes the residual vector, before anything else of the kind has.

    Attributes
    ----------
    name : str
        Of the module that calls it, else of the function.
    norm : bool
        Whether it is a norm.
    last : bool
        Whether it runs over what is the last dimension of the residual vector.
    convolves : bool
        Whether it is a convolution, which says itself what are channels.
    """

    name: str
    norm: bool
    last: bool
    convolves: bool = False


class Axes(TorchFunctionMode):
    """Follows the last dimension of residual vectors to what reads them, through transposes and elementwise functions.

    Every tensor that is watched has labels beside it, a tensor of its shape that says where along the last dimension
    of the residual vector a number comes from. A function that only moves numbers moves the labels; a function that
    runs over labelled dimensions is known by not taking twice as much of them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.readers: list[Reader] = []
        self._stack: Sequence[nn.Module] = ()
        # The tensors are kept, so that none takes the identity of another.
        self._labels: dict[int, tuple[Tensor, Tensor]] = {}
        # Squares of what is watched; lengths over one dimension, and whether that is the last of the residual vector.
        self._squares: dict[int, Tensor] = {}
        self._lengths: dict[int, tuple[Tensor, bool]] = {}

    def begin(self, stack: Sequence[nn.Module] = ()) -> None:
        """Forget all vectors and readers, and name readers after the last module of a stack from now on."""
        self._labels, self._squares, self._lengths = {}, {}, {}
        self.readers, self._stack = [], stack

    def watch(self, x: Tensor) -> None:
        """Follow x, of which the last dimension is that of the residual vector."""
        self._keep(x, torch.arange(x.shape[-1], device=x.device, dtype=torch.float32).expand(x.shape))

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call the function and follow what is watched among its arguments."""
        kwargs = kwargs or {}
        if func not in PATH:
            args, kwargs = read_arguments(args, kwargs)
        result = func(*args, **kwargs)
        tensors = list(_tensors([*args, *kwargs.values()]))
        watched = [value for value in tensors if id(value) in self._labels]
        lengths = [value for value in tensors if id(value) in self._lengths]
        if watched or lengths:
            self._measure(getattr(func, "__name__", ""), tensors, watched, lengths, result)
        if watched:
            self._follow(func, args, kwargs, watched, result)
        return result

    def _follow(self, func: Any, args: Any, kwargs: Any, watched: list[Tensor], result: Any) -> None:
        name = getattr(func, "__name__", "")
        if name == "normalize":
            dim = args[2] if len(args) > 2 else kwargs.get("dim", 1)
            varying = _varying(self._labels[id(watched[0])][1])
            if isinstance(dim, int):
                self._read(name, True, dim % watched[0].ndim in varying)
        if name in _NORMS and not _over_several(name, args, kwargs):
            self._read(name, True, self._runs_over(func, name, args, kwargs, watched))
        elif name in _CONTRACTIONS:
            # A product of the vector with itself has no weights to tell by.
            if name not in _PRODUCTS or len(watched) == 1:
                self._read(name, False, self._runs_over(func, name, args, kwargs, watched))
        elif name in _MOVES:
            self._move(func, args, kwargs, result)
        elif name in _JOINS:
            self._join(func, args, kwargs, watched, result)
        elif isinstance(result, Tensor):
            labels = self._labels[id(watched[0])][1]
            if _broadcast([*args, *kwargs.values()]) == result.shape:
                self._keep(result, labels.expand(result.shape))

    def _read(self, name: str, norm: bool, last: bool) -> None:
        by = type(self._stack[-1]).__name__ if self._stack else name
        self.readers.append(Reader(by, norm, last, convolves=name in _CONVOLUTIONS))

    def _measure(
        self, name: str, tensors: list[Tensor], watched: list[Tensor], lengths: list[Tensor], result: Any
    ) -> None:
        """Follow squares of what is watched to their sums over one dimension, and those to what is divided by them."""
        whole = [x for x in watched if id(x) not in self._lengths]
        if not isinstance(result, Tensor) or name in _NORMS or name in _CONTRACTIONS:
            return
        if lengths:
            if not whole and result.shape == lengths[0].shape:
                self._lengths[id(result)] = (result, self._lengths[id(lengths[0])][1])
            elif whole and name in _TIMES | _OVER:
                self._read(name, True, self._lengths[id(lengths[0])][1])
        elif name in _SQUARES or (name in _TIMES and len(tensors) == 2 and tensors[0] is tensors[1]):
            self._squares[id(result)] = result
        elif name in _DEVIATIONS or (name in _SUMS and id(whole[0]) in self._squares):
            x = whole[0]
            summed = [dim for dim in range(x.ndim) if result.ndim == x.ndim and result.shape[dim] != x.shape[dim]]
            if len(summed) == 1:
                self._lengths[id(result)] = (result, summed[0] in _varying(self._labels[id(x)][1]))

    def _runs_over(self, func: Any, name: str, args: Any, kwargs: Any, watched: list[Tensor]) -> bool:
        labels = self._labels[id(watched[0])][1]
        if name in _CHANNEL_NORMS:
            return 1 in _varying(labels)
        if name in _RECURRENT:  # which do not look at sizes
            return labels.ndim - 1 in _varying(labels)

        def twice(x: Tensor) -> Tensor:
            for dim in _varying(self._labels[id(x)][1]) if id(x) in self._labels else ():
                x = torch.cat([x, x], dim)
            return x

        return _fails(lambda: func(*_mapped(twice, args), **_mapped(twice, kwargs)))

    def _move(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        def labels(x: Tensor) -> Tensor:
            return self._labels[id(x)][1] if id(x) in self._labels else x

        try:
            moved = func(*_mapped(labels, args), **_mapped(labels, kwargs))
        except Exception:
            return
        for out, beside in zip(_tensors([result]), _tensors([moved]), strict=False):
            self._keep(out, beside)

    def _join(self, func: Any, args: Any, kwargs: Any, watched: list[Tensor], result: Any) -> None:
        """Label what is joined to a watched tensor as that is: a class token, zeros before the first token."""
        known = self._labels[id(watched[0])][1]
        given = args[1] if len(args) > 1 else kwargs.get("dim", 0)

        def labels(x: Tensor) -> Tensor:
            if id(x) in self._labels or x.ndim != known.ndim or func.__name__ == "stack":
                return self._labels[id(x)][1] if id(x) in self._labels else known
            if given % known.ndim in _varying(known):
                return torch.zeros_like(x, dtype=known.dtype)
            return known.narrow(given, 0, 1).expand(x.shape)

        self._move(func, [[labels(x) for x in _tensors([args[0]])], *args[1:]] if args else args, kwargs, result)

    def _keep(self, x: Tensor, labels: Tensor) -> None:
        if labels.shape == x.shape and _varying(labels):
            self._labels[id(x)] = (x, labels)


def features_elsewhere(records: Iterable[Record]) -> str | None:
    """Return why the last dimension of the residual vectors of a chain of blocks holds no features, or None if it does.

    Coefficients are made of the last dimension. Where that is time or the width of an image, a token would see others,
    the future among them. What a norm runs over are features, if it is one dimension. A chain without norms has them
    where any contraction (a linear layer) runs over the last dimension: it also has some that run over tokens. It has
    none there if a convolution takes another dimension for its channels. A chain with no reader takes any number of
    tokens, but not of features.

    Parameters
    ----------
    records : iterable of Record
        One call of each block.
    """
    records = list(records)
    pairs = [(record, reader) for record in records for reader in record.readers]
    for norm in (True, False):
        found = [(record, reader) for record, reader in pairs if reader.norm is norm]
        if found:
            # Without norms a convolution over other channels weighs more than a linear layer, which may mix tokens.
            other = [(record, reader) for record, reader in found if not reader.last and not norm and reader.convolves]
            record, reader = (other or found)[0]
            told = not other and any(r.last for _, r in found)
            return None if told else _reason(record, f"{reader.name} reads them")
    for record in records:
        if record.any_size:
            return _reason(record, f"the block takes another size of the last dimension; it reads at {record.uses()}")
    return None


def _reason(record: Record, reader: str) -> str:
    shape, name = tuple(record.anatomy.shape), record.anatomy.name or "the model itself"
    return f"{name}: channels must come last, not before as in vectors of shape {shape}: {reader}"


def takes_any_size(x: Tensor, run: Callable[[Tensor], bool]) -> bool:
    """Try twice the size: weights fix the number of features, that of tokens is free (in whole windows at least).

    Parameters
    ----------
    x : Tensor, shape (..., d)
        Residual vectors.
    run : Callable
        Calls the block with other vectors in place of x and says whether their residual path is the same.
    """
    try:
        return run(x.repeat(*[1] * (x.ndim - 1), 2))
    except Exception:
        return False


def _over_several(name: str, args: Any, kwargs: Any) -> bool:
    """Whether a norm runs over several dimensions, as images have with channels among them."""
    if name in _CHANNEL_NORMS:
        return False
    shape = args[1] if len(args) > 1 else kwargs.get("normalized_shape", ())
    return isinstance(shape, tuple | list) and len(shape) > 1


def _fails(function: Callable[[], Any]) -> bool:
    try:
        function()
    except Exception:
        return True
    return False


def _broadcast(values: list[Any]) -> torch.Size | None:
    try:
        return torch.broadcast_shapes(*(value.shape for value in _tensors(values)))
    except RuntimeError:
        return None


def _varying(labels: Tensor) -> list[int]:
    """Dimensions along which labels differ, by more than the round-off of a mean."""
    return [
        dim for dim, size in enumerate(labels.shape) if size > 1 and bool((labels.diff(dim=dim).abs() > 0.25).any())
    ]


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _mapped(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    if isinstance(value, Tensor):
        return function(value)
    if type(value) in (list, tuple):
        return type(value)(_mapped(function, item) for item in value)
    if type(value) is dict:
        return {key: _mapped(function, item) for key, item in value.items()}
    return value
