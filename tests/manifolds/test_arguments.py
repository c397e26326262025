import math

import pytest
import torch

from jpmhc import manifolds as m
from jpmhc.manifolds.peer import geoopt
from tests.manifolds.cases import CASES, material, name

EYE = torch.eye(4, 2)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: m.Stiefel().projx(torch.ones(2, 4)), ValueError, r"x: expected shape \(..., n, p\) with n >= p"),
        (lambda: m.Birkhoff().projx(torch.ones(2, 3)), ValueError, r"x: expected shape \(..., n, n\)"),
        (lambda: m.SpecialOrthogonal().random(3, 2), ValueError, "size: expected shape"),
        (lambda: m.Sphere().projx(torch.ones(3).long()), TypeError, "x: expected float32 or float64, got torch.int64"),
        (lambda: m.Sphere().projx(torch.ones(3).half()), TypeError, "x: expected float32 or float64"),
        (lambda: m.Sphere().random(3, dtype=torch.bfloat16), TypeError, "dtype: expected float32 or float64"),
        (lambda: m.Sphere().projx([1.0, 0.0]), TypeError, "x: expected a tensor, got list"),
        (lambda: m.Stiefel().retr(EYE, EYE.double()), TypeError, "u: expected the dtype of the point"),
        (lambda: m.Stiefel().retr(EYE, torch.ones(4, 1)), ValueError, r"u: expected shape \(..., 4, 2\)"),
        (
            lambda: m.Stiefel().retr(EYE.expand(2, 4, 2), EYE.expand(3, 4, 2)),
            ValueError,
            "u: expected batch dimensions",
        ),
        (lambda: m.Stiefel().retr(EYE, None), TypeError, "u: expected a tensor, got NoneType"),
        (lambda: m.Sphere().projx(), TypeError, "missing 1 required positional argument: 'x'"),
        (lambda: m.Sphere().random(3, seed=1), TypeError, "seed: no argument of Sphere.random"),
        (lambda: m.Stiefel().dim((2, 5)), ValueError, r"shape: expected shape \(..., n, p\) with n >= p"),
        (lambda: m.Stiefel("flat"), ValueError, "metric: expected one of canonical, euclidean, got 'flat'"),
        (lambda: m.Birkhoff().expmap(*2 * [torch.ones(2, 2)]), NotImplementedError, "Birkhoff: no formula"),
        (lambda: m.Product((m.Sphere(), (2, 3))), ValueError, "parts: expected shape"),
        (lambda: m.Product(m.Sphere()), TypeError, r"parts: expected pairs \(manifold, shape\), got Sphere"),
        (lambda: m.Product((m.Sphere(), 3.0)), TypeError, "parts: expected a shape, an integer .* got 3.0"),
        (
            lambda: m.Product((geoopt.Sphere(), 3)),
            TypeError,
            "parts: expected a jpmhc manifold, or Euclidean of .* got Sphere",
        ),
        (
            lambda: m.Product((m.Euclidean(1), (2, 3))),
            TypeError,
            "parts: expected a jpmhc manifold, or Euclidean of .* got Eucl",
        ),
    ],
)
def test_what_does_not_fit_is_refused_by_name(call, error, words):
    with pytest.raises(error, match=words):
        call()


@pytest.mark.parametrize(
    ("point", "words"),
    [
        (torch.tensor([float("nan"), 1.0]), "x: holds NaN"),
        (torch.tensor([1.0, 1.0]), "x: off the Sphere manifold by 1"),
    ],
)
def test_checked_refuses_bad_values_and_nothing_else_does(point, words):
    sphere = m.Sphere()
    sphere.proju(point, point)
    with m.checked(), pytest.raises(ValueError, match=words):
        sphere.proju(point, point)
    sphere.proju(point, point)


def test_checked_refuses_a_vector_off_the_tangent_space():
    sphere = m.Sphere()
    x = torch.tensor([1.0, 0.0])
    with m.checked(), pytest.raises(ValueError, match="u: off the tangent space by 1"):
        sphere.retr(x, x)


def test_checked_refuses_a_result_that_has_no_value():
    so = m.SpecialOrthogonal()
    x = torch.eye(2)
    with m.checked(), pytest.raises(ValueError, match="result of logmap: holds NaN"):
        so.logmap(x, -x)


