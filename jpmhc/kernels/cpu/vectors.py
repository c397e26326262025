"""Loops over rows of numbers in the processor's vectors, written in the compiler's own language.

Left to itself the compiler compares every pair of pointers before a loop that reads and writes several rows, and where
there are many it goes on number by number: a mixer's product with four streams took ten times longer than here. These
are the pieces that such loops are put together from, inside the intrinsics of `rows`. A vector is as wide as the
processor has them; what is left over at the end of a row is done number by number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import binding, ir
from numba.core import cgutils

Value = Any
"""A value of the program that is being written."""
_INDEX = ir.IntType(64)


def _bytes_a_vector() -> int:
    try:
        features = binding.get_host_cpu_features()
    except RuntimeError:  # llvmlite does not know this processor
        return 16
    return 64 if features.get("avx512f") else 32 if features.get("avx") else 16


WIDTH = _bytes_a_vector()
"""Bytes of a vector: 64 with 32 registers for them, 32 or 16."""


def number(value: int) -> Value:
    """Return an index."""
    return ir.Constant(_INDEX, value)


class Array:
    """An array that the program works on, whose last dimension is contiguous.

    Parameters
    ----------
    context, builder, kind, value : object
        Of Numba: the target, the program so far, the array's type and the array.
    """

    def __init__(self, context: Any, builder: ir.IRBuilder, kind: Any, value: Value) -> None:
        self._builder = builder
        held = context.make_array(kind)(context, builder, value)
        self._data = builder.ptrtoint(held.data, _INDEX)
        self._strides = cgutils.unpack_tuple(builder, held.strides, kind.ndim)
        self.shape: Sequence[Value] = cgutils.unpack_tuple(builder, held.shape, kind.ndim)
        self.item = context.get_data_type(kind.dtype)

    def row(self, index: Value = None) -> Value:
        """Return the address of the row at an index, of the only one where the array has one dimension."""
        return self.at() if len(self._strides) == 1 else self.at(index)

    def seat(self, i: Value, j: Value) -> Value:
        """Return the address of the number at i and j, at j where the array has one dimension."""
        return self.at(j) if len(self._strides) == 1 else self.at(i, j)

    def at(self, *place: Value) -> Value:
        """Return the address of a number, or with fewer indices than dimensions of the first of those there."""
        address = self._data
        for index, stride in zip(place, self._strides, strict=False):
            address = self._builder.add(address, self._builder.mul(index, stride))
        return self._builder.inttoptr(address, self.item.as_pointer())


def load(builder: ir.IRBuilder, row: Value, place: Value, kind: ir.Type) -> Value:
    """Read a number or vector of the type ``kind`` at a place in a row."""
    found = builder.load(_address(builder, row, place, kind))
    found.align = _item_bytes(kind)
    return found


def store(builder: ir.IRBuilder, value: Value, row: Value, place: Value, past: bool = False) -> None:
    """Write a number or vector at a place in a row; a vector may go past the caches, to an address that is a line's."""
    written = builder.store(value, _address(builder, row, place, value.type))
    written.align = _item_bytes(value.type)
    if past and isinstance(value.type, ir.VectorType):
        written.align = WIDTH
        written.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)]))


def spread(builder: ir.IRBuilder, value: Value, kind: ir.Type) -> Value:
    """Return the vector of the type ``kind`` that holds one number everywhere, or the number if that is asked for."""
    if not isinstance(kind, ir.VectorType):
        return value
    unset, integer = ir.Constant(kind, ir.Undefined), ir.IntType(32)
    first = builder.insert_element(unset, value, ir.Constant(integer, 0))
    return builder.shuffle_vector(first, unset, ir.Constant(ir.VectorType(integer, kind.count), None))


def plus_product(builder: ir.IRBuilder, total: Value, a: Value, b: Value) -> Value:
    """Return ``total + a b``, in one instruction where the processor has it."""
    return _call(builder, "fmuladd", total.type, [a, b, total])


def absolute(builder: ir.IRBuilder, value: Value) -> Value:
    """Return a number or vector without its signs."""
    return _call(builder, "fabs", value.type, [value])


