"""Every kernel compiles for a GPU where there is none: the interpreter runs what the compiler would refuse."""

import os
import subprocess
import sys

import pytest
import torch

from jpmhc.kernels.bodies import interpreted
from tests.kernels.boundaries import FORMS, boundary

pytest.importorskip("triton")
COMPUTE_CAPABILITY = 90


def compile_all(whole):
    """Compile the kernels of all forms, of the small maps too, or of some; run as a process of its own."""
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    from jpmhc.kernels import crossing
    from jpmhc.kernels.cuda import boundary as bodies
    from jpmhc.kernels.cuda import cayley, gates, quaternion, sinkhorn
    from jpmhc.kernels.gates import Gates, GatesPullback
    from tests.kernels.cuda.machine.launch import Absent
    from tests.kernels.test_contract import CALLS

    driver.set_active(Absent(COMPUTE_CAPABILITY))
    compiled = []

    def compiling(kernel, grid):
        def compiled_only(*args, **options):
            compiled.append(kernel.run(*args, grid=grid, warmup=True, **options))

        return compiled_only

    JITFunction.__getitem__ = compiling
    bodies._shared = lambda *_: bodies._HOPPER
    real = crossing.boundary_forward, crossing.boundary_backward
    bodies_of = bodies.boundary_forward, bodies.boundary_backward

    def both(function, body):
        def call(arguments):
            body(arguments)
            return function(arguments)

        return call

    crossing.boundary_forward, crossing.boundary_backward = map(both, real, bodies_of)
    sizes = [({}, torch.bfloat16), ({}, torch.float32), ({}, torch.float16)]
    sizes += [({"n": n, "d": 64, "m": n * n + 2 * n}, torch.bfloat16) for n in (8, 1, 3, 16)]
    for size, dtype in sizes if whole else sizes[:1]:
        for form in FORMS:
            found = crossing.cross(*boundary(form, dtype=dtype, **size))
            outputs = [o for o in found[:3] if o is not None and o.requires_grad]
            torch.autograd.backward(outputs, [torch.ones_like(o) for o in outputs])
    for gate, squashed in (("softmax", False), ("sigmoid", False), ("tanh", True)):
        z = torch.ones(9, 24)
        post, raw = gates.gates_forward(Gates(z, torch.ones(20), torch.ones(2), gate, 4, squashed))
        gates.gates_backward(GatesPullback(post, raw, z, post, torch.ones(2), gate, squashed))
    homes = {"sinkhorn": sinkhorn, "cayley": cayley, "quaternion": quaternion}
    for operation, arguments in CALLS.items():
        for n in (4,) if not whole or operation.startswith("quaternion") else (1, 4, 5, 16):
            getattr(homes[operation.split("_")[0]], operation)(*arguments((9, n, n), torch.float32))
    assert len(compiled) > (150 if whole else 30)
    assert all(kernel.asm["cubin"] for kernel in compiled)
    largest = max(kernel.metadata.shared for kernel in compiled)
    assert largest <= 227 * 1024, f"{largest} bytes of shared memory are more than there are"


@pytest.mark.skipif(interpreted(), reason="of the compiler")
@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_every_kernel_compiles_for_hopper(whole, tmp_path):
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    code = f"from tests.kernels.cuda.test_compile import compile_all; compile_all({whole})"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
