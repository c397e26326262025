"""Checks of what the maps of a manifold are given: shapes and dtypes always, values under `checked`."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from jpmhc.kernels.precision import full_precision, lowered, tell_if_compiled
from jpmhc.manifolds.checked import is_checked

if TYPE_CHECKING:
    from jpmhc.manifolds.base import Manifold

TOLERANCE = 1e-5
DTYPES = (torch.float32, torch.float64)

POINT, TANGENT, AMBIENT = "point", "tangent", "ambient"

_X_U = {"x": POINT, "u": TANGENT}
_X_U_V = {"x": POINT, "u": TANGENT, "v": TANGENT}
_X_Y = {"x": POINT, "y": POINT}

# What each argument of a map must be, and what its result is: a point, a vector at the named point, or unknown.
MAPS: dict[str, tuple[Mapping[str, str], str | None]] = {
    "projx": ({"x": AMBIENT}, POINT),
    "proju": ({"x": POINT, "u": AMBIENT}, "x"),
    "egrad2rgrad": ({"x": POINT, "u": AMBIENT}, "x"),
    "ehess2rhess": ({"x": POINT, "egrad": AMBIENT, "ehess": AMBIENT, "u": TANGENT}, "x"),
    "inner": (_X_U_V, None),
    "norm": (_X_U, None),
    "retr": (_X_U, POINT),
    "expmap": (_X_U, POINT),
    "logmap": (_X_Y, "x"),
    "dist": (_X_Y, None),
    "dist2": (_X_Y, None),
    "transp": ({"x": POINT, "y": POINT, "v": TANGENT}, "y"),
    "retr_transp": (_X_U_V, None),
    "expmap_transp": (_X_U_V, None),
    "transp_follow_retr": (_X_U_V, None),
    "transp_follow_expmap": (_X_U_V, None),
}

PRECISE = ("point_error", "tangent_error", "embed", "projector", "principal_angles")


def guarded(method: Callable[..., Any]) -> Callable[..., Any]:
    """Let a map check its arguments, and run it in full precision where autocast is on."""
    kinds, result_kind = MAPS[method.__name__]
    parameters = inspect.signature(method).parameters
    names = list(parameters)[1:]
    optional = {name for name in kinds if name in parameters and parameters[name].default is None}
    last = max((names.index(name) + 1 for name in optional), default=0)

    @functools.wraps(method)
    def wrapped(self: Manifold, *args: Any, **options: Any) -> Any:
        given_ones = args[:-1] if 0 < len(args) == last and args[-1] is None else args
        if (not options or [*options] == ["keepdim"]) and _plainly_right(self, given_ones):
            return method(self, *args, **options)
        given = {**dict(zip(names, args, strict=False)), **options}
        tensors = {name: given[name] for name in kinds if name in given}
        for name in optional:
            if tensors.get(name, self) is None:
                del tensors[name]
        if not tensors:
            return method(self, *args, **options)  # Python says which argument is missing
        check_shapes(self, tensors)
        looks = not torch.compiler.is_compiling() and is_checked() and not _transformed(tensors)
        if looks:
            for name, value in tensors.items():
                check_values(self, name, value, kinds[name], tensors["x"])
        device = next(iter(tensors.values())).device
        tell_if_compiled(device.type)
        with full_precision(device):
            result = method(self, *args, **options)
        if isinstance(result, tuple) and result[0].shape != result[1].shape:
            result = torch.broadcast_tensors(*result)  # a point that several vectors were carried to
        if looks and result_kind is not None:
            kind = POINT if result_kind == POINT else TANGENT
            check_values(self, f"result of {method.__name__}", result, kind, tensors.get(result_kind, result))
        return result

    wrapped.__guarded__ = True  # type: ignore[attr-defined]
    return wrapped


def precise(method: Callable[..., Any]) -> Callable[..., Any]:
    """Run a function of points in full precision."""

    @functools.wraps(method)
    def wrapped(self: Manifold, x: Tensor, *args: Any, **options: Any) -> Any:
        tell_if_compiled(x.device.type)
        with full_precision(x.device):
            return method(self, x, *args, **options)

    wrapped.__guarded__ = True  # type: ignore[attr-defined]
    return wrapped


def _plainly_right(manifold: Manifold, args: tuple[Any, ...]) -> bool:
    """Whether nothing is left to check or to switch off, as a rule and in a tenth of the time of the other way."""
    if torch.compiler.is_compiling() or is_checked() or not args or not isinstance(args[0], Tensor):
        return False
    first = args[0]
    dtype, shape = first.dtype, first.shape
    if dtype not in DTYPES or not manifold.accepts(shape) or lowered("cpu" if first.is_cpu else first.device.type):
        return False
    for value in args[1:]:
        if not isinstance(value, Tensor) or value.dtype is not dtype or value.shape != shape:
            return False
    return True


def sized(method: Callable[..., int]) -> Callable[..., int]:
    """Let a function of a shape refuse those that no point has."""

    @functools.wraps(method)
    def wrapped(self: Manifold, shape: tuple[int, ...]) -> int:
        check_shape(self, "shape", shape)
        return method(self, shape)

    wrapped.__guarded__ = True  # type: ignore[attr-defined]
    return wrapped


def check_shapes(manifold: Manifold, tensors: Mapping[str, Tensor]) -> None:
    """Check types, dtypes and shapes against the manifold and against each other."""
    first: Tensor | None = None
    for name, value in tensors.items():
        check_dtype(name, value)
        shape = value.shape
        if first is None:
            check_shape(manifold, name, shape)
            first = value
            continue
        if value.dtype != first.dtype:
            raise TypeError(f"{name}: expected the dtype of the point, {first.dtype}, got {value.dtype}")
        core = first.shape[len(first.shape) - manifold.ndim :]
        if shape[max(0, len(shape) - manifold.ndim) :] != core:
            raise ValueError(
                f"{name}: expected shape (..., {', '.join(map(str, core))}) like the point, got {tuple(shape)}"
            )
        if shape != first.shape:
            try:
                torch.broadcast_shapes(shape, first.shape)
            except RuntimeError:
                raise ValueError(
                    f"{name}: expected batch dimensions that broadcast with the point's, "
                    f"{tuple(first.shape)}, got {tuple(shape)}"
                ) from None


def check_dtype(name: str, value: Any) -> None:
    """Refuse what is not a tensor of float32 or float64."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(value).__name__}")
    if value.dtype not in DTYPES:
        raise TypeError(f"{name}: expected float32 or float64, got {value.dtype}")


