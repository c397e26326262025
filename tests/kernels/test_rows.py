import numpy as np
import pytest

from jpmhc.kernels.cpu import rows, vectors
from jpmhc.kernels.cpu.compile import summing

TOLERANCE = {"float64": 1e-12, "float32": 1e-4}


@summing
def combined(out, given, factors):
    rows.combine(out, given, factors)


@summing
def mixed(out, given, factors, y, post):
    rows.mixed(out, given, factors, y, post, False)


@summing
def products(out, a, b):
    rows.gram(out, a, b)


@summing
def product(a, b):
    return rows.dot(a, b)


@summing
def three(out, a, b, c, factor, other):
    rows.weighted(out, (a, b, c), (None, factor, other))


@summing
def projected(out, given, weight, count):
    rows.project(out, given, weight, count)


@summing
def expanded(out, factors, stretches, count):
    rows.expand(out, factors, stretches, count)


@summing
def far(out, given, factors):
    rows.mixed(out, given, factors, None, None, True)
    rows.settle()


@summing
def away(out, given):
    rows.moved(out, given, True)
    rows.settle()


@pytest.fixture(params=[1, 7, 16, 31, 128, 301])
def width(request):
    """Shorter than a vector, whole vectors, and both with a rest."""
    return request.param


@pytest.fixture(params=["float64", "float32"])
def draw(request):
    """Random arrays of a dtype, one number further on than the processor would like them."""
    generator = np.random.default_rng(0)

    def one(*shape):
        size = int(np.prod(shape))
        return generator.standard_normal(size + 1).astype(request.param)[1:].reshape(shape)

    return one


def assert_near(found, wanted):
    assert np.shape(found) == np.shape(wanted)
    tolerance = TOLERANCE[np.asarray(found).dtype.name] * np.sqrt(1 + np.max(np.abs(wanted)))
    assert np.max(np.abs(found - wanted)) <= tolerance


@pytest.mark.parametrize("n", range(1, 10))
def test_sums_of_rows(n, width, draw):
    given, factors, y, post = draw(n, width), draw(n, n), draw(width), draw(n)
    wide = given.astype("float64")
    for weights in (factors, factors.T):
        out = np.full_like(given, np.nan)
        mixed(out, given, weights, y, post)
        assert_near(out, weights @ wide + np.outer(post, y))
        mixed(out, given, weights, None, None)
        assert_near(out, weights @ wide)
    combined(out[0], given, post)
    assert_near(out[0], post @ wide)


@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 6), (3, 2), (4, 4), (5, 9), (8, 7)])
def test_products_of_rows(n, m, width, draw):
    a, b, out = draw(n, width), draw(m, width), draw(n, m)
    products(out, a, b)
    assert_near(out, a.astype("float64") @ b.T)
    assert_near(a.dtype.type(product(a[0], b[0])), np.dot(a[0].astype("float64"), b[0]))


def test_a_row_may_be_missing_or_the_result(width, draw):
    a, b, c = draw(3, width)
    factor = a.dtype.type(0.75)
    out = np.full_like(a, np.nan)
    three(out, a, b, c, factor, None)
    assert_near(out, a + 0.75 * b.astype("float64") + c)
    three(out, None, b, None, factor, None)
    assert_near(out, 0.75 * b.astype("float64"))
    three(out, None, None, None, None, None)
    assert not out.any()
    kept = a.astype("float64")
    three(a, a, b, None, factor, None)
    assert_near(a, kept + 0.75 * b)


def test_what_is_not_finite_is_kept(width, draw):
    given = draw(4, width)
    given[2, -1] = np.nan
    given[1, 0] = np.inf
    out, factors = np.zeros_like(given), np.abs(draw(4, 4))
    mixed(out, given, factors, None, None)
    assert np.isnan(out[:, -1]).all()
    assert (out[:, 0] == np.inf).all() or width == 1
    assert np.isnan(product(given[2], given[3]))


@pytest.mark.parametrize("count", [1, 4, 6])
def test_sums_of_rows_in_stretches(count, draw):
    for length in (5, 64, 200):
        pieces = -(-length // rows.STRETCH)
        factors, stretches, out = draw(8, 7), draw(pieces, 7, rows.STRETCH), np.full_like(draw(8, length), np.nan)
        expanded(out, factors, stretches, count)
        whole = stretches.astype("float64").transpose(1, 0, 2).reshape(7, -1)[:, :length]
        assert_near(out[:count], factors[:count] @ whole)


@pytest.mark.parametrize("m", [1, 4, 11])
def test_projection_in_stretches(m, draw):
    for length, count in ((5, 1), (512, 4), (1024, 7), (2500, 8)):
        given, weight, out = draw(8, length), draw(m, length), np.full_like(draw(8, m), np.nan)
        projected(out, given, weight, count)
        assert_near(out[:count], given[:count].astype("float64") @ weight.T)


def test_results_may_go_past_the_caches(draw):
    given, factors = draw(5, 128), draw(5, 5)
    room = np.empty(5 * 128 + 16, given.dtype)
    start = -room.ctypes.data % 64 // room.itemsize
    out = room[start : start + 5 * 128].reshape(5, 128)
    far(out, given, factors)
    assert_near(out, factors @ given.astype("float64"))
    away(out, given)
    assert (out == given).all()


def test_a_step_along_rows_takes_a_power_of_two_of_places():
    with pytest.raises(ValueError, match="unroll: expected a power of two, got 3"):
        vectors.along(None, None, None, None, unroll=3)
