"""Every body gives what the reference gives in float64: values, odd sizes, dtypes, layouts, extremes, no tokens."""

import pytest
import torch

from jpmhc import kernels
from jpmhc.kernels.bodies import interpreted
from tests.kernels.interpreter import bodies, run_again
from tests.kernels.ways import way

TOLERANCE = {torch.float32: 3e-6, torch.float64: 1e-13}
SHAPES = [(37, 4, 4), (2, 3, 3, 2), (0, 4, 4), (1, 1, 1), (4, 4), (130, 7, 7), (3, 16, 16)]
DOUBLE = [(37, 4, 4), (3, 16, 16)]


def normal(shape, dtype, seed=0, scale=1.0):
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def positive(shape, dtype, seed=0):
    logits = normal(shape, torch.float64, seed)
    with kernels.backend("reference"):
        return kernels.sinkhorn_forward(logits, None, None, 1e-15, 64).to(dtype)


def rotation(shape, dtype):
    with kernels.backend("reference"):
        return kernels.cayley_forward(normal(shape, torch.float64), 1.0).to(dtype)


CALLS = {
    "sinkhorn_forward": lambda s, d: (normal(s, d), None, None, 8 * torch.finfo(d).eps, 64),
    "sinkhorn_sweeps": lambda s, d: (normal(s, d, scale=3.0), None, None, 5),
    "sinkhorn_adjoint": lambda s, d: (positive(s, d), normal(s, d, 1)),
    "sinkhorn_potentials": lambda s, d: (positive(s, d), positive(s, d, 1)),
    "sinkhorn_balanced": lambda s, d: (positive(s, d), positive(s, d, 1) * normal(s, d, 2), 2),
    "cayley_forward": lambda s, d: (normal(s, d), 0.7),
    "cayley_adjoint": lambda s, d: (rotation(s, d), normal(s, d, 1), 0.7),
    "quaternion_forward": lambda s, d: (normal((*s[:-2], 2, 4), d),),
    "quaternion_adjoint": lambda s, d: (normal((*s[:-2], 2, 4), d), normal((*s[:-2], 4, 4), d, 1)),
}
BODIES = bodies("numba", "tiles")


def truth(operation, args):
    wide = [value.double() if isinstance(value, torch.Tensor) else value for value in args]
    if operation == "sinkhorn_forward":
        wide[3] = 1e-15
    with kernels.backend("reference"):
        return getattr(kernels, operation)(*wide)


def run(body, operation, *args):
    backend, device = body
    args = [value.to(device) if isinstance(value, torch.Tensor) else value for value in args]
    with way(backend) as expected:
        assert kernels.choice(operation, *args).backend == expected
        return getattr(kernels, operation)(*args).cpu()


def assert_agrees(body, operation, args):
    result = run(body, operation, *args)
    expected = truth(operation, args)
    dtype = args[0].dtype
    assert (result.dtype, result.shape, result.is_contiguous()) == (dtype, expected.shape, True)
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(result.double(), expected, rtol=tolerance, atol=tolerance, equal_nan=True)


@pytest.mark.parametrize("body", BODIES, ids="-".join)
@pytest.mark.parametrize("operation", CALLS)
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [*((shape, torch.float32) for shape in SHAPES), *((shape, torch.float64) for shape in DOUBLE)],
    ids=str,
)
def test_agrees_with_the_reference_in_float64(body, operation, shape, dtype):
    if shape[-1] != shape[-2] and not operation.startswith("sinkhorn"):
        shape = (*shape[:-1], shape[-2])
    assert_agrees(body, operation, CALLS[operation](shape, dtype))


@pytest.mark.parametrize("body", BODIES, ids="-".join)
@pytest.mark.parametrize("operation", CALLS)
def test_any_strides(body, operation):
    args = CALLS[operation]((6, 4, 4), torch.float32)
    strided = [value.movedim(0, -1).contiguous().movedim(-1, 0) if torch.is_tensor(value) else value for value in args]
    assert not strided[0].is_contiguous()
    assert_agrees(body, operation, strided)
    # Contiguous, but the sign is not in what is stored.
    negated = [torch._neg_view(-value) if torch.is_tensor(value) else value for value in args]
    assert negated[0].is_contiguous()
    assert_agrees(body, operation, negated)


