"""Instructions of the tensor cores.

Formats of the fragments: PTX ISA, "Matrix Fragments for mma" and "Asynchronous Warpgroup Level Matrix Instructions".
"""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

from tests.kernels.cuda.machine.block import Block, operation
from tests.kernels.cuda.machine.formats import bits_of, decoded, size_of
from tests.kernels.cuda.machine.memory import Fault
from tests.kernels.cuda.machine.parse import Instruction, listed
from tests.kernels.cuda.machine.warps import Mask

_SHAPE = re.compile(r"m(\d+)n(\d+)k(\d+)")
# Bits that a layout of shared memory exchanges, by the number that stands for it in a descriptor.
_SWIZZLES = {0: 0, 1: 3, 2: 2, 3: 1}


def _numbers(block: Block, register: str, name: str) -> list[np.ndarray]:
    """Return the numbers of one register, the lower first."""
    bits = block.bits(register, 4)
    if size_of(name) == 4:
        return [decoded(bits, name)]
    return [decoded((bits >> np.uint32(shift)).astype(np.uint16), name) for shift in (0, 16)]


def _left(block: Block, registers: list[str], name: str) -> np.ndarray:
    """Return the factors (warps, 16, columns) that stand in registers."""
    row, column, each = block.lanes // 4, block.lanes % 4, 4 // size_of(name)
    factor = np.zeros((len(block.threads) // 32, 16, 4 * each * len(registers) // 2), np.float64)
    for k, register in enumerate(registers):
        for e, number in enumerate(_numbers(block, register, name)):
            factor[block.warps, row + 8 * (k % 2), each * column + e + 4 * each * (k // 2)] = number
    return factor


def _add(block: Block, products: np.ndarray, targets: list[str], sums: list[str] | None) -> None:
    """Write products (warps, 16, columns), added to sums, as threads hold them."""
    row, column = block.lanes // 4, 2 * (block.lanes % 4)
    for k, target in enumerate(targets):
        value = products[block.warps, row + 8 * (k % 4 // 2), column + 8 * (k // 4) + k % 2]
        if sums is not None:
            value = value + block.read(sums[k], "f32")
        block.write(target, value, "f32", None)


@operation("mma", together=True)
def multiply(block: Block, given: Instruction, mask: Mask) -> None:
    """``D = A B + C`` in every warp."""
    targets, left, right, sums = map(listed, given.operands)
    name = given.words[-2]
    if given.words[2] not in ("m16n8k16", "m16n8k8") or given.words[-1] != "f32":
        raise Fault("unknown shape of a product")
    row, column, each = block.lanes // 4, block.lanes % 4, 4 // size_of(name)
    factor = np.zeros((len(block.threads) // 32, 4 * each * len(right), 8), np.float64)
    for k, register in enumerate(right):
        for e, number in enumerate(_numbers(block, register, name)):
            factor[block.warps, each * column + e + 4 * each * k, row] = number
    _add(block, _left(block, left, name) @ factor, targets, sums)


@operation("wgmma", together=True)
def multiply_beside(block: Block, given: Instruction, mask: Mask) -> None:
    """The same for four warps at a time and factors in shared memory, beside the threads."""
    kind = given.words[0]
    if kind == "commit_group":
        block.products.append([])
    elif kind == "wait_group":
        while len(block.products) > int(given.operands[0]) + 1:
            for finish in block.products.pop(0):
                finish()
    elif kind == "mma_async":
        finish = _product(block, given)
        if block.late:
            block.products[-1].append(finish)
        else:
            finish()
    elif kind != "fence":
        raise Fault("an unknown product")


def _product(block: Block, given: Instruction) -> Callable[[], None]:
    shape = _SHAPE.match(given.words[3])
    name, targets = given.words[-1], listed(given.operands[0])
    _, columns, depth = (int(number) for number in shape.groups())
    _, left, right, added, *options = given.operands
    if [int(option) for option in options[:2]] != [1, 1]:
        raise Fault("negated factors")
    turned = [option == "1" for option in options[2:]] or [False]
    fragments = _left(block, listed(left), name) if left.startswith("{") else None
    lefts = None if fragments is not None else block.bits(left, 8)
    rights = block.bits(right, 8)
    added = block.read(added, "pred")
    if added.any() != added.all():
        raise Fault("threads differ in what is added")

    def finish() -> None:
        products = []
        for first in range(0, len(block.threads), 128):
            group = slice(first, first + 128)
            if fragments is None:
                factor = _stored(block, lefts[group], 64, depth, name, turned[0])
            else:
                factor = fragments[first // 32 : first // 32 + 4].reshape(64, depth)
            other = _stored(block, rights[group], columns, depth, name, turned[-1])
            products.append((factor @ other.T).reshape(4, 16, columns))
        _add(block, np.concatenate(products), targets, targets if added.all() else None)

    return finish


def _stored(block: Block, descriptors: np.ndarray, rows: int, depth: int, name: str, turned: bool) -> np.ndarray:
    """Return a factor (rows, depth) from shared memory; turned, its rows are the contiguous direction."""
    if (descriptors != descriptors[0]).any():
        raise Fault("threads differ in where a factor is")
    descriptor, size = int(descriptors[0]), size_of(name)
    start, leading, stride = ((descriptor >> shift & 0x3FFF) << 4 for shift in (0, 16, 32))
    swizzle = _SWIZZLES[descriptor >> 62 & 3]
    if descriptor >> 49 & 7:
        raise Fault("a factor that does not begin with its pattern")
    r, k = np.arange(rows)[:, None], np.arange(depth)
    unit = 16 // size << swizzle  # numbers beside each other
    if not turned:
        along = k * size if swizzle else k // unit * leading + k % unit * size
        offsets = r % 8 * (unit * size) + r // 8 * stride + along
    else:
        far, near = (leading, stride) if swizzle else (stride, leading)
        offsets = r % unit * size + r // unit * far + k % 8 * (unit * size) + k // 8 * near
    offsets = offsets + start
    offsets ^= offsets >> 3 & ((1 << swizzle) - 1) << 4
    places = (offsets[..., None] + np.arange(size)).reshape(-1, size)
    if places.max() >= len(block.shared.data):
        raise Fault("a factor is outside of shared memory")
    if block.unfenced[places].any():
        raise Fault("reads shared memory that was not fenced")
    # It runs beside all warps: nobody may have written since the last barrier.
    loaded = block.shared.read(places, block.beside())
    numbers = np.ascontiguousarray(loaded).view(bits_of(size))[:, 0]
    return decoded(numbers, name).astype(np.float64).reshape(rows, depth)
