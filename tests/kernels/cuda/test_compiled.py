"""What Triton compiles for a GPU computes what the reference does, on a machine of our own where there is none."""

import pytest
import torch

from jpmhc.kernels.bodies import interpreted
from tests.kernels.boundaries import FORMS, TOLERANCE, deviation
from tests.kernels.cuda.machine.launch import machine
from tests.kernels.test_contract import CALLS, assert_agrees

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(interpreted(), reason="of the compiler")

BOTH = "write post-norm, read softmax norm"
# Tokens, streams, width and raw numbers: what divides nothing, and what copies and products beside the threads take.
ODD, WIDE, EIGHT, SIXTEEN = (9, 3, 31, 15), (70, 4, 256, 24), (66, 8, 128, 80), (19, 16, 96, 290)
QUICK = [
    (BOTH, torch.bfloat16, ODD),
    ("read tanh norm", torch.float32, ODD),
    ("write identity, read softmax norm", torch.float16, ODD),
    (BOTH, torch.bfloat16, WIDE),
    ("write, read given", torch.bfloat16, EIGHT),
]
DTYPES = [torch.bfloat16, torch.float32, torch.float16]
MAPS = [(4, torch.float32), (4, torch.float64), (3, torch.float32), (7, torch.float32), (16, torch.float32)]


def assert_compiled(form, dtype, sizes, *target, runs=True, **options):
    tokens, n, d, m = sizes
    with machine(*target, **options) as ran:
        error = deviation(form, "triton", dtype, tokens=tokens, n=n, d=d, m=m)
    assert {"cross", "pull"}.issubset(ran) == runs
    assert error < TOLERANCE[dtype]


@pytest.mark.parametrize(("form", "dtype", "sizes"), QUICK, ids=str)
def test_boundary(form, dtype, sizes):
    assert_compiled(form, dtype, sizes)


# So many that no address of the tokens behind them fits into 32 bits.
BEFORE = 2**30


@pytest.mark.parametrize(("form", "dtype", "sizes"), QUICK[:2], ids=str)
def test_boundary_behind_many_tokens(form, dtype, sizes):
    assert_compiled(form, dtype, sizes, before=BEFORE)


@pytest.mark.parametrize("operation", CALLS)
def test_maps_behind_many_tokens(operation):
    with machine(before=BEFORE) as ran:
        assert_agrees(("triton", "cpu"), operation, CALLS[operation]((70, 4, 4), torch.float32))
    assert ran


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_boundary_of_every_form(form, dtype):
    assert_compiled(form, dtype, (67, 5, 100, 35))


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(17, 1, 96, 3), SIXTEEN, (131, 4, 512, 14), WIDE, EIGHT], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("form", [BOTH, "read sigmoid norm", "write identity post-norm, read tanh"])
def test_boundary_of_other_sizes(form, dtype, sizes):
    assert_compiled(form, dtype, sizes)


@pytest.mark.slow
@pytest.mark.parametrize(("capability", "kibibytes"), [(80, 163), (89, 99)])
@pytest.mark.parametrize("sizes", [WIDE, EIGHT, SIXTEEN], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_boundary_on_smaller_devices(dtype, sizes, capability, kibibytes):
    fits = sizes != SIXTEEN or dtype == torch.bfloat16 or kibibytes >= 140
    assert_compiled(BOTH, dtype, sizes, capability, kibibytes * 1024, runs=fits)


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [WIDE, EIGHT], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_products_may_be_made_at_once(dtype, sizes):
    assert_compiled(BOTH, dtype, sizes, late=False)


@pytest.mark.parametrize(("n", "dtype"), MAPS, ids=str)
@pytest.mark.parametrize("operation", CALLS)
def test_maps(operation, n, dtype):
    with machine() as ran:
        assert_agrees(("triton", "cpu"), operation, CALLS[operation]((70 if n < 7 else 9, n, n), dtype))
    assert ran


@pytest.mark.parametrize("step", [1 / 3, -0.7, 0, 2])
def test_a_step_arrives_whole(step):
    raw = torch.randn(5, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with machine():
        assert_agrees(("triton", "cpu"), "cayley_forward", (raw, step))
        assert_agrees(("triton", "cpu"), "cayley_adjoint", (raw, raw.mT.contiguous(), step))