def counted(
    builder: ir.IRBuilder,
    start: Value,
    stop: Value,
    step: int,
    carried: Sequence[Value],
    body: Callable[[Value, list[Value]], Sequence[Value]],
) -> list[Value]:
    """Write ``for k in range(start, stop, step): carried = body(k, carried)`` and return what is carried at the end."""
    before = builder.block
    head, inside, after = (builder.append_basic_block(name) for name in ("head", "inside", "after"))
    builder.branch(head)
    builder.position_at_end(head)
    k = builder.phi(_INDEX)
    now = [builder.phi(value.type) for value in carried]
    for phi, value in zip([k, *now], [start, *carried], strict=True):
        phi.add_incoming(value, before)
    builder.cbranch(builder.icmp_signed("<", k, stop), inside, after)
    builder.position_at_end(inside)
    following = [*body(k, now)]
    following.insert(0, builder.add(k, number(step)))
    for phi, value in zip([k, *now], following, strict=True):
        phi.add_incoming(value, builder.block)
    builder.branch(head)
    builder.position_at_end(after)
    return now


def along(
    builder: ir.IRBuilder,
    length: Value,
    item: ir.Type,
    body: Callable[[list[Value], ir.Type, list[Value]], Sequence[Value]],
    *,
    sums: int = 0,
    unroll: int = 1,
) -> list[Value]:
    """Write a loop along rows and return its sums.

    Parameters
    ----------
    length : Value
        Of the rows.
    item : ir.Type
        Type of their numbers.
    body : callable
        From places in the rows, the type to work in there (a vector's, or `item` at the end of the rows) and the sums
        so far, ``sums`` for every place, to the sums with what is there. Everything it makes of the places is to be
        made place by place.
    sums : int
        How many it keeps, each for every number of a vector until the end.
    unroll : int
        Places of a step, a power of two; results that wait for each other should be eight or more.
    """
    if unroll.bit_count() != 1:  # the places of whole steps are found by a mask
        raise ValueError(f"unroll: expected a power of two, got {unroll}")
    lanes = WIDTH // _item_bytes(item)
    vector = ir.VectorType(item, lanes)
    whole = builder.and_(length, number(-lanes * unroll))
    nothing = ir.Constant(vector, [ir.Constant(item, 0.0)] * lanes)

    def wide(k: Value, carried: list[Value]) -> Sequence[Value]:
        return body([builder.add(k, number(lanes * u)) for u in range(unroll)], vector, carried)

    parts = counted(builder, number(0), whole, lanes * unroll, [nothing] * (sums * unroll), wide)
    lines = []
    for part, *others in (parts[i::sums] for i in range(sums)):
        for other in others:
            part = builder.fadd(part, other)
        lines.append(part)
    totals = _totals(builder, lines)
    return counted(builder, whole, length, 1, totals, lambda k, carried: body([k], item, carried))


def _totals(builder: ir.IRBuilder, vectors: list[Value]) -> list[Value]:
    """Return the sum of every vector's numbers; two vectors at a time become one, as long as there are two."""
    integer = ir.IntType(32)

    def chosen(a: Value, b: Value, places: list[int]) -> Value:
        mask = ir.Constant(ir.VectorType(integer, len(places)), [ir.Constant(integer, place) for place in places])
        return builder.shuffle_vector(a, b, mask)

    # Every vector holds `held` sums, each as a run of numbers that are still to be added.
    held, lanes, total = 1, vectors[0].type.count if vectors else 1, len(vectors)
    while held < lanes:
        run = lanes // held // 2
        halves = [[h * 2 * run + offset + k for h in range(held) for k in range(run)] for offset in (0, run)]
        if len(vectors) > 1:
            if len(vectors) % 2:
                vectors = [*vectors, ir.Constant(vectors[0].type, ir.Undefined)]
            pairs = zip(vectors[::2], vectors[1::2], strict=True)
            vectors = [
                builder.fadd(*(chosen(a, b, half + [lanes + place for place in half]) for half in halves))
                for a, b in pairs
            ]
            held *= 2
        else:
            vectors = [builder.fadd(*(chosen(vectors[0], vectors[0], half) for half in halves))]
            lanes //= 2
    return [builder.extract_element(vectors[k // held], ir.Constant(integer, k % held)) for k in range(total)]


def _call(builder: ir.IRBuilder, name: str, kind: ir.Type, arguments: Sequence[Value]) -> Value:
    lanes = f"v{kind.count}" if isinstance(kind, ir.VectorType) else ""
    full = f"llvm.{name}.{lanes}f{8 * _item_bytes(kind)}"
    signature = ir.FunctionType(kind, [kind] * len(arguments))
    return builder.call(cgutils.get_or_insert_function(builder.module, signature, full), arguments)


def _address(builder: ir.IRBuilder, row: Value, place: Value, kind: ir.Type) -> Value:
    return builder.bitcast(builder.gep(row, [place]), kind.as_pointer())


def _item_bytes(kind: ir.Type) -> int:
    item = kind.element if isinstance(kind, ir.VectorType) else kind
    return 4 if isinstance(item, ir.FloatType) else 8
