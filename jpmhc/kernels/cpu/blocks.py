"""Products of matrices that the nearer caches hold, as they lie in memory: blocks of the result stay in registers.

A library first copies its arguments into an order of its own, and reads and writes the result once more for every sum
around the product. Whoever changes this file must remove ``__pycache__``: Numba looks at the file of the function that
it keeps alone.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from jpmhc.kernels.cpu.compile import part
from jpmhc.kernels.cpu.vectors import WIDTH, Array, Value, counted, load, number, plus_product, spread, store


def _multiplying(rows: int, across: int) -> Any:
    @intrinsic
    def multiply(_context, c, alpha, a, b, beta, d, i, j):  # type: ignore[no-untyped-def]
        """``c = alpha a b + beta d`` in a block at i and j, d None for nothing; rows of all but a are contiguous."""

        def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
            kinds = signature.args
            made, left, right = (Array(context, builder, kinds[k], arguments[k]) for k in (0, 2, 3))
            lanes = WIDTH // (4 if isinstance(made.item, ir.FloatType) else 8)
            wide = ir.VectorType(made.item, lanes)
            above = [builder.add(arguments[6], number(r)) for r in range(rows)]
            beside = [builder.add(arguments[7], number(lanes * s)) for s in range(across)]

            def step(k: Value, totals: list[Value]) -> list[Value]:
                values = [load(builder, right.row(k), place, wide) for place in beside]
                shares = [spread(builder, builder.load(left.at(r, k)), wide) for r in above]
                pairs = [(share, value) for share in shares for value in values]
                return [plus_product(builder, total, *pair) for total, pair in zip(totals, pairs, strict=True)]

            zero = ir.Constant(wide, [ir.Constant(made.item, 0.0)] * lanes)
            totals = counted(builder, number(0), right.shape[0], 1, [zero] * (rows * across), step)
            scale = spread(builder, arguments[1], wide)
            for total, (r, place) in zip(totals, ((r, place) for r in above for place in beside), strict=True):
                if isinstance(kinds[5], types.NoneType):
                    value = builder.fmul(scale, total)
                else:
                    other = load(builder, Array(context, builder, kinds[5], arguments[5]).row(r), place, wide)
                    value = plus_product(
                        builder, builder.fmul(scale, total), spread(builder, arguments[4], wide), other
                    )
                store(builder, value, made.row(r), place)
            return context.get_dummy_value()

        return types.void(c, alpha, a, b, beta, d, i, j), generate

    return multiply


# Rows and vectors of a block: as many sums as there are registers, and at least as many as a sum waits for itself.
_SIZES = ((4, 4), (8, 2), (8, 1)) if WIDTH == 64 else ((4, 2), (4, 2), (8, 1))
_multiply_wide, _multiply_half, _multiply_one = (_multiplying(*size) for size in _SIZES)


@part
def multiplied(c, alpha, a, b, beta, d):  # type: ignore[no-untyped-def]
    """``c = alpha a b + beta d`` of matrices with eight rows and a vector a row at least; c is none of the others.

    Blocks at the lower and at the right edge overlap those before them, and come out alike.
    """
    n, m = c.shape
    lanes = WIDTH // c.itemsize
    wide, half = _SIZES[0], _SIZES[1]
    j = 0
    while m - j >= wide[1] * lanes:
        for i in range(0, n, wide[0]):
            _multiply_wide(c, alpha, a, b, beta, d, min(i, n - wide[0]), j)
        j += wide[1] * lanes
    while m - j >= half[1] * lanes:
        for i in range(0, n, half[0]):
            _multiply_half(c, alpha, a, b, beta, d, min(i, n - half[0]), j)
        j += half[1] * lanes
    while j < m:
        for i in range(0, n, 8):
            _multiply_one(c, alpha, a, b, beta, d, min(i, n - 8), min(j, m - lanes))
        j += lanes
