import pytest
import torch

from jpmhc import kernels, manifolds
from jpmhc.manifolds import steps
from tests.kernels.ways import way

D = {"dtype": torch.float64}


def material(shape, dtype=torch.float64, length=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x, u, v = (torch.randn(*shape, generator=generator, **D) for _ in range(3))
    x = torch.linalg.qr(x).Q
    u, v = (w - x @ (x.mT @ w + w.mT @ x) / 2 for w in (u, v))
    return [w.to(dtype) for w in (x, length * u, v)]


def rotation(x, u):
    """The n x n Cayley transform by definition: the skew W with W x = u, that is zero off the span of x and u."""
    n = x.shape[-2]
    half = u - x @ (x.mT @ u) / 2
    w = half @ x.mT - x @ half.mT
    eye = torch.eye(n, **D)
    return torch.linalg.solve(eye - w / 2, eye + w / 2)


@pytest.mark.parametrize("name", ["numba", "tiles", "reference"])
@pytest.mark.parametrize(
    "shape", [(3, 4, 4), (33, 6, 3), (2, 3, 5, 1), (1, 40, 3), (0, 4, 4), (7, 24, 24), (2, 530, 530)]
)
@pytest.mark.parametrize(("dtype", "tol"), [(torch.float64, 1e-14), (torch.float32, 3e-6)])
def test_cayley_step_is_the_rotation_of_the_definition(name, shape, dtype, tol):
    x, u, v = material(shape, dtype, length=0.5)
    q = rotation(x.double(), u.double())
    with way(name):
        y = kernels.cayley_retraction(x, u)
        both = kernels.cayley_transport(x, u, v)
    tol = tol * shape[-2] ** 0.5
    for result, argument in ((y, x), (both[0], x), (both[1], v)):
        assert result.dtype == dtype
        assert result.is_contiguous()
        torch.testing.assert_close(result.double(), q @ argument.double(), rtol=0, atol=3 * tol)


@pytest.mark.parametrize("length", [0.0, 1e3, 1e6])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", ["numba", "tiles"])
def test_steps_of_any_length_end_on_the_manifold(length, dtype, name):
    x, u, v = material((64, 4, 4), dtype, length)
    # One step among short ones: what needs pivots is worked on apart.
    u[1:] /= max(length, 1.0)
    with way(name):
        y, moved = kernels.cayley_transport(x, u, v)
    eye = torch.eye(4, dtype=dtype)
    assert (y.mT @ y - eye).abs().max() < 8 * torch.finfo(dtype).eps
    inner = (moved * moved).sum((-2, -1))
    torch.testing.assert_close(inner, (v * v).sum((-2, -1)), rtol=100 * torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("name", ["numba", "tiles"])
def test_a_matrix_with_nan_leaves_its_neighbours_alone(name):
    x, u, _ = material((40, 6, 3))
    with way(name):
        good = kernels.cayley_retraction(x, u)
        u[7] = float("nan")
        bad = kernels.cayley_retraction(x, u)
    assert bad[7].isnan().all()
    assert torch.equal(bad[torch.arange(40) != 7], good[torch.arange(40) != 7])


SHAPES = [(9, 4, 4), (2, 5, 6, 3), (5, 1, 1), (4, 7, 7), (3, 8, 5), (3, 16, 16), (2, 16, 11), (0, 4, 4), (3, 30, 12)]
SHAPES += [(3, 17, 17), (2, 24, 24), (2, 64, 20), (2, 33, 33), (1, 70, 64), (2, 128, 128)]


@pytest.mark.parametrize("weights", [(1.0, -0.5, -0.5), (0.0, 0.5, -0.5), (1.0, -1.0, 0.0), (1.0, 0.0, -1.0)])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("dtype", "tol"), [(torch.float64, 1e-14), (torch.float32, 5e-6)])
def test_tangent_part_is_what_it_says(weights, shape, dtype, tol):
    x, e, _ = material(shape)
    s = x.mT @ e
    expected = weights[0] * e + x @ (weights[1] * s + weights[2] * s.mT)
    x, strided = x.to(dtype), e.mT.contiguous().mT.to(dtype)
    for name in ("numba", "reference"):
        with way(name):
            assert kernels.choice("tangent_part", x, strided, *weights).backend == name
            found = kernels.tangent_part(x, strided, *weights)
        assert found.is_contiguous()
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=tol * max(1, shape[-1] / 16))