def check_shape(manifold: Manifold, name: str, shape: tuple[int, ...]) -> None:
    """Refuse a shape that no point of the manifold has."""
    if not manifold.accepts(tuple(shape)):
        raise ValueError(f"{name}: expected shape {manifold.shape_pattern}, got {tuple(shape)}")


def check_values(manifold: Manifold, name: str, value: Tensor, kind: str, at: Tensor) -> None:
    """Refuse NaN, infinity, a point off the manifold and a vector off the tangent space `at` a point."""
    value = value.detach()
    if value.numel() == 0:
        return
    if not bool(torch.isfinite(value).all()):
        raise ValueError(f"{name}: holds NaN or infinity")
    if kind == POINT:
        error = float(manifold.point_error(value).max())
        if not error <= TOLERANCE:
            raise ValueError(
                f"{name}: off the {manifold.name} manifold by {error:.2g} (tolerance {TOLERANCE:g}); "
                "project it with projx"
            )
    elif kind == TANGENT:
        allowed = TOLERANCE * largest(manifold, value).clamp_min(1.0)
        if worst := worst_of(manifold.tangent_error(at.detach(), value), allowed):
            raise ValueError(
                f"{name}: off the tangent space by {worst[0]:.2g} (tolerance {worst[1]:.2g}); project it with proju"
            )


def largest(manifold: Manifold, vector: Tensor) -> Tensor:
    """Return the largest entry of every vector: a long one must not excuse its neighbours in the batch."""
    dims = tuple(range(-manifold.ndim, 0))
    return vector.detach().abs().amax(dims) if vector.numel() else vector.new_zeros(vector.shape[: -manifold.ndim])


def worst_of(error: Tensor, allowed: Tensor) -> tuple[float, float] | None:
    """Return the error that is furthest above what is allowed, and that; None if none is, NaN counting as above."""
    error, allowed = torch.broadcast_tensors(error.detach(), allowed.to(error.device))
    if bool((error <= allowed).all()):
        return None
    place = (error - allowed).nan_to_num(torch.inf, torch.inf).argmax()
    return float(error.flatten()[place]), float(allowed.flatten()[place])


def _transformed(tensors: Mapping[str, Tensor]) -> bool:
    return any(torch._C._functorch.is_functorch_wrapped_tensor(value) for value in tensors.values())
