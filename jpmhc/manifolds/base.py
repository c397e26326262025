"""The base class of all manifolds, itself a ``geoopt.Manifold``."""

from __future__ import annotations

import abc
from typing import Any, ClassVar

import torch
from torch import Tensor

from jpmhc.manifolds.algebra import root
from jpmhc.manifolds.arguments import (
    DTYPES,
    MAPS,
    PRECISE,
    TOLERANCE,
    check_shape,
    guarded,
    largest,
    precise,
    sized,
    worst_of,
)
from jpmhc.manifolds.peer import geoopt
from jpmhc.manifolds.sameness import alike, held, names_its_settings


class Manifold(geoopt.Manifold):
    """A Riemannian manifold of vectors or matrices, of any size and any batch.

    Points are tensors whose last `ndim` dimensions are one point; all others are batch, broadcast as usual; the point
    and the vector of `retr_transp` and `expmap_transp` have one batch, that of all arguments. A
    manifold carries no size and no data, so one instance serves all shapes, and two of equal type and attributes are
    equal and hash alike: an optimiser moves their parameters as one batch.

    A subclass defines `accepts`, `shape_pattern`, `point_error`, `tangent_error`, `dim`, `_random`, `_origin` and the
    maps ``projx, proju, egrad2rgrad, ehess2rhess, inner, retr, transp``, and ``expmap, logmap, dist`` where it has
    them; `check_manifold` then says whether they are right. Every map it defines is wrapped: shapes and dtypes of its
    arguments are checked (values too, inside `checked`) and it runs with autocast off.

    Options of its own are attributes that its ``__init__`` sets. Numbers, strings, manifolds and lists of them are
    compared by value, tensors and other objects by identity, and copies and pickles take all of them along. A class
    that defines `_settings`, the tuple of its constructor arguments, is copied by calling the constructor instead.
    ``torch.load(weights_only=True)`` reads either once it is among ``torch.serialization.add_safe_globals``.

    Attributes
    ----------
    ndim : int
        Number of trailing dimensions of a point.
    retraction_order : int
        Claimed order of `retr`: 1 if it agrees with the exponential to first order, 2 to second (or exactly).
    isometric_transport : bool
        Whether `retr_transp` preserves the metric.
    reversible : bool
        Whether `retr` along the step that `retr_transp` has carried along, taken back, leads back: geoopt's samplers
        ask for it.

    Notes
    -----
    All maps work under ``torch.func`` transforms and ``torch.compile(fullgraph=True)``, have derivatives of every
    order, and never wait for the device, unless their docstring says otherwise. The derivatives are those of curves of
    points and tangent vectors; what they say about a point that moves off its manifold is no particular extension's, so
    that a test by finite differences of all entries has to project first.
    """

    ndim: int = 2
    reversible = False
    shape_pattern: str
    retraction_order: int = 1
    isometric_transport: bool = False
    retractions: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        _guard(cls)

    # --- what a subclass says about itself -------------------------------------------------------------------------

    @abc.abstractmethod
    def accepts(self, shape: tuple[int, ...]) -> bool:
        """Whether points may have this shape, batch dimensions included."""

    @abc.abstractmethod
    def point_error(self, x: Tensor) -> Tensor:
        """Largest violation of the constraint, one number a point."""

    @abc.abstractmethod
    def tangent_error(self, x: Tensor, u: Tensor) -> Tensor:
        """Largest violation of the tangent condition, one number a vector."""

    @abc.abstractmethod
    def dim(self, shape: tuple[int, ...]) -> int:
        """Dimension of the manifold of points of this shape; batch dimensions do not count."""

    @abc.abstractmethod
    def _random(self, shape: tuple[int, ...], generator: torch.Generator | None, like: dict[str, Any]) -> Tensor: ...

    @abc.abstractmethod
    def _origin(self, shape: tuple[int, ...], like: dict[str, Any]) -> Tensor: ...

    def embed(self, x: Tensor) -> Tensor:
        """Ambient array that is the same for all representatives of a point: `x` itself unless points have several."""
        return x

    # --- maps ------------------------------------------------------------------------------------------------------

    @abc.abstractmethod
    def ehess2rhess(self, x: Tensor, egrad: Tensor, ehess: Tensor, u: Tensor) -> Tensor:
        """Riemannian Hessian along `u` from the Euclidean gradient and the Euclidean Hessian along `u`."""

    def norm(self, x: Tensor, u: Tensor, *, keepdim: bool = False) -> Tensor:
        """Norm of a tangent vector, one number a point; its derivative at a zero vector is zero."""
        return root(self.inner(x, u, keepdim=keepdim))

    def expmap(self, x: Tensor, u: Tensor) -> Tensor:
        """Exponential map."""
        raise NotImplementedError(f"{self.name}: no formula for the exponential map is known; use retr")

    def logmap(self, x: Tensor, y: Tensor) -> Tensor:
        """Inverse of the exponential map."""
        raise NotImplementedError(f"{self.name}: no formula for the logarithm is known")

    def dist(self, x: Tensor, y: Tensor, *, keepdim: bool = False) -> Tensor:
        """Geodesic distance, one number a pair."""
        return self.norm(x, self.logmap(x, y), keepdim=keepdim)

    def dist2(self, x: Tensor, y: Tensor, *, keepdim: bool = False) -> Tensor:
        """Squared geodesic distance, smooth at equal points."""
        return self.inner(x, self.logmap(x, y), keepdim=keepdim)

    def retr_transp(self, x: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """`retr`, and the vector `v` at `x` carried along by `transp`."""
        y = self.retr(x, u)
        return y, self.transp(x, y, v)

    def expmap_transp(self, x: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """`expmap`, and the vector `v` at `x` carried along by `transp`."""
        y = self.expmap(x, u)
        return y, self.transp(x, y, v)

    def transp_follow_retr(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """Vector that `retr_transp` gives."""
        return self.retr_transp(x, u, v)[1]

    def transp_follow_expmap(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """Vector that `expmap_transp` gives."""
        return self.expmap_transp(x, u, v)[1]

    # --- making points ---------------------------------------------------------------------------------------------

    def random(
        self,
        *size: int | tuple[int, ...],
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        generator: torch.Generator | None = None,
        **unknown: Any,
    ) -> Tensor:
        """Random points, a plain tensor of shape `size`; the class says of which distribution.

        Not a ``geoopt.ManifoldTensor``, which custom operators refuse under ``torch.compile``: give the manifold to
        `Parameter` (or to ``geoopt.ManifoldParameter``).
        """
        if unknown:  # geoopt's signature has them
            raise TypeError(f"{', '.join(unknown)}: no argument of {self.name}.random")
        shape, like = self._options(size, dtype, device)
        return self._random(shape, generator, like)

    def origin(
        self,
        *size: int | tuple[int, ...],
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        seed: int | None = None,
    ) -> Tensor:
        """Distinguished points, a plain tensor of shape `size`; nothing about it is random, `seed` has no effect."""
        shape, like = self._options(size, dtype, device)
        return self._origin(shape, like)

    def _options(
        self, size: tuple[Any, ...], dtype: torch.dtype | None, device: torch.device | str | None
    ) -> tuple[tuple[int, ...], dict[str, Any]]:
        shape = tuple(size[0]) if len(size) == 1 and not isinstance(size[0], int) else size
        check_shape(self, "size", shape)
        dtype = dtype or torch.get_default_dtype()
        if dtype not in DTYPES:
            raise TypeError(f"dtype: expected float32 or float64, got {dtype}")
        return shape, {"dtype": dtype, "device": device}

    # --- geoopt's checks -------------------------------------------------------------------------------------------

    def _check_shape(self, shape: tuple[int, ...], name: str) -> tuple[bool, str | None]:
        if self.accepts(tuple(shape)):
            return True, None
        return False, f"{name}: expected shape {self.shape_pattern}, got {tuple(shape)}"

    def _check_point_on_manifold(
        self, x: Tensor, *, atol: float = TOLERANCE, rtol: float = TOLERANCE
    ) -> tuple[bool, str | None]:
        fault = _no_numbers("x", x) or _violation("x", self.point_error(x), torch.tensor(atol, dtype=torch.float64))
        return fault is None, fault

    def _check_vector_on_tangent(
        self, x: Tensor, u: Tensor, *, atol: float = TOLERANCE, rtol: float = TOLERANCE
    ) -> tuple[bool, str | None]:
        fault = _no_numbers("x", x) or _no_numbers("u", u)
        if fault is None:
            fault = _violation("u", self.tangent_error(x, u), atol + rtol * largest(self, u))
        return fault is None, fault

    # --- identity --------------------------------------------------------------------------------------------------

    def _settings(self) -> tuple[Any, ...]:
        """Return the constructor arguments, from which copies and pickles are made.

        Not asked where a subclass has a constructor of its own, or where what they make is not equal.
        """
        return ()

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and alike(held(self), held(other))

    def __hash__(self) -> int:
        return hash(type(self))  # attributes may be set later

    def __reduce_ex__(self, protocol: Any) -> Any:
        if type(self).__reduce__ is object.__reduce__ and names_its_settings(type(self)):
            settings = self._settings()
            if type(self)(*settings) == self:
                return type(self), settings
        return super().__reduce_ex__(protocol)

    def _choose(self, name: str, value: str, choices: tuple[str, ...]) -> str:
        if value not in choices:
            raise ValueError(f"{name}: expected one of {', '.join(choices)}, got {value!r}")
        return value


def _guard(cls: type) -> None:
    guards = {**dict.fromkeys(MAPS, guarded), **dict.fromkeys(PRECISE, precise), "dim": sized}
    for name, guard in guards.items():
        method = vars(cls).get(name)
        if callable(method) and not getattr(method, "__guarded__", False):
            setattr(cls, name, guard(method))


_guard(Manifold)


def _no_numbers(name: str, value: Tensor) -> str | None:
    if value.dtype not in DTYPES:
        return f"{name}: expected float32 or float64, got {value.dtype}"
    return None if bool(torch.isfinite(value.detach()).all()) else f"{name}: holds NaN or infinity"


def _violation(name: str, error: Tensor, tolerance: Tensor) -> str | None:
    worst = worst_of(error, tolerance)
    return f"{name}: violates the constraint by {worst[0]:.2g}, tolerance {worst[1]:.2g}" if worst else None