@pytest.mark.parametrize("weights", [(1.0, -0.5, -0.5), (0.0, 0.5, -0.5), (1.0, -1.0, 0.0), (1.0, 0.0, -1.0)])
@pytest.mark.parametrize(
    "batches", [((), ()), ((1,), (1,)), ((3,), (3,)), ((2, 3), (2, 3)), ((), (3,)), ((3,), ()), ((1,), (3,))]
)
@pytest.mark.parametrize("size", [(4, 4), (6, 2)])
def test_a_few_tangent_parts_are_what_many_are(weights, batches, size):
    (x, *_), (_, e, _) = (material((*batch, *size), seed=seed) for seed, batch in enumerate(batches))
    kept = x.clone(), e.clone()
    found = steps.tangent_part(x, e, *weights)
    torch.testing.assert_close(found, kernels.plain_tangent_part(x, e, *weights), rtol=0, atol=1e-14)
    assert torch.equal(x, kept[0])
    assert torch.equal(e, kept[1])
    e[..., 0, 1] = torch.nan
    assert steps.tangent_part(x, e, *weights).isnan().any()


@pytest.mark.parametrize("batch", [(), (5,), (2, 3), (400,)])
@pytest.mark.parametrize("name", ["auto", "reference"])
def test_a_square_subspace_has_no_horizontal_vector_but_zero(name, batch):
    x, e, _ = material((*batch, 3, 3), torch.float32)
    with kernels.backend(name):
        assert not manifolds.Grassmann().proju(x, e.mT).any()


def test_one_point_with_many_vectors_is_no_few():
    x, e, _ = material((4, 4))
    assert steps._is_little(x, e)
    assert not steps._is_little(x, e.expand(1000, 4, 4))
    assert not steps._is_little(x, e.clone().requires_grad_())
    assert not torch.func.vmap(lambda x: torch.tensor(steps._is_little(x, e)))(x.expand(2, 4, 4)).any()
    with kernels.backend("numba"):
        assert not steps._is_little(x, e)
    with torch.autocast("cpu", torch.bfloat16):
        assert not steps._is_little(x, e)
        assert steps.tangent_part(x.float(), e.float(), 1.0, 0.0, -1.0).dtype == torch.float32


@pytest.mark.parametrize("name", ["cayley_retraction", "cayley_transport", "tangent_part"])
def test_operations_are_registered_as_torch_asks(name):
    x, u, v = material((3, 4, 2))
    args = {"cayley_retraction": (x, u), "cayley_transport": (x, u, v), "tangent_part": (x, u, 1.0, -0.5, -0.5)}[name]
    torch.library.opcheck(getattr(torch.ops.jpmhc, name).default, args)


def test_small_matrices_have_a_body_and_all_others_the_reference():
    pytest.importorskip("numba")
    from jpmhc.kernels.cpu.vectors import WIDTH
    from jpmhc.kernels.shapes import LARGEST

    assert kernels.choice("cayley_retraction", *material((200, 4, 4))[:2]).backend == "numba"
    assert kernels.choice("cayley_retraction", *material((200, 32, 16))[:2]).backend == "reference"
    assert kernels.choice("cayley_retraction", *material((2, 4, 4))[:2]).backend == "numba"
    assert kernels.choice("tangent_part", *material((2, 4, 4))[:2], 1.0, 0.0, -1.0).backend == "reference"
    for shape, backend in {(64, 64, 64): "numba", (2, 64, 64): "reference"}.items():
        assert kernels.choice("tangent_part", *material(shape)[:2], 1.0, 0.0, -1.0).backend == backend
    # One number beyond whole vectors of this processor, most of which would be wasted.
    beyond = WIDTH // 4 + LARGEST + 1
    wasteful = material((200, 64, beyond), torch.float32)[:2]
    expected = "reference" if WIDTH >= 32 else "numba"
    assert kernels.choice("tangent_part", *wasteful, 1.0, 0.0, -1.0).backend == expected
