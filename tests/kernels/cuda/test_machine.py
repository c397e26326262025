"""The machine that runs compiled kernels is right about products, and sees what is wrong with a kernel."""

import re

import pytest
import torch

from jpmhc.kernels.bodies import interpreted
from tests.kernels.cuda.machine.launch import execute, machine
from tests.kernels.cuda.machine.memory import Fault
from tests.kernels.cuda.machine.warps import copies_are_fenced

triton = pytest.importorskip("triton")
tl = triton.language
pytestmark = pytest.mark.skipif(interpreted(), reason="of the compiler")


@triton.jit
def multiply(a, b, c, K: tl.constexpr, M: tl.constexpr, N: tl.constexpr, BK: tl.constexpr, TURNED: tl.constexpr):
    i, j = tl.arange(0, M)[:, None], tl.arange(0, N)[None, :]
    total = tl.zeros([M, N], tl.float32)
    for start in tl.range(0, K, BK, num_stages=3):
        k = start + tl.arange(0, BK)
        left = tl.load(a + i * K + k[None, :])
        if TURNED:
            right = tl.trans(tl.load(b + tl.arange(0, N)[:, None] * K + k[None, :]))
        else:
            right = tl.load(b + k[:, None] * N + j)
        total = tl.dot(left, right, total, input_precision="tf32")
    tl.store(c + i * N + j, total)


def factors(dtype, m, n, k, turned):
    """Whole numbers, whose products are exact in every format."""
    draw = torch.Generator().manual_seed(0)
    a, b = (torch.randint(-8, 9, size, generator=draw).to(dtype) for size in ((m, k), (k, n)))
    return a, (b.t().contiguous() if turned else b), a.double() @ b.double()


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(("m", "n", "warps"), [(16, 32, 4), (64, 16, 4), (64, 128, 4), (128, 64, 8)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_products_are_exact(dtype, m, n, warps, turned, capability, late):
    a, b, exact = factors(dtype, m, n, 128, turned)
    c = torch.full((m, n), torch.nan)
    with machine(capability, late=late):
        multiply[(1,)](a, b, c, 128, m, n, 32, turned, num_warps=warps)
    assert torch.equal(c.double(), exact)


def ptx_of_product():
    """A product with copies and products under way, its text and its arguments."""
    a, b, _ = factors(torch.bfloat16, 64, 64, 256, False)
    c = torch.full((64, 64), torch.nan)
    found = []
    with pytest.MonkeyPatch.context() as patch, machine():
        patch.setattr("tests.kernels.cuda.machine.launch.execute", lambda *args: found.append(args))
        multiply[(1,)](a, b, c, 256, 64, 64, 32, False, num_warps=4)
    return found[0]


no_fence = pytest.mark.skipif(not copies_are_fenced(), reason="this Triton writes no fence between copies and products")


@pytest.mark.parametrize(
    "instruction",
    ["bar.sync", pytest.param("fence.proxy", marks=no_fence), "cp.async.wait_group", "wgmma.wait_group"],
)
def test_what_threads_wait_for_is_needed(instruction):
    ptx, *others = ptx_of_product()
    execute(ptx, *others)
    edited, removed = re.subn(re.escape(instruction) + "[^;]*;", "", ptx)
    assert removed
    with pytest.raises(Fault):
        execute(edited, *others)


@triton.jit
def exchange(x, result, BARRIER: tl.constexpr, N: tl.constexpr):
    k = tl.arange(0, N)
    tl.store(result + k, tl.load(x + k))
    if BARRIER:
        tl.debug_barrier()
    found = tl.load(result + (N - 1 - k))
    tl.debug_barrier()
    tl.store(result + k, found)


def test_a_missing_barrier_between_threads_is_seen():
    x, result = torch.arange(256.0), torch.empty(256)
    with machine():
        exchange[(1,)](x, result, True, 256)
        assert torch.equal(result, x.flip(0))
        with pytest.raises(Fault, match=r"exchange, program 0.*race: reads"):
            exchange[(1,)](x, result, False, 256)


@triton.jit
def spill(x, result, N: tl.constexpr, STEP: tl.constexpr):
    k = tl.program_id(0) * STEP + tl.arange(0, N)
    tl.store(result + k, tl.load(x + k) + tl.program_id(0))


@pytest.mark.parametrize(("room", "step", "fault"), [(256, 128, "outside"), (400, 100, "race: overwrites")])
def test_what_is_not_a_programs_own_is_seen(room, step, fault):
    x = torch.arange(400.0)
    with machine():
        spill[(2,)](x, torch.empty(256), 128, 128)
        with pytest.raises(Fault, match=fault):
            spill[(3,)](x, torch.empty(room), 128, step)


@triton.jit
def search(x, result, N: tl.constexpr):
    k = tl.program_id(0) * N + tl.arange(0, N)
    value, steps = tl.load(x + k), tl.zeros([N], tl.int32)
    while tl.max(value) > 1:
        steps += tl.where(value > 1, 1, 0)
        value = tl.where(value > 1, tl.where(value % 2 == 0, value // 2, 3 * value + 1), value)
    tl.store(result + k, steps)


def test_loops_end_when_they_should():
    x, result = torch.arange(1, 257), torch.zeros(256, dtype=torch.int32)
    with machine():
        search[(2,)](x, result, 128, num_warps=2)

    def steps(n):
        return 0 if n == 1 else 1 + steps(n // 2 if n % 2 == 0 else 3 * n + 1)

    assert result.tolist() == [steps(n) for n in range(1, 257)]


def test_an_unknown_instruction_is_named():
    ptx, *others = ptx_of_product()
    edited = ptx.replace("bar.sync", "nonsense.sync", 1)
    with pytest.raises(Fault, match=r"nonsense\.sync.*unknown instruction"):
        execute(edited, *others)
