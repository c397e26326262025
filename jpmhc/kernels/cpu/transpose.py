"""Transposes of four by four numbers between two arrays, in the processor's vectors.

Between tokens and tiles numbers change places as in a transpose. Copied one by one they cost more than the arithmetic
of the smaller maps; the compiler does not find the shuffles by itself, so they are written in its own language.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

BLOCK = 4


@intrinsic
def transpose(_context, source, row, column, target, to_row, to_column):  # type: ignore[no-untyped-def]
    """Set ``target[to_row + a, to_column + b] = source[row + b, column + a]`` for a and b below `BLOCK`.

    The arrays are contiguous, of two dimensions and one dtype; nobody checks that the block lies inside.
    """

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        of_source, _, _, of_target, _, _ = signature.args
        source, row, column, target, to_row, to_column = arguments
        item = context.get_data_type(of_source.dtype)
        vector, bytes_an_item = ir.VectorType(item, BLOCK), context.get_abi_sizeof(item)

        def row_of(kind: Any, array: Any, row: Any, column: Any, k: int) -> Any:
            """Pointer to a vector at row + k of an array."""
            place = [builder.add(row, ir.Constant(row.type, k)), column]
            holder = context.make_array(kind)(context, builder, array)
            pointer = cgutils.get_item_pointer(context, builder, kind, holder, place, wraparound=False)
            return builder.bitcast(pointer, vector.as_pointer())

        def mixed(first: Any, second: Any, *places: int) -> Any:
            """Vector of numbers of two others, whose places count from 0 and from `BLOCK`."""
            integer = ir.IntType(32)
            mask = ir.Constant(ir.VectorType(integer, BLOCK), [ir.Constant(integer, place) for place in places])
            return builder.shuffle_vector(first, second, mask)

        rows = []
        for k in range(BLOCK):
            rows.append(builder.load(row_of(of_source, source, row, column, k)))
            rows[-1].align = bytes_an_item  # tokens begin anywhere
        low, high = (0, 4, 1, 5), (2, 6, 3, 7)
        pairs = [(mixed(rows[0], rows[1], *half), mixed(rows[2], rows[3], *half)) for half in (low, high)]
        columns = [mixed(*pair, *half) for pair in pairs for half in ((0, 1, 4, 5), (2, 3, 6, 7))]
        for k, value in enumerate(columns):
            stored = builder.store(value, row_of(of_target, target, to_row, to_column, k))
            stored.align = bytes_an_item
        return context.get_dummy_value()

    return types.void(source, row, column, target, to_row, to_column), generate