@pytest.mark.parametrize("manifold", [m.Stiefel(), m.Grassmann(), m.SpecialOrthogonal()], ids=str)
def test_products_stay_in_full_precision_under_autocast(manifold):
    x = manifold.random(3, 3, generator=torch.Generator().manual_seed(0))
    u = manifold.proju(x, torch.ones(3, 3))
    with torch.autocast("cpu", torch.bfloat16):
        y = manifold.retr(x, u)
    assert y.dtype == torch.float32
    assert manifold.point_error(y) < 1e-6


@pytest.mark.parametrize("case", CASES, ids=name)
def test_checks_are_made_in_full_precision_under_autocast(case):
    manifold, shape = case
    with torch.autocast("cpu", torch.bfloat16):
        x = manifold.random(3, *shape, generator=torch.Generator().manual_seed(0))
        assert isinstance(m.Parameter(x, manifold), m.Parameter)
        assert manifold.check_point_on_manifold(x)
        with m.checked():
            u = manifold.proju(x, torch.zeros_like(x))
            assert manifold.retr(x, u).dtype == torch.float32
        assert manifold.check_vector_on_tangent(x, u)
        assert manifold.point_error(x).dtype == torch.float32
        embedded = manifold.embed(x)
    assert torch.equal(embedded, manifold.embed(x))


def test_a_check_of_geoopts_and_a_projector_are_made_in_full_precision_under_autocast():
    grassmann = m.Grassmann()
    x = grassmann.random(8, 2, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        m.Parameter(x, geoopt.EuclideanStiefel())
        assert grassmann.projector(x).dtype == torch.float32
        assert grassmann.principal_angles(x, x).max() < 1e-3


def test_none_is_refused_where_it_stands_for_nothing():
    stiefel = m.Stiefel()
    x = stiefel.origin(4, 2)
    with pytest.raises(TypeError, match="u: expected a tensor, got NoneType"):
        stiefel.inner(x, None)
    assert torch.equal(stiefel.inner(x, x, None), stiefel.inner(x, x))


@pytest.mark.parametrize("case", CASES, ids=name)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_no_point_and_no_tangent_vector(case, bad):
    manifold, shape = case
    x, u, _, _ = material(manifold, shape)
    for place in range(math.prod(shape)):
        spoilt, vector = x.clone(), u.clone()
        spoilt[1].view(-1)[place] = vector[1].view(-1)[place] = bad
        assert manifold.check_point_on_manifold(spoilt, explain=True) == (False, "x: holds NaN or infinity")
        assert manifold.check_vector_on_tangent(x, vector, explain=True) == (False, "u: holds NaN or infinity")
        assert not manifold.check_vector_on_tangent(spoilt, u, ok_point=True)
    assert not manifold.check_vector_on_tangent(x, torch.full_like(u, bad))


@pytest.mark.parametrize("case", CASES, ids=name)
@pytest.mark.parametrize("dtype", [torch.int64, torch.float16, torch.bfloat16, torch.complex64, torch.bool], ids=str)
def test_a_check_tells_a_dtype_that_no_point_has(case, dtype):
    manifold, shape = case
    x, still = manifold.origin(*shape), torch.zeros(shape)
    fault = f"expected float32 or float64, got {dtype}"
    assert manifold.check_point_on_manifold(x.to(dtype), explain=True) == (False, f"x: {fault}")
    assert manifold.check_vector_on_tangent(x, still.to(dtype), explain=True) == (False, f"u: {fault}")
    with pytest.raises(ValueError, match="expected float32 or float64"):
        manifold.assert_check_point_on_manifold(x.to(dtype))


def test_a_long_vector_does_not_excuse_its_neighbour():
    sphere = m.Sphere()
    x = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    u = torch.tensor([[0.0, 1e5, 0.0], [0.5, 0.0, 0.0]])
    right, fault = sphere.check_vector_on_tangent(x, u, explain=True)
    assert not right
    assert fault == "u: violates the constraint by 0.5, tolerance 1.5e-05"
    with m.checked(), pytest.raises(ValueError, match=r"u: off the tangent space by 0.5 \(tolerance 1e-05\)"):
        sphere.retr(x, u)
    u[1] = torch.tensor([0.5, 1e5, 0.0])  # 5e-6 of its size
    assert sphere.check_vector_on_tangent(x, u)
    assert sphere.check_vector_on_tangent(x[:0], u[:0])
