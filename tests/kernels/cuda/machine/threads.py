"""Instructions that a thread takes alone, on numbers in its registers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tests.kernels.cuda.machine.block import Block, operation
from tests.kernels.cuda.machine.formats import bits_of, decoded, encoded, size_of
from tests.kernels.cuda.machine.memory import Fault
from tests.kernels.cuda.machine.parse import Instruction, listed

Mask = np.ndarray | None
_FUNCTIONS: dict[str, Callable[..., np.ndarray]] = {
    "add": np.add,
    "sub": np.subtract,
    "neg": np.negative,
    "abs": np.abs,
    "min": np.fmin,
    "max": np.fmax,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "not": np.invert,
    "rcp": np.reciprocal,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "ex2": np.exp2,
    "lg2": np.log2,
    "copysign": lambda sign, x: np.copysign(x, sign),
}
_UNORDERED = {"equ": "eq", "neu": "ne", "ltu": "lt", "leu": "le", "gtu": "gt", "geu": "ge"}
_COMPARISONS = {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
    "lo": np.less, "ls": np.less_equal, "hi": np.greater, "hs": np.greater_equal,
}  # fmt: skip
_TO_INTEGER = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}


@operation(*_FUNCTIONS)
def apply(block: Block, given: Instruction, mask: Mask) -> None:
    """One function of all operands but the first."""
    function = _FUNCTIONS[given.name]
    if "NaN" in given.words:
        function = {"min": np.minimum, "max": np.maximum}[given.name]
    _apply(block, given, mask, function)


def _apply(block: Block, given: Instruction, mask: Mask, function: Callable[..., np.ndarray]) -> None:
    target, *operands = given.operands
    name = given.words[-1]
    if not name.endswith("x2"):
        block.write(target, function(*(block.read(operand, name) for operand in operands)), name, mask)
        return
    half = name.removesuffix("x2")
    pairs = [np.ascontiguousarray(block.bits(operand, 4)).view(np.uint16) for operand in operands]
    halves = encoded(function(*(decoded(pair, half) for pair in pairs)), half)
    block.put(target, np.ascontiguousarray(halves).view(np.uint32), mask)


@operation("fma")
def fma(block: Block, given: Instruction, mask: Mask) -> None:
    """``a b + c``, rounded once (or, in float64, twice)."""

    def fused(*numbers: np.ndarray) -> np.ndarray:
        a, b, c = (number.astype(np.float64) for number in numbers)
        return (a * b + c).astype(numbers[0].dtype)

    _apply(block, given, mask, fused)


@operation("mul", "mad")
def multiply(block: Block, given: Instruction, mask: Mask) -> None:
    """Product and sum, of integers in their own width, twice that, or its upper half."""
    name = given.words[-1]
    if name[0] not in "us":
        _apply(block, given, mask, np.multiply)
        return
    a, b = (block.read(operand, name) for operand in given.operands[1:3])
    if "hi" in given.words:
        product = np.array([int(x) * int(y) >> 8 * a.itemsize for x, y in zip(a, b, strict=True)]).astype(a.dtype)
    elif "wide" in given.words:
        name = f"{name[0]}{16 * a.itemsize}"
        wide = decoded(np.zeros(0, bits_of(2 * a.itemsize)), name).dtype
        product = a.astype(wide) * b.astype(wide)
    else:
        product = a * b
    if given.name == "mad":
        product = product + block.read(given.operands[3], name)
    block.write(given.operands[0], product, name, mask)


@operation("div", "rem")
def divide(block: Block, given: Instruction, mask: Mask) -> None:
    """Quotient, of integers towards zero, or the remainder."""
    name = given.words[-1]
    if name[0] == "f":
        _apply(block, given, mask, np.divide)
        return

    def quotient(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        b = np.where(b == 0, 1, b).astype(a.dtype)
        rest = np.fmod(a, b)
        return rest if given.name == "rem" else (a - rest) // b

    _apply(block, given, mask, quotient)


@operation("shl", "shr")
def shift(block: Block, given: Instruction, mask: Mask) -> None:
    """Shift; from the width of the number on nothing is left but the sign."""
    name = given.words[-1]
    number, by = block.read(given.operands[1], name), block.bits(given.operands[2], 4).astype(np.int64)
    within = np.minimum(by, 8 * number.itemsize - 1).astype(number.dtype)
    if given.name == "shl":
        shifted = np.where(by < 8 * number.itemsize, number << within, 0)
    else:
        shifted = np.where((by < 8 * number.itemsize) | (number < 0), number >> within, 0)
    block.write(given.operands[0], shifted, name, mask)


@operation("bfe")
def extract(block: Block, given: Instruction, mask: Mask) -> None:
    """Some of the bits, the first of which is the sign if there is one."""
    name = given.words[-1]
    size = size_of(name)
    first, count = int(given.operands[2]), int(given.operands[3])
    number = block.bits(given.operands[1], size)
    above = (number << bits_of(size)(8 * size - first - count)).view(block.read(given.operands[1], name).dtype)
    block.write(given.operands[0], above >> (8 * size - count), name, mask)


@operation("prmt")
def permute(block: Block, given: Instruction, mask: Mask) -> None:
    """Four of the eight bytes of two registers, or their signs."""
    _, a, b, chosen = given.operands
    pool = np.stack([block.bits(a, 4), block.bits(b, 4)], axis=1).view(np.uint8)
    chosen = block.bits(chosen, 4)[:, None] >> np.arange(0, 16, 4, dtype=np.uint32) & 15
    taken = np.take_along_axis(pool, (chosen & 7).astype(np.int64), axis=1)
    signs = np.where(taken & 128, np.uint8(255), np.uint8(0))
    block.put(given.operands[0], np.ascontiguousarray(np.where(chosen & 8, signs, taken)).view(np.uint32)[:, 0], mask)


@operation("selp")
def select(block: Block, given: Instruction, mask: Mask) -> None:
    """One of two by a predicate."""
    target, yes, no, condition = given.operands
    size = size_of(given.words[-1])
    block.put(target, np.where(block.read(condition, "pred"), block.bits(yes, size), block.bits(no, size)), mask)


@operation("setp")
def compare(block: Block, given: Instruction, mask: Mask) -> None:
    """A predicate of two numbers, joined with another one where there is one."""
    name, relation = given.words[-1], given.words[0]
    a, b = (block.read(operand, name) for operand in given.operands[1:3])
    unordered = (a != a) | (b != b)
    if relation in ("num", "nan"):
        found = unordered == (relation == "nan")
    elif relation in _UNORDERED:
        found = _COMPARISONS[_UNORDERED[relation]](a, b) | unordered
    else:
        found = _COMPARISONS[relation](a, b) & ~unordered
    if len(given.operands) == 4:
        other = block.read(given.operands[3].lstrip("!"), "pred") ^ given.operands[3].startswith("!")
        found = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}[given.words[1]](found, other)
    block.put(given.operands[0], found, mask)


@operation("cvt")
def convert(block: Block, given: Instruction, mask: Mask) -> None:
    """From one format to another; two numbers to a pair of halves."""
    target, source = given.words[-2:]
    numbers = [block.read(operand, source) for operand in given.operands[1:]]
    if target.endswith("x2"):
        upper, lower = (encoded(number, target.removesuffix("x2")).astype(np.uint32) for number in numbers)
        block.put(given.operands[0], upper << np.uint32(16) | lower, mask)
        return
    (number,) = numbers
    if target[0] in "su":
        if number.dtype.kind == "f":
            number = next(_TO_INTEGER[word] for word in given.words if word in _TO_INTEGER)(number)
        if target[0] == "s":  # a register that is wider keeps the sign
            number = number.astype(decoded(np.zeros(0, bits_of(size_of(target))), target).dtype).astype(np.int64)
            block.put(given.operands[0], number.view(np.uint64), mask)
            return
    block.write(given.operands[0], number, target, mask)


@operation("mov")
def move(block: Block, given: Instruction, mask: Mask) -> None:
    """A register to another, cut into parts or put together of them."""
    target, source = given.operands
    name = given.words[-1]
    if name == "pred":
        block.put(target, block.read(source, name), mask)
    elif target.startswith("{"):
        parts = listed(target)
        whole = np.ascontiguousarray(block.bits(source, size_of(name)))
        pieces = whole.view(bits_of(size_of(name) // len(parts))).reshape(len(whole), len(parts))
        for part, piece in zip(parts, pieces.T, strict=True):
            block.put(part, piece, mask)
    elif source.startswith("{"):
        parts = listed(source)
        pieces = np.stack([block.bits(part, size_of(name) // len(parts)) for part in parts], axis=1)
        block.put(target, pieces.view(bits_of(size_of(name)))[:, 0], mask)
    else:
        block.put(target, block.bits(source, size_of(name)), mask)


@operation("ld", "st")
def access(block: Block, given: Instruction, mask: Mask) -> None:
    """Load or store one to four numbers a thread."""
    size, space = size_of(given.words[-1]), given.words[0]
    if space == "param":
        value = block.parameters[given.operands[1].strip("[]")]
        block.put(given.operands[0], np.full(len(block.threads), value, np.int64).view(np.uint64), mask)
        return
    if space not in ("global", "shared"):
        raise Fault(f"no memory is called {space}")
    numbers, where = given.operands if given.name == "ld" else given.operands[::-1]
    registers = listed(numbers)
    addresses = block.addresses(where, 8 if space == "global" else 4)
    if given.name == "st":
        values = np.stack([block.bits(register, size) for register in registers], axis=1).view(np.uint8)
        (block.store_global if space == "global" else block.store_shared)(addresses, values, mask)
        return
    loaded = (block.load_global if space == "global" else block.load_shared)(addresses, size * len(registers), mask)
    for register, piece in zip(registers, loaded.view(bits_of(size)).T, strict=True):
        block.put(register, piece, mask)
