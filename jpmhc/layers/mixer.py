"""A mixer: the chart from raw numbers to the skip matrix, and what it knows about itself."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from jpmhc.kernels.precision import full_precision, lowered, tell_if_compiled
from jpmhc.layers.arguments import check_size
from jpmhc.layers.constants import ConstantModule

# Options of mixers, for their repr.
_CHOICES = (
    "step",
    "iterations",
    "clamp",
    "packed",
    "rank",
    "reflector",
    "stored",
    "blocks",
    "factors",
    "chosen",
    "tangent",
)


class Mixer(ConstantModule):
    """Base class of every mixer: a chart ``raw -> M`` onto a set of n x n matrices.

    A subclass sets ``n_coefficients`` and defines :meth:`forward`, :meth:`start` and :meth:`residual`; decorated with
    :func:`register_mixer` it can be asked for by name. Options that decide what raw numbers mean belong into its
    ``extra_repr``, from which a state dict knows them.

    Parameters
    ----------
    streams : int
        Number of streams n, at least 1.

    Attributes
    ----------
    streams : int
        Number of streams n.
    n_coefficients : int
        Raw numbers a matrix takes.
    promise : float
        Largest residual in float32 that the mixer's own claim allows; beyond it :func:`~jpmhc.layers.statistics` warns.
    mixes : bool
        False where M is I whatever the raw numbers are; the layer then leaves the product with M out.
    squashes : bool
        Whether tanh bounds the token-dependent numbers, as a kernel does it too. :meth:`squash` may be any other bound.
    """

    streams: int
    n_coefficients: int
    promise: float = 1e-5
    mixes: bool = True
    squashes: bool = False

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        # Who calls a chart alone, or looks at its residual, is owed the same digits as a layer.
        for name in ("forward", "residual"):
            method = inspect.getattr_static(cls, name)
            own = method is not vars(Mixer)[name]
            if own and inspect.isfunction(method) and not hasattr(method, "__precise__"):
                setattr(cls, name, _precise(method))
        # A subclass of the identity with a forward of its own is no identity.
        if "forward" in vars(cls) and "mixes" not in vars(cls):
            cls.mixes = True

    def __init__(self, streams: int) -> None:
        super().__init__()
        self.streams = check_size("streams", streams)

    def forward(self, raw: Tensor) -> Tensor:
        """Map raw numbers (..., n_coefficients) to matrices (..., n, n), float32 or float64."""
        raise self._undefined("forward")

    def start(self) -> Tensor:
        """Raw numbers (n_coefficients,), float64, of the start: rows of M sum to one, M = I where that is reached."""
        raise self._undefined("start")

    def residual(self, matrix: Tensor) -> Tensor:
        """Distance (...) of matrices (..., n, n) from the set that the mixer promises."""
        raise self._undefined("residual")

    def reset_parameters(self) -> None:
        """Return parameters of the mixer's own to their start; there are none here."""

    def squash(self, dynamic: Tensor) -> Tensor:
        """Bound the token-dependent numbers (..., n_coefficients) before they are scaled and added, by tanh or not."""
        return torch.tanh(dynamic) if self.squashes else dynamic

    def describe(self) -> str:
        """Return the choices that decide what raw numbers mean, as one line; state dicts carry it."""
        return f"{type(self).__name__}({self.extra_repr()})"

    def extra_repr(self) -> str:
        """Show the number of streams and whatever else was chosen."""
        chosen = [f"{name}={getattr(self, name)!r}" for name in _CHOICES if hasattr(self, name)]
        return ", ".join([str(self.streams), *chosen])

    def _undefined(self, name: str) -> NotImplementedError:
        return NotImplementedError(f"{type(self).__name__}.{name} is not defined")

    def _coefficients(self, raw: Tensor) -> Tensor:
        # A wrong last size would broadcast into a wrong matrix without a word.
        if raw.shape[-1:] != (self.n_coefficients,):
            raise ValueError(
                f"raw: expected shape (..., {self.n_coefficients}) for {type(self).__name__}({self.streams}), "
                f"got {tuple(raw.shape)}"
            )
        return raw.to(torch.promote_types(raw.dtype, torch.float32))


