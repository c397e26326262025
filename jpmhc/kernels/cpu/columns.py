"""Products of matrices of few columns, one matrix at a time: a row of it is one vector of the processor, or a few.

A product of a row with a matrix adds up rows of the matrix, each times one number, so nothing changes places. A row
that vectors do not fill is covered by two that overlap, whose common numbers come out alike. Whoever changes this file
must remove ``__pycache__``: Numba looks at the file of the function that it keeps alone.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from jpmhc.kernels.cpu.vectors import WIDTH, Array, Value, counted, load, number, plus_product, spread, store


@intrinsic
def tangent(_context, x, e, result, token, columns, straight, crossed, whole):  # type: ignore[no-untyped-def]
    """Set ``result = whole e + x (straight S + crossed S^T)`` with ``S = x^T e``, of one token's matrices.

    Arrays of shape (tokens, numbers of a matrix); ``columns`` is an extent, a weight None stands for zero.
    """

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        kinds = signature.args
        held = [Array(context, builder, kinds[k], arguments[k]) for k in range(3)]
        point, vector, made = (array.row(arguments[3]) for array in held)
        item, length, p = held[0].item, held[0].shape[1], len(kinds[4])
        weights = [None if isinstance(kinds[k], types.NoneType) else arguments[k] for k in (5, 6, 7)]
        wide, starts = _cover(p, item)
        zero = ir.Constant(item, 0.0)

        def row(matrix: Value, place: Value) -> list[Value]:
            return [load(builder, matrix, builder.add(place, number(start)), wide) for start in starts]

        def shares(matrix: Value, place: Value) -> list[Value]:
            """Every number of a row, all over a vector."""
            numbers = [load(builder, matrix, builder.add(place, number(a)), item) for a in range(p)]
            return [spread(builder, one, wide) for one in numbers]

        def gather(place: Value, mixed: list[Value]) -> list[Value]:
            for weight, left, right in ((weights[0], point, vector), (weights[1], vector, point)):
                if weight is not None:
                    scale = spread(builder, weight, wide)
                    parts = [builder.fmul(scale, part) for part in row(right, place)]
                    pairs = [(share, part) for share in shares(left, place) for part in parts]
                    mixed = [plus_product(builder, m, *pair) for m, pair in zip(mixed, pairs, strict=True)]
            return mixed

        def scatter(place: Value, mixed: list[Value]) -> list[Value]:
            totals = [spread(builder, zero, wide)] * len(starts)
            if weights[2] is not None:
                scale = spread(builder, weights[2], wide)
                totals = [builder.fmul(scale, part) for part in row(vector, place)]
            for a, share in enumerate(shares(point, place)):
                parts = mixed[a * len(starts) : (a + 1) * len(starts)]
                totals = [plus_product(builder, t, share, part) for t, part in zip(totals, parts, strict=True)]
            for start, total in zip(starts, totals, strict=True):
                store(builder, total, made, builder.add(place, number(start)))
            return mixed

        nothing = [spread(builder, zero, wide)] * (p * len(starts))
        mixed = counted(builder, number(0), length, p, nothing, gather)
        counted(builder, number(0), length, p, mixed, scatter)
        return context.get_dummy_value()

    return types.void(x, e, result, token, columns, straight, crossed, whole), generate


def _cover(p: int, item: ir.Type) -> tuple[ir.Type, list[int]]:
    """Return the type of the vectors that cover a row of p numbers, and where they begin."""
    lanes = WIDTH // (4 if isinstance(item, ir.FloatType) else 8)
    while lanes > p:
        lanes //= 2
    kind = ir.VectorType(item, lanes) if lanes > 1 else item
    return kind, [*range(0, p - lanes, lanes), p - lanes]
