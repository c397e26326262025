"""Inputs that break other libraries: zero vectors, equal points, equal angles, vertices, boundaries, long steps."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jpmhc import manifolds as m
from jpmhc.manifolds.peer import geoopt
from tests.manifolds.cases import CASES, name

ORTHOGONAL = [
    m.Stiefel(), m.Stiefel("canonical", "qr"), m.Stiefel("euclidean"), m.Stiefel("euclidean", "exp"), m.Grassmann(),
    m.Grassmann("exp"), m.SpecialOrthogonal(), m.SpecialOrthogonal("exp"),
]  # fmt: skip
few = settings(max_examples=25, deadline=None)
lengths = st.one_of(st.just(0.0), st.floats(1e-30, 30.0))
entries = st.sampled_from([0.0, 1.0, -1.0, 1e-20, 1e-8, 0.5])


def matrix(data, n, p):
    return torch.tensor(data.draw(st.lists(entries, min_size=n * p, max_size=n * p)), dtype=torch.float64).view(n, p)


@few
@given(
    st.data(), st.sampled_from(ORTHOGONAL), st.integers(1, 4), lengths, st.sampled_from([torch.float64, torch.float32])
)
def test_orthogonal_steps_stay_on_the_manifold(data, manifold, n, length, dtype):
    p = n if isinstance(manifold, m.SpecialOrthogonal) else data.draw(st.integers(1, n))
    x = manifold.origin(n, p, dtype=dtype)
    u = manifold.proju(x, matrix(data, n, p).to(dtype))
    u = length * u / manifold.norm(x, u, keepdim=True).clamp_min(1e-3)
    y, moved = manifold.retr_transp(x, u, u)
    eps = torch.finfo(dtype).eps
    assert manifold.point_error(y) <= 20 * eps
    assert manifold.tangent_error(y, moved) <= 200 * eps * max(1.0, length)
    if length == 0.0:
        torch.testing.assert_close(manifold.embed(y), manifold.embed(x), rtol=0, atol=8 * eps)


@few
@given(st.data(), st.integers(2, 4), st.floats(0.0, 1.0), st.sampled_from([torch.float64, torch.float32]))
def test_steps_of_unit_length_from_next_to_a_vertex_stay_doubly_stochastic(data, n, length, dtype):
    birkhoff = m.Birkhoff()
    gap = data.draw(st.floats(1e-6, 1.0))
    x = ((1 - gap) * torch.eye(n, dtype=torch.float64) + gap / n).to(dtype)
    u = birkhoff.egrad2rgrad(x, matrix(data, n, n).to(dtype) / x.sqrt())
    u = length * u / birkhoff.norm(x, u, keepdim=True).clamp_min(1e-3)
    y = birkhoff.retr(x, u)
    assert birkhoff.point_error(y) <= (1e-6 if dtype == torch.float32 else 1e-13)


@few
@given(st.data(), st.integers(2, 5))
def test_the_simplex_keeps_its_sum_from_its_boundary(data, n):
    simplex = m.Simplex()
    weights = data.draw(st.lists(st.sampled_from([0.0, 1e-30, 1e-9, 1.0]), min_size=n, max_size=n))
    x = simplex.projx(torch.tensor(weights, dtype=torch.float64))
    u = simplex.proju(x, matrix(data, 1, n)[0] * x.sqrt())
    assert simplex.point_error(simplex.retr(x, u)) <= 1e-14
    assert simplex.dist(x, x) == 0


@few
@given(st.data(), st.integers(2, 4))
def test_spheres_have_finite_gradients_everywhere_but_at_antipodes(data, n):
    sphere = m.Sphere()
    x, y = (sphere.projx(matrix(data, 1, n)[0] + torch.eye(n, dtype=torch.float64)[k]) for k in (0, 1))
    if not (x.isfinite().all() and y.isfinite().all()) or (x + y).norm() < 1e-6:
        return
    for function in (sphere.dist, sphere.dist2):
        assert torch.func.grad(function, argnums=1)(x, y).isfinite().all()
    assert sphere.dist(x, x) == 0


@pytest.mark.parametrize("case", CASES, ids=name)
def test_what_is_not_known_has_no_length(case):
    manifold, shape = case
    x = manifold.random(2, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    unknown = torch.full_like(x, math.nan)
    assert manifold.norm(x, unknown).isnan().all()
    if not isinstance(manifold, m.Birkhoff):
        assert manifold.dist(x, unknown).isnan().all()
        assert manifold.dist2(x, unknown).isnan().all()


def test_a_distance_without_a_logarithm_is_nan_and_not_zero():
    x = m.Stiefel().origin(4, 4, dtype=torch.float64)
    flipped = x.clone()
    flipped[0, 0] = -1  # another component of the orthogonal group
    assert m.Stiefel().dist(x, flipped).isnan()


def test_euclidean_space_of_geoopt_keeps_the_contract():
    assert m.Euclidean is geoopt.Euclidean
    report = m.check_manifold(m.Euclidean(ndim=1), (4,), drift_steps=50)
    assert report.ok, str(report)


@pytest.mark.parametrize("manifold", [geoopt.PoincareBall(), geoopt.SphereProjection()], ids=lambda v: type(v).__name__)
def test_why_hyperbolic_classes_of_geoopt_are_not_here(manifold):
    # Three points of two numbers have three inner products; geoopt broadcasts a row of them against a column.
    report = m.check_manifold(manifold.double(), (2,), drift_steps=0)
    assert not report.ok
    x = 0.1 * torch.ones(3, 2, dtype=torch.float64)
    assert manifold.inner(x, x, x).shape == (3, 3)