EXTREMES = {
    "+-50": torch.where(normal((9, 4, 4), torch.float64) > 0, 50.0, -50.0),
    "uniform in +-50": 100 * torch.rand(9, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 50,
    "-inf": normal((9, 4, 4), torch.float64).masked_fill(torch.eye(4, dtype=torch.bool), -torch.inf),
    "NaN and +inf": torch.cat([torch.full((2, 4, 4), torch.nan), torch.full((1, 4, 4), torch.inf)]).double(),
    "large shifts": normal((9, 4, 4), torch.float64) + torch.tensor([0.0, 64.0, -64.0, 128.0])[:, None],
}


@pytest.mark.parametrize("body", BODIES, ids="-".join)
@pytest.mark.parametrize("operation", ["sinkhorn_forward", "sinkhorn_sweeps"])
@pytest.mark.parametrize("logits", EXTREMES.values(), ids=EXTREMES)
def test_extreme_logits(body, operation, logits):
    options = (None, None, 3e-6, 200) if operation == "sinkhorn_forward" else (None, None, 5)
    args = (logits.float(), *options)
    result = run(body, operation, *args)
    expected = truth(operation, args)
    torch.testing.assert_close(result.double(), expected, rtol=0, atol=3e-5, equal_nan=True)
    assert (result[logits == -torch.inf] == 0).all()


@pytest.mark.parametrize("body", BODIES, ids="-".join)
def test_a_matrix_does_not_depend_on_its_neighbours(body):
    logits = normal((50, 4, 4), torch.float32, scale=2.0)
    together, *alone = (
        run(body, "sinkhorn_forward", some, None, None, 2e-6, 64) for some in (logits, *logits.split(1))
    )
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=0)


LARGE = [(torch.float32, 10.0**power) for power in (2, 3, 4, 5, 6, 8)] + [(torch.float64, 1e4), (torch.float64, 1e8)]


@pytest.mark.parametrize("body", [*BODIES, ("reference", "cpu")], ids="-".join)
@pytest.mark.parametrize("n", [4, 5, 8, 15, 16])
@pytest.mark.parametrize(("dtype", "scale"), LARGE, ids=str)
def test_large_skew_matrices_stay_rotations(dtype, scale, n, body):
    raw, eps = normal((20, n, n), dtype, scale=scale), torch.finfo(dtype).eps
    q = run(body, "cayley_forward", raw, 1.0).double()
    # In float64, which nothing wider solves, one step of polish leaves 10.6 eps of what a singular matrix of 1e8 costs.
    bound = n if n % 2 and dtype == torch.float64 and scale == 1e8 else 8
    torch.testing.assert_close(q.mT @ q, torch.eye(n).double().expand(20, n, n), rtol=0, atol=max(8, bound) * eps)
    # A skew matrix of odd size is singular, so that rounding its entries alone costs this much.
    wanted = truth("cayley_forward", (raw, 1.0))
    torch.testing.assert_close(q, wanted, rtol=0, atol=2 * eps * (100 + scale))


@pytest.mark.parametrize("body", BODIES, ids="-".join)
def test_quaternions_of_any_length_and_of_none(body):
    pair = normal((6, 2, 4), torch.float32)
    pair *= torch.tensor([1e-30, 1e-37, 1.0, 1e30, 1e38, 0.0])[:, None, None]
    q = run(body, "quaternion_forward", pair)
    slope = run(body, "quaternion_adjoint", pair[2:], normal((4, 4, 4), torch.float32))
    torch.testing.assert_close(q.mT @ q, torch.eye(4).expand(6, 4, 4), rtol=0, atol=1e-6)
    torch.testing.assert_close(q.double(), truth("quaternion_forward", (pair,)), rtol=0, atol=1e-6)
    assert torch.equal(q[-1], torch.eye(4))
    assert torch.equal(slope[-1], torch.zeros(2, 4))
    assert slope.isfinite().all()


@pytest.mark.parametrize("body", [*BODIES, ("reference", "cpu")], ids="-".join)
@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_a_quaternion_that_is_not_finite_is_no_rotation(body, wrong):
    pair = normal((40, 2, 4), torch.float32)
    pair[3, 0, 2] = wrong
    pair[5] = wrong
    q = run(body, "quaternion_forward", pair)
    slope = run(body, "quaternion_adjoint", pair, normal((40, 4, 4), torch.float32))
    assert q[[3, 5]].isnan().all()
    assert slope[[3, 5]].isnan().any(-1).all(-1).tolist() == [True, True]
    others = [k for k in range(40) if k not in (3, 5)]
    assert q[others].isfinite().all()
    assert slope[others].isfinite().all()


