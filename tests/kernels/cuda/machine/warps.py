"""Instructions that threads take together: shuffles, barriers, and what moves tiles of shared memory."""

from __future__ import annotations

from functools import cache
from importlib.metadata import version

import numpy as np

from tests.kernels.cuda.machine.block import Block, operation
from tests.kernels.cuda.machine.memory import Fault
from tests.kernels.cuda.machine.parse import Instruction, listed

Mask = np.ndarray | None
_REDUCTIONS = {"max": np.max, "min": np.min, "add": np.sum, "and": np.bitwise_and.reduce, "or": np.bitwise_or.reduce}


@cache
def copies_are_fenced() -> bool:
    """Whether Triton fences what ``cp.async`` brought: before 3.7 it left that to the assembler (Triton PR 9610)."""
    return tuple(map(int, version("triton").split(".")[:2])) >= (3, 7)


@operation("shfl", together=True)
def shuffle(block: Block, given: Instruction, mask: Mask) -> None:
    """A register of another lane."""
    target, source, by, most, _ = given.operands
    if int(most) != 31:
        raise Fault("parts of a warp")
    by = block.bits(by, 4).astype(np.int64)
    moves = {"bfly": lambda: block.lanes ^ by, "idx": lambda: by & 31, "down": lambda: block.lanes + by}
    lane = moves[given.words[1]]()
    lane = np.where(lane < 32, lane, block.lanes)
    block.put(target, block.bits(source, 4)[32 * block.warps + lane], None)


@operation("redux", together=True)
def reduce(block: Block, given: Instruction, mask: Mask) -> None:
    """One number of a warp's."""
    numbers = block.read(given.operands[1], given.words[-1]).reshape(-1, 32)
    found = _REDUCTIONS[given.words[1]](numbers, axis=1).astype(numbers.dtype)
    block.write(given.operands[0], np.repeat(found, 32), given.words[-1], None)


@operation("bar", "barrier", together=True)
def barrier(block: Block, given: Instruction, mask: Mask) -> None:
    """Wait for all warps, or, which says nothing here, for the threads of one."""
    if given.words[0] == "warp":
        return
    if len(given.operands) > 1:
        raise Fault("a barrier of some warps")
    block.meet()


@operation("fence", together=True)
def fence(block: Block, given: Instruction, mask: Mask) -> None:
    """Let products see what was written to shared memory."""
    if "proxy" in given.words:
        block.unfenced[:] = False


@operation("cp")
def copy(block: Block, given: Instruction, mask: Mask) -> None:
    """From global to shared memory, beside the threads; nothing is there before it is waited for."""
    if mask is not None and "group" in given.words[1]:
        raise Fault("not all threads are here")
    if given.words[1] == "commit_group":
        block.copies.append([])
    elif given.words[1] in ("wait_group", "wait_all"):
        while len(block.copies) > (int(given.operands[0]) if given.operands else 0) + 1:
            for land in block.copies.pop(0):
                land()
    elif given.words[:2] == ("async", "ca") or given.words[:2] == ("async", "cg"):
        _copy(block, given, mask)
    else:
        raise Fault("an unknown way to copy")


def _copy(block: Block, given: Instruction, mask: Mask) -> None:
    size = int(given.operands[2], 0)
    there = np.ones(len(block.threads), bool) if mask is None else mask
    taken = block.read(given.operands[3], "s32") if len(given.operands) > 3 else np.full(len(there), size)
    if not np.isin(taken[there], (0, size)).all():
        raise Fault("copies in part")
    values = block.load_global(block.addresses(given.operands[1], 8), size, there & (taken != 0))
    targets = block.addresses(given.operands[0], 4)
    threads, who = block.among(mask)
    places = block.shared.places(targets[threads], size)
    block.shared.claim(places, who)
    block.shared.coming[places] = True

    def land() -> None:
        block.shared.coming[places] = False
        block.store_shared(targets, values, mask, fence=copies_are_fenced())

    block.copies[-1].append(land)


@operation("ldmatrix", "stmatrix", together=True)
def move_tiles(block: Block, given: Instruction, mask: Mask) -> None:
    """Tiles of 8 x 8 halves, whose rows stand where 8 lanes of a warp say."""
    loads = given.name == "ldmatrix"
    numbers, where = given.operands if loads else given.operands[::-1]
    addresses = block.addresses(where, 4)
    row, first = block.lanes // 4, 2 * (block.lanes % 4)
    for tile, register in enumerate(listed(numbers)):
        rows = addresses[32 * block.warps[:, None] + 8 * tile + np.arange(8)]
        # A thread has two numbers of a row or, turned, of a column.
        places = [(first, row), (first + 1, row)] if "trans" in given.words else [(row, first)]
        size = 4 // len(places)
        targets = [rows[block.threads, i] + 2 * j for i, j in places]
        if loads:
            pieces = [block.load_shared(target, size) for target in targets]
            block.put(register, np.concatenate(pieces, axis=1).view(np.uint32)[:, 0], None)
        else:
            values = np.ascontiguousarray(block.bits(register, 4)).view(np.uint8).reshape(-1, 4)
            for k, target in enumerate(targets):
                block.store_shared(target, values[:, size * k : size * (k + 1)])
