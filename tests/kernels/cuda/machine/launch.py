"""The library's Triton bodies on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product

import numpy as np
import pytest
import torch

from tests.kernels.cuda.machine import products, threads, warps  # noqa: F401  they enter their operations
from tests.kernels.cuda.machine.block import Block
from tests.kernels.cuda.machine.memory import Tensors
from tests.kernels.cuda.machine.parse import Kernel


class Absent:
    """The parts of a driver that compiling asks for, of a device that is not there.

    Parameters
    ----------
    capability : int
        Of the device, as 90.
    """

    def __init__(self, capability: int) -> None:
        self._capability = capability

    def get_current_target(self) -> object:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self._capability, 32)

    def get_current_device(self) -> int:
        return -self._capability  # a device of its own in the caches of kernels

    def get_current_stream(self, _device: int) -> int:
        return 0


@contextmanager
def machine(capability: int = 90, shared: int = 227 * 1024, late: bool = True, before: int = 0) -> Iterator[list[str]]:
    """Let the bodies of ``backend("triton")`` take tensors on the CPU, compiled and run here.

    Parameters
    ----------
    capability : int
        To compile for: 80, 86, 89 or 90.
    shared : int
        Bytes of shared memory that a program may have.
    late : bool
        As in `Block`.
    before : int
        Run as the last programs of a launch with so many tokens more, at least, in front; they are in no memory.

    Yields
    ------
    list of str
        Names of the kernels that ran.
    """
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    from jpmhc.kernels import bodies
    from jpmhc.kernels.cuda import boundary

    ran: list[str] = []

    def launched(kernel, grid):
        def run(*args, **options):
            compiled = kernel.run(*args, grid=grid, warmup=True, **options)
            assert compiled.metadata.shared <= shared, "more shared memory than there is"
            named = dict(zip(kernel.arg_names, args, strict=False))
            first, skipped = _behind(named, grid, before) if before and "tokens" in named else ((), {})
            names = [name for name, kind in compiled.src.signature.items() if kind != "constexpr"]
            given, skips = [named[name] for name in names], [skipped.get(name, 0) for name in names]
            execute(compiled.asm["ptx"], compiled.metadata.shared, given, grid, late, first, skips)
            ran.append(kernel.fn.__name__)

        return run

    deterministic = torch.are_deterministic_algorithms_enabled()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver, "_active", Absent(capability))
        patch.setattr(JITFunction, "__getitem__", launched)
        patch.setattr(bodies, "interpreted", lambda: True)
        patch.setattr(boundary, "_shared", lambda _device: shared)
        torch.use_deterministic_algorithms(True)  # memory that nobody wrote holds no numbers
        try:
            yield ran
        finally:
            torch.use_deterministic_algorithms(deterministic)


# Arguments that have no part for each token: those that all tokens share, and those with a part for each program.
_SHARED, _OF_PROGRAMS = {"bias", "scale", "tiles", "weight"}, {"bias_sums", "scale_sums", "parts", "parameter_sums"}


def _behind(named: dict, grid: tuple[int, ...], before: int) -> tuple[tuple[int, ...], dict[str, int]]:
    """Put tokens in front: return the first program, and by how many bytes tensors begin before their memory."""
    tokens, axis, size = named["tokens"], 0, named.get("BT") or named.get("BLOCK")
    if "length" in named:
        axis, size = 1, named["length"]
    programs = -(-before // size)
    named["tokens"] = programs * size + tokens
    skipped = {}
    for name, value in named.items():
        if isinstance(value, torch.Tensor) and value.numel() and name not in _SHARED:
            parts, count = (grid[axis], programs) if name in _OF_PROGRAMS else (tokens, programs * size)
            assert value.numel() % parts == 0, name
            skipped[name] = value.numel() // parts * count * value.element_size()
    return (0,) * axis + (programs,), skipped


def execute(
    ptx: str,
    shared: int,
    given: list,
    grid: tuple[int, ...],
    late: bool = True,
    first: tuple[int, ...] = (),
    skips: list[int] | None = None,
) -> None:
    """Run all programs of a kernel, one after the other.

    Parameters
    ----------
    ptx : str
    shared : int
        Bytes of shared memory of a program.
    given : list of torch.Tensor, int or float
        Arguments; the kernel writes to the tensors.
    grid : tuple of int
    late : bool
        As in `Block`.
    first : tuple of int
        The first of the programs; the grid's are the last.
    skips : list of int, optional
        By how many bytes every tensor of ``given`` begins before its memory.

    Raises
    ------
    Fault
        See the package.
    """
    kernel = Kernel(ptx)
    tensors = Tensors([value for value in given if isinstance(value, torch.Tensor)])
    skips = skips or [0] * len(given)
    arguments = [
        tensors.address(value) - skip if isinstance(value, torch.Tensor) else _bits(value)
        for value, skip in zip(given, skips, strict=True)
    ]
    arguments += [0] * (len(kernel.parameters) - len(arguments))  # scratch memory that none of ours has
    with np.errstate(all="ignore"):
        starts = (*first, 0, 0, 0)[2::-1]
        places = product(*(range(a, a + size) for a, size in zip(starts, (*grid, 1, 1)[2::-1], strict=True)))
        for number, (z, y, x) in enumerate(places):
            Block(kernel, tensors, arguments, (x, y, z), number, shared, late).run()
    tensors.give_back()


def _bits(value: float) -> int:
    """Return an integer, or the bits of a fraction, all of which are in float64."""
    return value if isinstance(value, int) else int(np.float64(value).view(np.int64))