@pytest.mark.parametrize("body", [*BODIES, ("reference", "cpu")], ids="-".join)
@pytest.mark.parametrize("others", [0.0, 1e-39, 1.0])
def test_one_component_that_is_not_a_number_is_not_lost(others, body):
    pair = torch.full((40, 2, 4), others)
    pair[8:] = 1.0  # whole quaternions beside them
    for k in range(8):
        pair[k] = normal((2, 4), torch.float32, k)
        pair[k, k // 4] = others
        pair[k, k // 4, k % 4] = torch.nan
    q = run(body, "quaternion_forward", pair)
    slope = run(body, "quaternion_adjoint", pair, normal((40, 4, 4), torch.float32))
    assert q[:8].isnan().all()
    assert all(slope[k, k // 4].isnan().all() for k in range(8))
    assert q[8:].isfinite().all()
    assert slope[8:].isfinite().all()


@pytest.mark.parametrize("body", BODIES, ids="-".join)
@pytest.mark.parametrize("n", [5, 8])
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_cayley_by_elimination(n, scale, body):
    args = normal((5, n, n), torch.float32, scale=scale), 1.0
    q = run(body, "cayley_forward", *args).double()
    torch.testing.assert_close(q, truth("cayley_forward", args), rtol=0, atol=2e-6 * scale)
    torch.testing.assert_close(q.mT @ q, torch.eye(n).double().expand(5, n, n), rtol=0, atol=2e-6)


@pytest.mark.skipif(interpreted(), reason="of Numba")
@pytest.mark.parametrize("name", ["numba", "tiles"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cayley_of_a_batch_with_some_large_matrices(name, dtype):
    raw = normal((40, 5, 5), dtype)
    raw[3] *= 1e6
    raw[7] *= 1e3
    with way(name):
        q = kernels.cayley_forward(raw, 1.0)
    expected = truth("cayley_forward", (raw, 1.0)).to(dtype)
    small = [t for t in range(40) if t != 3]
    torch.testing.assert_close(q[small], expected[small], rtol=0, atol=1e-6 if dtype == torch.float32 else 1e-11)
    with kernels.backend("reference"):
        torch.testing.assert_close(q[3], kernels.cayley_forward(raw[3:4], 1.0)[0])


@pytest.mark.skipif(interpreted(), reason="the process that this test starts")
def test_triton_bodies_in_the_interpreter():
    assert run_again(__file__) > 0


@pytest.mark.parametrize("operation", CALLS)
def test_torch_accepts_the_registration(operation):
    args = CALLS[operation]((3, 4, 4), torch.float32)
    with kernels.backend(BODIES[0][0]):
        torch.library.opcheck(getattr(torch.ops.jpmhc, operation).default, args)


@pytest.mark.skipif(interpreted(), reason="of Numba")
def test_auto_compiles_a_version_of_their_own_for_a_batch_and_not_for_a_few():
    from jpmhc.kernels.cpu import cayley
    from jpmhc.kernels.cpu.single import columns

    versions = len(cayley._inverted.signatures)
    for n in (11, 13):
        kernels.cayley_forward(torch.zeros(127, n, n), 1.0)
    assert len(cayley._inverted.signatures) == versions
    assert len(columns.cayley.signatures) <= 2  # a dtype
    kernels.cayley_forward(torch.zeros(128, 13, 13), 1.0)
    assert len(cayley._inverted.signatures) > versions
    few, many = torch.zeros(127, 4, 4), torch.zeros(128, 4, 4)
    assert str(kernels.choice("tangent_part", few, few, 1.0, 0.0, 0.0)) == "reference: fewer than 128 matrices"
    assert str(kernels.choice("tangent_part", many, many, 1.0, 0.0, 0.0)) == "numba: the body for the device cpu"


@pytest.mark.skipif(interpreted(), reason="of Numba")
def test_what_a_body_does_not_cover_runs_the_reference():
    with kernels.backend("numba"):
        half = torch.randn(3, 4, 4, dtype=torch.float32)
        assert "17 x 17" in str(kernels.choice("cayley_forward", torch.randn(3, 17, 17), 1.0))
        marginals = torch.ones(3, 4), torch.ones(3, 4)
        assert "marginals" in str(kernels.choice("sinkhorn_forward", half, *marginals, 1e-6, 9))
        assert "different dtypes" in str(kernels.choice("sinkhorn_adjoint", half, half.double()))
        assert "17 x 4" in str(kernels.choice("sinkhorn_adjoint", torch.ones(17, 4), torch.ones(17, 4)))
        torch.testing.assert_close(kernels.sinkhorn_forward(half, *marginals, 1e-6, 64).sum(-1), torch.ones(3, 4))
