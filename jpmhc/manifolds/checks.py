"""The contract of a manifold: every law of its maps, measured, with the number each one reached."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from jpmhc.manifolds.base import Manifold
from jpmhc.manifolds.peer import geoopt
from jpmhc.manifolds.report import Law, Report
from jpmhc.manifolds.sameness import alike, held
from jpmhc.manifolds.slopes import slope
from jpmhc.manifolds.smoothness import smoothness

_STEP = 0.05  # length of tangent vectors: short enough to stay inside a simplex


def check_manifold(
    manifold: geoopt.Manifold,
    shape: tuple[int, ...],
    dtype: torch.dtype = torch.float64,
    *,
    batch: int = 3,
    drift_steps: int = 10_000,
    seed: int = 0,
) -> Report:
    """Measure every law that the maps of a manifold must satisfy, on random points and vectors.

    Parameters
    ----------
    manifold : geoopt.Manifold
        Ours or anyone's. Maps it lacks (a missing method, or ``NotImplementedError``) are listed and not judged.
        The attributes ``retraction_order`` (1 if absent), ``isometric_transport`` and ``reversible`` (False if absent)
        are claims that are tested; ``point_error``, ``tangent_error`` and ``embed`` of `Manifold` are used where they
        exist, otherwise the projections and the point itself.
    shape : tuple of int
        Shape of one point, without batch dimensions.
    dtype : torch.dtype
        float32 or float64. Laws of order are measured in float64 always.
    batch : int
        Number of points.
    drift_steps : int
        Number of retractions of length 0.1 after which the points must still be feasible; half of them along one
        constant ambient direction, half along random ones.
    seed : int
        Seed of all random choices.

    Returns
    -------
    Report
        ``report.ok``, ``report.failed``, ``str(report)``. Errors are relative to the size of what is compared.

    Notes
    -----
    The truth comes from definitions: derivatives of a random smooth function by automatic differentiation of the
    ambient space, and remainders that must vanish at a certain power of the step. A function ``f`` along a retraction
    ``r`` satisfies ``f(r(t)) = f + t <grad, v> + t^2 <Hess v, v> / 2`` with a remainder of order 2 after the gradient
    term, for every retraction, and of order 3 after the Hessian term, for one of second order. At zero vectors and
    equal points derivatives are compared with finite differences.

    Examples
    --------
    >>> from jpmhc import manifolds
    >>> report = manifolds.check_manifold(manifolds.Sphere(), shape=(3,), drift_steps=100)
    >>> report.ok
    True
    >>> report["retraction, first order (slope)"].value > 1.9
    True
    """
    if dtype not in (torch.float32, torch.float64):
        raise TypeError(f"dtype: expected torch.float32 or torch.float64, got {dtype}")
    if manifold.dtype is not None and not manifold.dtype == dtype == torch.float64:
        raise ValueError(
            "manifold: carries data of its own, so it can be checked in float64 only, as manifold.double()"
        )
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)  # geoopt's random takes no generator
    try:
        title = f"{manifold!r}, shape {tuple(shape)}, {dtype}"
        return _Contract(manifold, tuple(shape), dtype, batch, drift_steps).report(title)
    finally:
        torch.random.set_rng_state(state)


class _Contract:
    """The measurements of one `check_manifold`."""

    def __init__(
        self, manifold: geoopt.Manifold, shape: tuple[int, ...], dtype: torch.dtype, batch: int, drift_steps: int
    ) -> None:
        self.m = manifold
        self.shape = shape
        self.dtype = dtype
        self.drift_steps = drift_steps
        self.eps = torch.finfo(dtype).eps
        self.close = 400 * self.eps * max(1.0, math.prod(shape) ** 0.25)
        self.laws: list[Law] = []
        self.absent: list[str] = []
        self.embed: Callable[[Tensor], Tensor] = getattr(manifold, "embed", lambda x: x)
        self.x64 = self.fresh_point((batch, *shape), torch.float64)
        self.x = self.project(self.x64.to(dtype))
        self.u, self.v, self.w = (self.fresh_tangent(self.x) for _ in range(3))
        self.amplitude = torch.randn(self.embed(self.x64).shape, dtype=torch.float64)

    # --- material --------------------------------------------------------------------------------------------------

    def fresh_point(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return self.m.random(*shape, dtype=dtype).detach().clone()

    def project(self, x: Tensor) -> Tensor:
        return self.m.projx(x).detach().clone()

    def fresh_tangent(self, x: Tensor, length: float = 1.0) -> Tensor:
        """Tangent vector of given length: the gradient of a random linear function, of a size the metric likes."""
        u = self.m.egrad2rgrad(x, torch.randn_like(x))
        size = self.length(x, u)
        return length * u / size

    def length(self, x: Tensor, u: Tensor) -> Tensor:
        return self.m.inner(x, u, u, keepdim=True).sqrt()

    def point_error(self, x: Tensor) -> float:
        if hasattr(self.m, "point_error"):
            return _worst(self.m.point_error(x))
        return _worst(self.m.projx(x) - x)

    def tangent_error(self, x: Tensor, u: Tensor) -> float:
        size = max(1.0, _worst(u))
        if hasattr(self.m, "tangent_error"):
            return _worst(self.m.tangent_error(x, u)) / size
        return _worst(self.m.proju(x, u) - u) / size

    def function(self, x: Tensor) -> Tensor:
        """Random smooth function of the point, summed over the batch."""
        e = self.embed(x)
        return (self.amplitude.to(x.dtype) * (torch.sin(2 * e) + e * e)).sum()

    def values(self, x: Tensor) -> Tensor:
        e = self.embed(x)
        terms = self.amplitude.to(x.dtype) * (torch.sin(2 * e) + e * e)
        return terms.flatten(1).sum(1)

    # --- laws ------------------------------------------------------------------------------------------------------

    def report(self, title: str) -> Report:
        for group in (
            self.feasibility,
            self.projections,
            self.metric,
            self.gradient,
            self.retraction,
            self.hessian,
            self.transport,
            self.geodesics,
            self.batches,
            self.derivatives,
            self.copies,
            self.drift,
        ):
            try:
                for law in group():
                    self.laws.append(law)
            except Exception as error:  # a map that raises breaks the contract: say which and go on
                fault = f"{type(error).__name__}: {error}".splitlines()[0]
                self.laws.append(Law(f"{group.__name__} can be measured", math.nan, 0.0, fault=fault))
        return Report(title, self.laws, self.absent)

    def feasibility(self) -> Iterator[Law]:
        yield Law("random points are feasible", self.point_error(self.x), self.close)
        origin = self.offered("origin", *self.shape, dtype=self.dtype)
        if origin is not None:
            yield Law("the origin is feasible", self.point_error(origin), self.close)
        if hasattr(self.m, "dim") and math.prod(self.shape) <= 256:
            yield Law("dim is the rank of proju (difference)", abs(self.rank() - self.m.dim(self.shape)), 0.0)

    def rank(self) -> int:
        size = math.prod(self.shape)
        basis = torch.eye(size, dtype=torch.float64).view(size, *self.shape)
        x = self.project(self.x64)[:1].expand(size, *self.shape)
        return int(torch.linalg.matrix_rank(self.m.proju(x, basis).reshape(size, size), rtol=1e-9))

    def projections(self) -> Iterator[Law]:
        near = self.m.projx(self.x * (1 + 0.05 * torch.randn_like(self.x)))
        yield Law("projx gives points", self.point_error(near), self.close)
        yield Law("projx is idempotent", _worst(self.m.projx(near) - near), self.close)
        vector, other = torch.randn_like(self.x), torch.randn_like(self.x)
        tangent = self.m.proju(self.x, vector)
        size = max(1.0, _worst(tangent))
        yield Law("proju gives tangent vectors", self.tangent_error(self.x, tangent), self.close)
        yield Law("proju is idempotent", _worst(self.m.proju(self.x, tangent) - tangent) / size, self.close)
        both = self.m.proju(self.x, vector + 2 * other) - 2 * self.m.proju(self.x, other)
        yield Law("proju is linear", _worst(both - tangent) / size, self.close)

    def metric(self) -> Iterator[Law]:
        inner, x, u, v, w = self.m.inner, self.x, self.u, self.v, self.w
        yield Law("inner is symmetric", _worst(inner(x, u, v) - inner(x, v, u)), self.close)
        yield Law("inner is linear", _worst(inner(x, u + 2 * v, w) - inner(x, u, w) - 2 * inner(x, v, w)), self.close)
        least = min(float(inner(x, t, t).min()) for t in (u, v, w))
        yield Law("inner is positive (least on unit vectors)", least, 1e-3, at_least=True)
        unit = (u * u).sum(tuple(range(1, u.ndim)), keepdim=True).sqrt()
        given = _worst(self.m.norm(x, u, keepdim=True) - self.length(x, u))
        yield Law("norm is the root of inner", given / max(1.0, _worst(unit)), self.close)

    def gradient(self) -> Iterator[Law]:
        egrad = torch.func.grad(self.function)(self.x)
        rgrad = self.m.egrad2rgrad(self.x, egrad)
        size = float(self.length(self.x, rgrad).max())
        yield Law("the gradient is tangent", self.tangent_error(self.x, rgrad), self.close)
        dims = tuple(range(1, self.x.ndim))
        difference = self.m.inner(self.x, rgrad, self.v).reshape(len(self.x), -1).sum(1) - (egrad * self.v).sum(dims)
        yield Law("inner(gradient, v) is the derivative along v", _worst(difference) / size, self.close)
        x, v = self.sample64()
        rgrad = self.m.egrad2rgrad(x, torch.func.grad(self.function)(x))
        rate = self.m.inner(x, rgrad, v).reshape(len(x), -1).sum(1)
        start = self.values(x)
        order = slope(lambda t: _worst(self.values(self.m.retr(x, t * v)) - start - t * rate))
        yield Law("gradient along the retraction (slope)", order, 1.9, at_least=True)

    def retraction(self) -> Iterator[Law]:
        x, v = self.sample64()
        yield Law("retr gives points", self.point_error(self.m.retr(self.x, self.u)), self.close)
        zero = self.m.retr(self.x, torch.zeros_like(self.x))
        yield Law("retr of a zero vector stays", _worst(zero - self.x), self.close)
        start, rate = _pushed(self.embed, (x,), (v,))
        order = slope(lambda t: _worst(self.embed(self.m.retr(x, t * v)) - start - t * rate))
        yield Law("retraction, first order (slope)", order, 1.9, at_least=True)
        if getattr(self.m, "retraction_order", 1) < 2 or self.offered("expmap", x, v) is None:
            return
        order = slope(lambda t: _worst(self.embed(self.m.retr(x, t * v)) - self.embed(self.m.expmap(x, t * v))))
        yield Law("retraction against expmap, second order (slope)", order, 2.8, at_least=True)

    def hessian(self) -> Iterator[Law]:
        if not hasattr(self.m, "ehess2rhess"):
            self.absent.append("ehess2rhess")
            return
        x, v = self.sample64()
        w = self.fresh_tangent(x)
        egrad, hv = _pushed(torch.func.grad(self.function), (x,), (v,))
        hw = _pushed(torch.func.grad(self.function), (x,), (w,))[1]
        hess_v, hess_w = self.m.ehess2rhess(x, egrad, hv, v), self.m.ehess2rhess(x, egrad, hw, w)
        size = float(self.length(x, hess_v).max())
        yield Law("the Hessian is tangent", self.tangent_error(x, hess_v), 1e-11)
        difference = self.m.inner(x, hess_v, w) - self.m.inner(x, hess_w, v)
        yield Law("the Hessian is symmetric", _worst(difference) / size, 1e-10)
        start = self.values(x)
        rate = self.m.inner(x, self.m.egrad2rgrad(x, egrad), v).reshape(len(x), -1).sum(1)
        bend = self.m.inner(x, hess_v, v).reshape(len(x), -1).sum(1)
        second = getattr(self.m, "retraction_order", 1) >= 2
        for name in ("retr", "expmap"):
            if (name == "retr" and not second) or self.offered(name, x, v) is None:
                continue
            order = slope(self.remainder(getattr(self.m, name), x, v, start, rate, bend))
            yield Law(f"Hessian along {name} (slope)", order, 2.8, at_least=True)

    def remainder(self, move: Callable[..., Tensor], x: Tensor, v: Tensor, *taylor: Tensor) -> Callable[[float], float]:
        """Size of what is left of the function along a curve after three Taylor terms."""
        start, rate, bend = taylor
        return lambda t: _worst(self.values(move(x, t * v)) - start - t * rate - t * t * bend / 2)

    def transport(self) -> Iterator[Law]:
        step = self.u / 2
        y, moved = self.m.retr_transp(self.x, step, self.v)
        yield Law("retr_transp goes where retr goes", _worst(y - self.m.retr(self.x, step)), self.close)
        yield from self.carries("retr_transp", lambda v: self.m.retr_transp(self.x, step, v)[1], y, moved)
        if getattr(self.m, "isometric_transport", False):
            length = self.m.inner(y, moved, self.m.retr_transp(self.x, step, self.w)[1])
            error = _worst(length - self.m.inner(self.x, self.v, self.w))
            yield Law("retr_transp is isometric", error, self.close)
        if getattr(self.m, "reversible", False):
            there, back = self.m.retr_transp(self.x, step, step)
            home = self.embed(self.m.retr(there, -back)) - self.embed(self.x)
            yield Law("the way back along the transported step leads back", _worst(home), self.close)
        plain = self.offered("transp", self.x, y, self.v)
        if plain is None:
            return
        yield from self.carries("transp", lambda v: self.m.transp(self.x, y, v), y, plain)
        same = _worst(self.m.transp(self.x, self.x, self.v) - self.v) / max(1.0, _worst(self.v))
        yield Law("transp to the same point keeps vectors", same, self.close)

    def carries(self, name: str, carry: Callable[[Tensor], Tensor], y: Tensor, moved: Tensor) -> Iterator[Law]:
        size = max(1.0, _worst(moved))
        yield Law(f"{name} gives tangent vectors", self.tangent_error(y, moved), self.close)
        yield Law(
            f"{name} is linear", _worst(carry(self.v + 2 * self.w) - 2 * carry(self.w) - moved) / size, self.close
        )

    def geodesics(self) -> Iterator[Law]:
        x, u = self.x, _STEP * self.u
        y = self.offered("expmap", x, u)
        if y is None:
            return
        yield Law("expmap gives points", self.point_error(y), self.close)
        speed = self.speed()
        yield Law("expmap has constant speed", speed, 1e-9)
        distance = self.offered("dist", x, y)
        if distance is not None:
            yield Law("dist is the length of the geodesic", _worst(distance - _STEP) / _STEP, 20 * self.close)
            yield Law("dist is symmetric", _worst(distance - self.m.dist(y, x)), self.close)
            yield Law("dist of equal points is zero", _worst(self.m.dist(x, x)), self.close)
        log = self.offered("logmap", x, y)
        if log is not None:
            yield Law("logmap inverts expmap", _worst(log - u) / max(1.0, _worst(self.u)), self.close)
            yield Law("expmap inverts logmap", _worst(self.embed(self.m.expmap(x, log)) - self.embed(y)), self.close)

    def speed(self) -> float:
        x, v = self.sample64()

        def walk(t: Tensor) -> Tensor:
            return self.m.expmap(x, t * v)

        one = torch.ones((), dtype=torch.float64)
        y, velocity = _pushed(walk, (_STEP * one,), (one,))
        return _worst(self.length(y, self.m.proju(y, velocity)) - 1)

    def batches(self) -> Iterator[Law]:
        vector = torch.randn_like(self.x)
        calls = {
            "projx": lambda i: self.m.projx(self.x[i]),
            "proju": lambda i: self.m.proju(self.x[i], vector[i]),
            "egrad2rgrad": lambda i: self.m.egrad2rgrad(self.x[i], vector[i]),
            "retr": lambda i: self.m.retr(self.x[i], self.u[i]),
            "retr_transp": lambda i: self.m.retr_transp(self.x[i], self.u[i], self.v[i])[1],
        }
        for name, call in calls.items():
            whole = call(slice(None))
            single = torch.stack([call(i) for i in range(len(self.x))])
            yield Law(f"{name} of a batch equals a loop", _worst(whole - single) / max(1.0, _worst(whole)), self.close)

    def derivatives(self) -> Iterator[Law]:
        x, v = self.sample64()
        for name in ("expmap", "logmap", "dist"):
            self.offered(name, x, x)  # lists those that are absent
        return smoothness(self.m, x, v, self.fresh_tangent(x))

    def copies(self) -> Iterator[Law]:
        twin, vector = copy.deepcopy(self.m), torch.randn_like(self.x)
        calls = {
            "projx": (self.x,), "proju": (self.x, vector), "egrad2rgrad": (self.x, vector), "retr": (self.x, self.u),
            "inner": (self.x, self.u, self.v),
        }  # fmt: skip
        differences = [getattr(twin, name)(*given) - getattr(self.m, name)(*given) for name, given in calls.items()]
        yield Law("a copy computes the same", max(map(_worst, differences)), 0.0)
        # What holds tensors, or other objects that may change, equals itself alone.
        if isinstance(self.m, Manifold) and alike(copy.deepcopy(held(self.m)), held(self.m)):
            yield Law("a copy is equal (difference)", float(twin != self.m), 0.0)

    def drift(self) -> Iterator[Law]:
        x = self.x
        constant = torch.randn_like(x)
        with torch.no_grad():
            for step in range(self.drift_steps):
                direction = constant if step < self.drift_steps // 2 else torch.randn_like(x)
                x = self.m.retr(x, self.bounded(x, self.m.egrad2rgrad(x, direction)))
        yield Law(f"points are feasible after {self.drift_steps} steps", self.point_error(x), 40 * self.eps)

    def bounded(self, x: Tensor, u: Tensor) -> Tensor:
        """Scale to length 0.1, vectors that are not round-off."""
        return 0.1 * u / self.length(x, u).clamp_min(1e-4)

    # --- helpers ---------------------------------------------------------------------------------------------------

    def sample64(self) -> tuple[Tensor, Tensor]:
        x = self.project(self.x64)
        return x, self.fresh_tangent(x)

    def offered(self, name: str, *args: Any, **options: Any) -> Tensor | None:
        """Call a map that a manifold need not have."""
        try:
            return getattr(self.m, name)(*args, **options)
        except NotImplementedError:
            if name not in self.absent:
                self.absent.append(name)
            return None


def _worst(value: Tensor) -> float:
    return float(value.detach().abs().max())


def _pushed(function: Callable[[Tensor], Tensor], at: tuple[Tensor], along: tuple[Tensor]) -> tuple[Tensor, Tensor]:
    """Value and directional derivative."""
    value, derivative, *_ = torch.func.jvp(function, at, along)
    return value, derivative