def _precise(method: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @functools.wraps(method)
    def wrapped(self: Mixer, *args: Any, **options: Any) -> Tensor:
        given = args[0] if args else None
        if not isinstance(given, Tensor):
            given = next((value for value in (*args, *options.values()) if isinstance(value, Tensor)), None)
        if given is None:
            return method(self, *args, **options)  # which says what is wrong
        kind = given.device.type
        tell_if_compiled(kind)
        if not lowered(kind):
            return method(self, *args, **options)
        with full_precision(kind):
            return method(self, *args, **options)

    wrapped.__precise__ = True  # type: ignore[attr-defined]
    return wrapped


def bound_in_kernels(mixer: nn.Module) -> bool | None:
    """Whether tanh bounds a mixer's numbers, as kernels do it; None where a bound of somebody's own has its place."""
    if not isinstance(mixer, Mixer) or type(mixer).squash is not Mixer.squash or "squash" in vars(mixer):
        return None
    return mixer.squashes


def check_matrix(matrix: Any, raw: Tensor, mixer: Mixer) -> None:
    """Refuse what a mixer made of raw numbers (..., n_coefficients) unless it is floating matrices (..., n, n).

    Raises
    ------
    ValueError
        For another shape, which would broadcast against the streams without a word, or no tensor.
    TypeError
        For another dtype.
    """
    shape = (*raw.shape[:-1], mixer.streams, mixer.streams)
    if not isinstance(matrix, Tensor) or matrix.shape != shape:
        got = f"shape {tuple(matrix.shape)}" if isinstance(matrix, Tensor) else type(matrix).__name__
        error: type[Exception] = ValueError
    elif matrix.is_floating_point():
        return
    else:
        got, error = str(matrix.dtype), TypeError
    made = f"{type(mixer).__name__}({mixer.streams})"
    raise error(f"mixer: expected floating-point matrices of shape {shape} of {made}, got {got}")


@dataclass(frozen=True)
class MixerInfo:
    """What is known about a mixer before one is made; ``str(info)`` is its name.

    Attributes
    ----------
    name : str
        The name :class:`~jpmhc.layers.HyperConnection` takes.
    set : str
        The set of matrices it reaches.
    coefficients : str
        Raw numbers per matrix as a formula in n.
    exact : bool
        Whether the constraint holds to round-off.
    streams : tuple of (int, int or None)
        Smallest and largest n.
    make : Callable
        ``make(streams, **arguments)`` builds the mixer.
    """

    name: str
    set: str
    coefficients: str
    exact: bool
    streams: tuple[int, int | None]
    make: Callable[..., Mixer]

    def supports(self, streams: int) -> bool:
        """Whether the mixer exists for that number of streams."""
        smallest, largest = self.streams
        return smallest <= streams and (largest is None or streams <= largest)

    def __str__(self) -> str:
        return self.name


_REGISTRY: dict[str, MixerInfo] = {}


def _full_name(cls: Any) -> tuple[str, str]:
    return cls.__module__, cls.__qualname__


_MixerClass = TypeVar("_MixerClass", bound=type[Mixer])


def register_mixer(
    name: str,
    *,
    set: str = "unstated",
    coefficients: str = "unstated",
    exact: bool = False,
    streams: tuple[int, int | None] = (1, None),
) -> Callable[[_MixerClass], _MixerClass]:
    """Class decorator that makes a :class:`Mixer` available by name, from inside or outside this package.

    Parameters
    ----------
    name : str
        The name, not yet taken.
    set, coefficients : str
        The set of matrices and the number of raw numbers as a formula in n, for :func:`mixers`.
    exact : bool
        Whether the constraint holds to round-off.
    streams : tuple of (int, int or None)
        Smallest and largest n; the class itself refuses others.

    Raises
    ------
    ValueError
        If the name is taken by another class.
    """

    def decorate(cls: _MixerClass) -> _MixerClass:
        taken = _REGISTRY.get(name)
        # The same class defined again (a reloaded module, a re-run notebook cell) replaces itself.
        if taken is not None and _full_name(taken.make) != _full_name(cls):
            raise ValueError(f"name: mixer {name!r} is already registered by {taken.make!r}")
        _REGISTRY[name] = MixerInfo(name, set, coefficients, exact, streams, cls)
        return cls

    return decorate


def mixers() -> list[MixerInfo]:
    """Every registered mixer, by name.

    Examples
    --------
    >>> from jpmhc import layers
    >>> [str(info) for info in layers.mixers()][:4]
    ['cayley', 'cayley-iterated', 'cayley-mean', 'free']
    """
    return [_REGISTRY[name] for name in sorted(_REGISTRY)]


def is_exact(cls: type[Mixer]) -> bool:
    """Whether a class of mixers was registered as exact; False for one that was not registered."""
    return any(info.exact for info in _REGISTRY.values() if info.make is cls)


def make_mixer(mixer: str | Mixer, streams: int, **arguments: Any) -> Mixer:
    """Return the mixer of that name and number of streams, or check the one that is given.

    Parameters
    ----------
    mixer : str or Mixer
        A registered name or an instance.
    streams : int
        Number of streams n.
    **arguments
        Passed to the mixer's constructor when a name is given.

    Raises
    ------
    ValueError
        For an unknown name, or an instance made for another number of streams.
    TypeError
        For anything that is neither, and for arguments the mixer does not take.

    Examples
    --------
    >>> make_mixer("cayley", 4, step=0.1).n_coefficients
    6
    """
    if isinstance(mixer, Mixer):
        if mixer.streams != streams:
            raise ValueError(f"mixer: expected one for {streams} streams, got {type(mixer).__name__}({mixer.streams})")
        return mixer
    if not isinstance(mixer, str):
        raise TypeError(f"mixer: expected a name or a layers.Mixer, got {type(mixer).__name__}")
    if mixer not in _REGISTRY:
        # Command lines take arguments behind a name; here they would be numbers in a text.
        hint = "; arguments go to an instance, make_mixer(name, streams, step=0.1) for one" if ":" in mixer else ""
        raise ValueError(f"mixer: unknown name {mixer!r}, expected one of {', '.join(sorted(_REGISTRY))}{hint}")
    try:
        return _REGISTRY[mixer].make(streams, **arguments)
    except TypeError as error:
        raise TypeError(f"mixer: {mixer!r} refused {arguments or 'its arguments'}: {error}") from error
