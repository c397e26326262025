import warnings

import pytest
import torch

from jpmhc import manifolds
from jpmhc.manifolds.peer import geoopt
from jpmhc.manifolds.slopes import slope
from tests.manifolds.cases import CASES, Scaled, material, name


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("case", CASES, ids=name)
def test_every_manifold_keeps_the_contract(case, dtype):
    report = manifolds.check_manifold(*case, dtype, drift_steps=100)
    assert report.ok, str(report)


@pytest.mark.parametrize("case", CASES, ids=name)
def test_steps_that_are_said_to_be_reversible_can_be_taken_back(case):
    manifold, shape = case
    x, u, _, _ = material(manifold, shape, length=2.0)
    bounces = (manifolds.Birkhoff, manifolds.Simplex)  # off the boundary, and the way back does not
    kinds = {type(part) for part, _ in getattr(manifold, "parts", [(manifold, shape)])}
    projects = isinstance(manifold, manifolds.Stiefel) and manifold.retraction in ("qr", "polar")
    assert manifold.reversible == (kinds.isdisjoint(bounces) and not projects)
    if manifold.reversible:
        y, moved = manifold.retr_transp(x, u, u)
        back = manifold.embed(manifold.retr(y, -moved))
        torch.testing.assert_close(back, manifold.embed(x), rtol=0, atol=1e-12)


def test_samplers_of_geoopt_take_what_is_reversible():
    for manifold in (manifolds.Stiefel(), manifolds.Sphere(), manifolds.SpecialOrthogonal()):
        shape = (3,) * manifold.ndim
        x = manifolds.Parameter(manifold.random(*shape, generator=torch.Generator().manual_seed(0)), manifold)
        sampler = geoopt.samplers.RSGLD([x], epsilon=1e-2)
        for _ in range(5):
            sampler.step(lambda x=x: x.sum())
        assert manifold.point_error(x.detach()) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("case", CASES, ids=name)
def test_nothing_drifts_in_ten_thousand_steps(case, dtype):
    report = manifolds.check_manifold(*case, dtype, drift_steps=10_000)
    assert report.ok, str(report)


def test_contract_finds_the_wrong_geometry_of_geoopt():
    stiefel = manifolds.check_manifold(geoopt.CanonicalStiefel(), (5, 2), drift_steps=10)
    assert {"proju is idempotent", "retraction, first order (slope)"} <= set(stiefel.failed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        birkhoff = manifolds.check_manifold(geoopt.BirkhoffPolytope(), (4, 4), drift_steps=0)
    assert {"inner(gradient, v) is the derivative along v", "proju is idempotent"} <= set(birkhoff.failed)
    assert abs(birkhoff["inner(gradient, v) is the derivative along v"].value) > 0.1


class HalfStep(manifolds.Sphere):
    def retr(self, x, u):
        return self.projx(x + u / 2)


class FirstOrder(manifolds.Sphere):
    def retr(self, x, u):
        return self.projx(x + u + (u * u).sum(-1, keepdim=True) * torch.roll(x, 1, -1))


class Shrinking(manifolds.Sphere):
    def transp(self, x, y, v):
        return self.proju(y, v)


class Leaving(manifolds.Sphere):
    def retr(self, x, u):
        return (x + u) / (1 + (u * u).sum(-1, keepdim=True) / 2)


class Torn(manifolds.Sphere):
    """Right values, and no derivative where the step is zero."""

    def retr(self, x, u):
        still = (u == 0).all(-1, keepdim=True)
        return torch.where(still, x.detach(), super().retr(x, torch.where(still, 1.0, u)))


class Bent(manifolds.Sphere):
    """Right values and first derivatives, and another second one where the step is zero."""

    def expmap(self, x, u):
        still = (u == 0).all(-1, keepdim=True)
        return torch.where(still, x + u, super().expmap(x, torch.where(still, 1.0, u)))


class Stuck(manifolds.Sphere):
    def logmap(self, x, y):
        return torch.where((x == y).all(-1, keepdim=True), 0.0, super().logmap(x, y))


class Rooted(manifolds.Sphere):
    def dist2(self, x, y, *, keepdim=False):
        return self.dist(x, y, keepdim=keepdim) ** 2 + 0.0 * (x - y).abs().sum(-1, keepdim=keepdim)


class Forgetful(Scaled):
    """A copy of it has another option."""

    def __init__(self, c=2.0):
        super().__init__(c)

    def __deepcopy__(self, memo):
        return type(self)()


@pytest.mark.parametrize(
    ("manifold", "law"),
    [
        (Torn(), "retr is twice differentiable at zero"),
        (Bent(), "expmap is twice differentiable at zero"),
        (Stuck(), "logmap is twice differentiable at equal points"),
        (Rooted(), "dist2 is twice differentiable at equal points"),
        (Forgetful(3.0), "a copy computes the same"),
        (Forgetful(3.0), "a copy is equal (difference)"),
        (HalfStep(), "retraction, first order (slope)"),
        (FirstOrder(), "retraction against expmap, second order (slope)"),
        (Shrinking(), "retr_transp is isometric"),
        (Leaving(), "points are feasible after 50 steps"),
    ],
)
def test_contract_finds_a_planted_fault(manifold, law):
    report = manifolds.check_manifold(manifold, (4,), drift_steps=50)
    assert law in report.failed, str(report)


def test_report_reads_as_a_table_with_a_number_for_every_law():
    report = manifolds.check_manifold(manifolds.Birkhoff(), (3, 3), drift_steps=1)
    lines = str(report).splitlines()
    assert lines[0].startswith("Birkhoff")
    assert lines[-1] == "not offered: expmap, logmap, dist"
    assert all(line.startswith("ok ") for line in lines[1:-1])
    with pytest.raises(KeyError, match="none of the laws"):
        report["nonsense"]


@pytest.mark.parametrize("power", [1, 2, 3])
def test_slope_is_the_power_of_the_remainder(power):
    assert slope(lambda t: 3 * t**power + t ** (power + 1)) == pytest.approx(power, abs=1e-2)


def test_slope_of_round_off_is_infinite_and_of_nan_is_nan():
    assert slope(lambda t: 1e-16) == float("inf")
    assert slope(lambda t: float("nan")) != slope(lambda t: float("nan"))


def test_a_right_manifold_with_an_option_keeps_the_contract():
    report = manifolds.check_manifold(Forgetful(), (4,), drift_steps=50)
    assert report.ok, str(report)
