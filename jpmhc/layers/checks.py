"""The contract of a mixer: every law that layers rely on, measured, with the number each one reached."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from jpmhc.layers.hyper_connection import HyperConnection
from jpmhc.layers.mixer import Mixer, check_matrix, is_exact, make_mixer
from jpmhc.layers.residual import Residual
from jpmhc.layers.streams import expand_streams, reduce_streams

if TYPE_CHECKING:
    from jpmhc.manifolds.report import Law, Report

_WIDTH, _DEPTH = 6, 3


def check_mixer(
    mixer: str | Mixer, streams: int | None = None, *, exact: bool | None = None, compile: bool = True, seed: int = 0
) -> Report:
    """Measure every law that a mixer must satisfy, one of ours or one that you registered.

    Parameters
    ----------
    mixer : str or Mixer
        A registered name or an instance.
    streams : int, optional
        Number of streams n; an instance's own, 4 for a name.
    exact : bool, optional
        Whether it claims its constraint to round-off for raw numbers up to 100; what the registration says by default.
        A mixer that does not is held to its ``promise`` near its start only.
    compile : bool
        Whether to compile a layer with it too, which takes most of the time.
    seed : int
        Seed of all random choices.

    Returns
    -------
    manifolds.report.Report
        ``report.ok``, ``report.failed``, ``str(report)``.

    Notes
    -----
    The laws: shape and dtype of the result, the constraint, one residual a matrix that notices a violation, both laws
    of the start (a network of three layers computes what the plain residual one does, and its streams part within 40
    steps of Adam), derivatives against central differences, finite results for any raw numbers up to 1e4, independence
    of the batch, ``vmap``, forward mode, bfloat16 streams with float32 coefficients, a state dict's round trip and
    ``torch.compile(fullgraph=True)``. A mixer that raises breaks the law that was being measured, and the report says
    with what; after a result of a wrong shape nothing else has a meaning.

    Examples
    --------
    >>> from jpmhc import layers
    >>> report = layers.check_mixer("cayley", compile=False)
    >>> report.ok
    True
    """
    from jpmhc.manifolds.report import Report

    if isinstance(mixer, Mixer):
        chart = make_mixer(mixer, mixer.streams if streams is None else streams)
    else:
        chart = make_mixer(mixer, 4 if streams is None else streams)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        claim = is_exact(type(chart)) if exact is None else exact
        laws = _Laws(chart, claim)
        found = list(laws.run(compile))
    return Report(f"{chart.describe()}, exact={claim}", found, laws.absent)


class _Laws:
    """The measurements of one `check_mixer`."""

    def __init__(self, chart: Mixer, exact: bool) -> None:
        self.chart, self.exact = chart, exact
        self.n, self.count = chart.streams, chart.n_coefficients
        self.absent: list[str] = []
        # A chart of float32 parameters (base points) is no better in float64.
        self.round_off = 1e-6 if list(chart.parameters()) else 1e-12

    def raw(self, scale: float, batch: int = 16, dtype: torch.dtype = torch.float64) -> Tensor:
        return scale * torch.randn(batch, self.count, dtype=dtype)

    def extremes(self, scale: float) -> Tensor:
        """Return raw numbers in float32 where a chart is likeliest to break: ties, lone large ones, all at the rim."""
        signs = torch.randint(0, 2, (32, self.count)).mul(2).sub(1)
        lone = torch.eye(self.count)
        few = signs * (torch.rand(32, self.count) < 0.2)
        even = torch.ones(1, self.count)
        return scale * torch.cat([signs, lone, -lone, few, even, -even])

    def by_parts(self, raw: Tensor) -> Tensor:
        """Map so few at a time that no kernel is compiled for their size."""
        return torch.cat([self.chart(part) for part in raw.split(64)])

    def run(self, compile: bool) -> Iterator[Law]:
        groups = [self.counts, self.constraint, self.residuals, self.start, self.derivatives, self.extremity]
        groups += [self.batch, self.vmap, self.forward_mode, self.precision, self.state]
        if compile:
            groups.append(self.compilation)
        else:
            self.absent.append("compilation (not asked for)")
        fault = self.shape_fault()
        dtype = None if fault else self.chart(self.raw(1.0, dtype=torch.bfloat16)).dtype
        good = dtype == torch.float32
        yield self.law("float32 matrices (..., n, n) of raw numbers (...)", 1.0 - good, 0.0, fault=fault)
        if fault:
            self.absent.append("laws of matrices (..., n, n)")
            return
        for group in groups:
            try:
                yield from group()
            except Exception as error:  # a mixer that raises breaks the contract: say where and go on
                yield self.law(f"{group.__name__} can be measured", math.nan, 0.0, fault=_told(error))

    def law(self, name: str, value: float | Tensor, bound: float, at_least: bool = False, fault: str = "") -> Law:
        from jpmhc.manifolds.report import Law

        return Law(name, float(torch.as_tensor(value).detach()), bound, at_least, fault)

    def shape_fault(self) -> str:
        """Return what is wrong with the shape of the result, or nothing; a mixer that raises has none."""
        raw = self.raw(1.0, dtype=torch.bfloat16)
        try:
            check_matrix(self.chart(raw), raw, self.chart)
        except Exception as error:
            return _told(error)
        return ""

    def counts(self) -> Iterator[Law]:
        yield self.law("raw numbers of a wrong count are refused", self.accepts_wrong_count(), 0.0)

    def accepts_wrong_count(self) -> float:
        try:
            self.chart(torch.zeros(2, self.count + 1))
        except (ValueError, RuntimeError):
            return 0.0
        return 1.0

    def constraint(self) -> Iterator[Law]:
        residual = self.chart.residual(self.chart(self.raw(1.0, dtype=torch.float32)))
        yield self.law("one residual a matrix", float(residual.shape != (16,)), 0.0)
        for scale in (1.0, 10.0, 100.0) if self.exact else ():
            raw = torch.cat([self.raw(scale, 64, torch.float32), self.extremes(scale)])
            residual = self.chart.residual(self.by_parts(raw)).amax()
            yield self.law(f"constraint, raw numbers of size {scale:g}", residual, max(self.chart.promise, 1e-5))

    def residuals(self) -> Iterator[Law]:
        start = self.chart(self.chart.start())
        if math.isfinite(self.chart.promise):
            yield self.law("constraint at the start", self.chart.residual(start), max(self.chart.promise, 1e-5))
        if self.chart.residual(torch.randn(8, self.n, self.n)).amax() == 0:
            self.absent.append("a residual (every matrix is in the set)")
        else:
            yield self.law("residual of a matrix that is 0.25 off", self.chart.residual(start + 0.25).amin(), 0.1, True)

    def derivatives(self) -> Iterator[Law]:
        yield self.law("derivative against differences (relative)", self.derivative(), self.slack())

    def extremity(self) -> Iterator[Law]:
        yield self.law("values not finite, raw numbers to 1e4", self.not_finite(), 0.0)

    def batch(self) -> Iterator[Law]:
        raw = self.raw(1.0, 6)
        together = self.chart(raw.view(2, 3, -1)).flatten(0, 1)
        yield self.law("batch against one by one", _gap(together, torch.stack([self.chart(r) for r in raw])), 1e-12)

    def vmap(self) -> Iterator[Law]:
        raw = self.raw(1.0, 6)
        yield self.law("vmap against batch", _gap(torch.func.vmap(self.chart)(raw), self.chart(raw)), 1e-12)

    def slack(self) -> float:
        """Return the bound of the derivative: an approximate chart may miss as much as it promises of its set."""
        return self.chart.promise if 1e-5 < self.chart.promise < math.inf else 1e-6

    def derivative(self) -> float:
        if not self.count:
            return 0.0
        # An approximate chart is held to its promise near its start.
        raw, direction, h = self.raw(1.0 if self.exact else 0.3), self.raw(1.0), 1e-5
        cotangent = torch.randn(16, self.n, self.n, dtype=torch.float64)
        raw.requires_grad_()
        (gradient,) = torch.autograd.grad((self.chart(raw) * cotangent).sum(), raw)
        with torch.no_grad():
            slope = (self.chart(raw + h * direction) - self.chart(raw - h * direction)) / (2 * h)
        expected = (slope * cotangent).sum((-2, -1))
        size = (slope.abs() * cotangent.abs()).sum((-2, -1)).clamp_min(1e-3)
        return float((((gradient * direction).sum(-1) - expected).abs() / size).amax())

    def not_finite(self) -> float:
        count = 0
        for scale in (0.0, 1.0, 1e2, 1e4):
            for raw in (self.raw(scale, 32, torch.float32), self.extremes(scale)):
                raw = raw.requires_grad_()
                matrix = self.by_parts(raw)
                count += int((~matrix.isfinite()).sum())
                if self.count:
                    (gradient,) = torch.autograd.grad(matrix.sin().sum(), raw)
                    count += int((~gradient.isfinite()).sum())
        return float(count)

    def forward_mode(self) -> Iterator[Law]:
        raw, tangent = self.raw(1.0), self.raw(1.0)
        pushed = torch.func.jvp(self.chart, (raw,), (tangent,))[1]
        cotangent = torch.randn_like(pushed)
        pull: Any = torch.func.vjp(self.chart, raw)[1]
        (pulled,) = pull(cotangent)
        gap = _gap((pushed * cotangent).sum(), (pulled * tangent).sum())
        yield self.law("forward against reverse mode", gap, 1e-9)

    def network(self, dtype: torch.dtype = torch.float64, **options: Any) -> list[HyperConnection]:
        return [
            HyperConnection(
                _WIDTH,
                nn.Sequential(nn.Linear(_WIDTH, 12), nn.Tanh(), nn.Linear(12, _WIDTH)).to(dtype),
                streams=self.n,
                mixer=copy.deepcopy(self.chart),
                layer_index=index,
                dtype=dtype,
                **options,
            )
            for index in range(_DEPTH)
        ]

    def start(self) -> Iterator[Law]:
        matrix = self.chart(self.chart.start())
        yield self.law("rows of the start off a sum of one", (matrix.sum(-1) - 1).abs().amax(), self.round_off)
        x, target = torch.randn(2, 16, _WIDTH, dtype=torch.float64)
        gap = 0.0
        for gate in ("softmax", "sigmoid", "tanh"):
            for dynamic, static in ((True, True), (True, False), (False, True)):
                plain, wrapped = x, expand_streams(x, self.n)
                for layer in self.network(gate=gate, dynamic=dynamic, static=static):
                    plain, wrapped = Residual(layer.branch)(plain), layer(wrapped)
                gap = max(gap, _gap(reduce_streams(wrapped), plain))
        yield self.law("start of a network against the plain one", gap, 1e-6)
        layers = self.network()
        if self.n == 1:
            self.absent.append("streams that part (there is one)")
            return
        model = nn.Sequential(*layers)
        optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
        largest = 0.0
        for _ in range(40):
            optimiser.zero_grad()
            (reduce_streams(model(expand_streams(x, self.n))) - target).square().mean().backward()
            middle = layers[1].projection.grad
            if self.count and middle is not None:
                largest = max(largest, float(middle[-self.count :].abs().amax()))
            optimiser.step()
        streams = model(expand_streams(x, self.n))
        spread = (streams - streams.mean(-2, keepdim=True)).norm() / streams.norm()
        yield self.law("spread of the streams after 40 steps", spread, 1e-3, True)
        if self.count:
            yield self.law("largest gradient of the mixer in 40 steps", largest, 1e-8, True)

    def dynamic_layer(self) -> HyperConnection:
        hc = self.network(torch.float32)[1]
        with torch.no_grad():
            hc.projection.normal_(std=0.1)
            hc.scale.fill_(1.0)
        return hc

    def precision(self) -> Iterator[Law]:
        hc, x = self.dynamic_layer(), torch.randn(5, self.n, _WIDTH).bfloat16()
        hc.branch = hc.branch.bfloat16()  # type: ignore[union-attr]
        good = all(c.dtype == torch.float32 for c in hc.coefficients(x)) and hc(x).dtype == torch.bfloat16
        yield self.law("bfloat16 streams, float32 coefficients", 1.0 - good, 0.0)

    def state(self) -> Iterator[Law]:
        hc, x = self.dynamic_layer(), torch.randn(5, self.n, _WIDTH)
        twin = self.network(torch.float32)[1]
        twin.load_state_dict(hc.state_dict())
        yield self.law("state dict, round trip", _gap(twin(x), hc(x)), 0.0)

    def compilation(self) -> Iterator[Law]:
        hc, x = self.dynamic_layer(), torch.randn(5, self.n, _WIDTH)
        torch._dynamo.reset()
        compiled = torch.compile(hc, fullgraph=True, backend="aot_eager")
        yield self.law("compiled whole", _gap(compiled(x), hc(x)), 1e-5)


def _gap(actual: Tensor, expected: Tensor) -> float:
    """Largest difference relative to the largest entry, at least one."""
    actual, expected = actual.detach(), expected.detach()
    size = max(1.0, float(expected.abs().amax()))
    return float((actual - expected).abs().amax()) / size


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
