"""Blocks of threads, all of which take an instruction together."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

from tests.kernels.cuda.machine.formats import bits_of, constant, decoded, encoded, size_of
from tests.kernels.cuda.machine.memory import Fault, Memory, Tensors, Who
from tests.kernels.cuda.machine.parse import Instruction, Kernel

_ADDRESS = re.compile(r"\[\s*(%?[a-z_]\w*)?\s*\+?\s*(-?\d+)?\s*\]$")
_BESIDE = 63

Operation = Callable[["Block", Instruction, "np.ndarray | None"], None]
OPERATIONS: dict[str, Operation] = {}
"""From the first word of an instruction to what carries it out for a block and a mask of its threads, None for all."""
TOGETHER: set[str] = set()
"""First words of those that all threads take together."""


def operation(*names: str, together: bool = False) -> Callable[[Operation], Operation]:
    """Enter a function into `OPERATIONS`."""

    def enter(function: Operation) -> Operation:
        OPERATIONS.update(dict.fromkeys(names, function))
        if together:
            TOGETHER.update(names)
        return function

    return enter


class Block:
    """One program of a kernel.

    Parameters
    ----------
    kernel : Kernel
    tensors : Tensors
    arguments : list of int
        Of the kernel.
    program : tuple of int
        Its three coordinates.
    number : int
        How many ran before.
    shared : int
        Bytes of shared memory.
    late : bool
        Whether products that run beside the threads are made when they are waited for, or at once; both must do.
    """

    def __init__(
        self,
        kernel: Kernel,
        tensors: Tensors,
        arguments: list[int],
        program: tuple[int, int, int],
        number: int,
        shared: int,
        late: bool,
    ) -> None:
        self.kernel, self.tensors, self.late = kernel, tensors, late
        self.threads = np.arange(kernel.threads)
        self.warps, self.lanes = self.threads // 32, self.threads % 32
        self.shared = Memory(shared, 0)
        self.unfenced = np.zeros(shared, bool)  # written since the last fence for products
        self.copies: list[list[Callable[[], None]]] = [[]]
        self.products: list[list[Callable[[], None]]] = [[]]
        self.parameters = dict(zip(kernel.parameters, arguments, strict=True))
        self._number = number
        self._barriers = 0
        self._registers = {"global_smem": self._full(0), "%tid.x": self.threads.astype(np.uint32)}
        self._registers |= {name: self._full(0xFFFFFFFF) for name in kernel.undefined}
        for axis, place in zip("xyz", program, strict=True):
            self._registers[f"%ctaid.{axis}"] = self._full(place)
        self._places: np.ndarray | None = None  # of threads that do not all stand at one instruction

    def _full(self, value: int) -> np.ndarray:
        return np.full(len(self.threads), value, np.uint32)

    def run(self) -> None:
        """Take instructions up to the last."""
        code, at = self.kernel.code, 0
        while True:
            active = None
            if self._places is not None:
                at = self._next()
                active = self._places == at
                if active.all():
                    self._places = active = None
            if at == len(code):
                break
            instruction = code[at]
            try:
                at = self._take(instruction, at, active)
            except Fault as fault:
                place = f"{self.kernel.name}, program {self._number}, instruction {at}: {instruction.text}"
                raise Fault(f"{place}: {fault}") from None
        if any(self.products):
            raise Fault(f"{self.kernel.name} ends before its products do")

    def _next(self) -> int:
        """Return where the threads stand that go on: those that are behind, unless they wait for others."""
        places = np.unique(self._places)
        code = [*self.kernel.code, None]
        free = [place for place in places.tolist() if code[place] is None or code[place].name not in TOGETHER]
        return int(places[0]) if len(places) == 1 or free in ([], [len(code) - 1]) else free[0]

    def _take(self, instruction: Instruction, at: int, active: np.ndarray | None) -> int:
        mask = active
        if instruction.guard is not None:
            guard = self.read(instruction.guard, "pred") ^ instruction.negated
            mask = guard if active is None else guard & active
            if mask.all():
                mask = None
        if instruction.name in ("bra", "ret"):
            target = self.kernel.labels[instruction.operands[0]] if instruction.operands else len(self.kernel.code)
            return self._branch(at, target, active, mask)
        function = OPERATIONS.get(instruction.name)
        if function is None:
            raise Fault("unknown instruction")
        if mask is not None and instruction.name in TOGETHER:
            raise Fault("not all threads are here")
        function(self, instruction, mask)
        if active is not None:
            self._places[active] = at + 1
        return at + 1

    def _branch(self, at: int, target: int, active: np.ndarray | None, mask: np.ndarray | None) -> int:
        if active is None and mask is None:
            return target
        if active is None and not mask.any():
            return at + 1
        if self._places is None:
            self._places = np.full(len(self.threads), at)
        self._places[slice(None) if active is None else active] = at + 1
        self._places[slice(None) if mask is None else mask] = target
        return at

    def beside(self) -> Who:
        """Return who something that runs beside all warps is to memory."""
        return Who(self._number, self._barriers, np.array([_BESIDE]))

    def among(self, mask: np.ndarray | None) -> tuple[np.ndarray, Who]:
        """Return the threads of a mask, and who they are to memory."""
        threads = self.threads if mask is None else np.flatnonzero(mask)
        return threads, Who(self._number, self._barriers, self.warps[threads])

    def meet(self) -> None:
        """Pass a barrier of all threads."""
        self._barriers += 1

    def bits(self, operand: str, size: int) -> np.ndarray:
        """Return what a register or a constant holds, as unsigned integers of so many bytes."""
        if operand[0].isdigit() or operand[0] == "-":
            return np.broadcast_to(constant(operand, size), self.threads.shape)
        if operand not in self._registers:
            raise Fault(f"{operand} is read before it is written")
        return self._registers[operand].astype(bits_of(size), copy=False)

    def read(self, operand: str, name: str) -> np.ndarray:
        """Return the numbers of a format that a register or a constant holds."""
        if name == "pred":
            if operand in self._registers:
                return self._registers[operand]
            return np.full(len(self.threads), constant(operand, 1) != 0)
        return decoded(self.bits(operand, size_of(name)), name)

    def put(self, register: str, bits: np.ndarray, mask: np.ndarray | None) -> None:
        """Write bits to a register of the threads of a mask."""
        if register == "_":
            return
        if bits.dtype != bool:
            width = 8 if register.startswith("%rd") else 2 if register.startswith("%rs") else 4
            bits = bits.astype(bits_of(width), copy=False)
        if mask is not None:
            before = self._registers.get(register)
            bits = np.where(mask, bits, np.zeros_like(bits) if before is None else before)
        self._registers[register] = np.ascontiguousarray(np.broadcast_to(bits, self.threads.shape))

    def write(self, register: str, numbers: np.ndarray, name: str, mask: np.ndarray | None) -> None:
        """Write numbers of a format to a register."""
        self.put(register, encoded(numbers, name), mask)

    def addresses(self, operand: str, size: int) -> np.ndarray:
        """Return what an operand in brackets points to, from registers of so many bytes."""
        parsed = _ADDRESS.match(operand)
        if parsed is None:
            raise Fault(f"not an address: {operand}")
        first = self.bits(parsed[1], size).astype(np.int64) if parsed[1] else np.zeros(len(self.threads), np.int64)
        return first + int(parsed[2] or 0)

    def load_shared(self, addresses: np.ndarray, size: int, mask: np.ndarray | None = None) -> np.ndarray:
        """Return bytes (threads, size) of shared memory."""
        return self._load(self.shared, addresses, size, mask)

    def store_shared(
        self, addresses: np.ndarray, values: np.ndarray, mask: np.ndarray | None = None, *, fence: bool = True
    ) -> None:
        """Write bytes (threads, size) to shared memory, which a product may read after a fence only."""
        places = self._store(self.shared, addresses, values, mask)
        self.unfenced[places] = fence

    def load_global(self, addresses: np.ndarray, size: int, mask: np.ndarray | None) -> np.ndarray:
        """Return bytes (threads, size) of tensors."""
        return self._load(self.tensors, addresses, size, mask)

    def store_global(self, addresses: np.ndarray, values: np.ndarray, mask: np.ndarray | None) -> None:
        """Write bytes (threads, size) to tensors."""
        self._store(self.tensors, addresses, values, mask)

    def _load(self, memory: Memory, addresses: np.ndarray, size: int, mask: np.ndarray | None) -> np.ndarray:
        threads, who = self.among(mask)
        loaded = np.zeros((len(self.threads), size), np.uint8)
        loaded[threads] = memory.read(memory.places(addresses[threads], size), who)
        return loaded

    def _store(self, memory: Memory, addresses: np.ndarray, values: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
        threads, who = self.among(mask)
        places = memory.places(addresses[threads], values.shape[1])
        memory.write(places, values[threads], who)
        return places
