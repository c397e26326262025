"""Sums of rows and products between them, several rows at a time, as parts of compiled functions.

Rows are contiguous; they, their factors and results are of one dtype, and nobody checks their sizes. Whoever changes
this file must remove ``__pycache__``: Numba looks at the file of the function that it keeps alone.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from jpmhc.kernels.cpu.compile import summing_part
from jpmhc.kernels.cpu.vectors import WIDTH, Array, Value, along, counted, load, number, plus_product, spread, store

# Bytes of rows of which four stay in the innermost cache, while others go by.
_ROW = 4096
STRETCH = 64
"""Numbers of a row of which so many stay there as a projection has."""


def _mixing(block: int, unroll: int, past: bool = False) -> Any:
    @intrinsic
    def mix(_context, out, first, rows, factors, y, post):  # type: ignore[no-untyped-def]
        """``out_j = sum_i factors_ji rows_i + post_j y`` for ``block`` rows from the first on, y None for zero."""

        def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
            kinds = signature.args
            made, given, shares = (Array(context, builder, kinds[k], arguments[k]) for k in (0, 2, 3))
            places = _from(builder, arguments[1], block)
            start: tuple[Array, Array] | None = None
            if not isinstance(kinds[4], types.NoneType):
                start = tuple(Array(context, builder, kinds[k], arguments[k]) for k in (4, 5))  # type: ignore[assignment]

            def body(where: list[Value], kind: ir.Type, _sums: list[Value]) -> list[Value]:
                def add(i: Value, totals: list[Value]) -> list[Value]:
                    values = [load(builder, given.row(i), k, kind) for k in where]
                    of_row = [spread(builder, builder.load(shares.seat(j, i)), kind) for j in places]
                    pairs = [(share, value) for share in of_row for value in values]
                    return [plus_product(builder, total, *pair) for total, pair in zip(totals, pairs, strict=True)]

                if start is None:
                    totals = [_zero(made, kind)] * (block * len(where))
                else:
                    values = [load(builder, start[0].row(), k, kind) for k in where]
                    of_row = [spread(builder, builder.load(start[1].at(j)), kind) for j in places]
                    totals = [builder.fmul(share, value) for share in of_row for value in values]
                totals = counted(builder, number(0), given.shape[0], 1, totals, add)
                for total, (j, k) in zip(totals, ((j, k) for j in places for k in where), strict=True):
                    store(builder, total, made.row(j), k, past)
                return []

            along(builder, made.shape[-1], made.item, body, unroll=unroll)
            return context.get_dummy_value()

        return types.void(out, first, rows, factors, y, post), generate

    return mix


def _multiplying(block: tuple[int, int], unroll: int) -> Any:
    @intrinsic
    def multiply(_context, out, a, i, b, j, more):  # type: ignore[no-untyped-def]
        """``out_ij = a_i . b_j`` for a block of rows of both from i and j on, added to what is there if ``more``."""

        def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
            made, left, right = (Array(context, builder, signature.args[k], arguments[k]) for k in (0, 1, 3))
            above, beside = (_from(builder, arguments[k], size) for k, size in zip((2, 4), block, strict=True))

            def body(where: list[Value], kind: ir.Type, sums: list[Value]) -> list[Value]:
                found = []
                for u, k in enumerate(where):
                    of_left = [load(builder, left.row(p), k, kind) for p in above]
                    of_right = [load(builder, right.row(q), k, kind) for q in beside]
                    pairs = [(p, q) for p in of_left for q in of_right]
                    found += [plus_product(builder, sums[u * len(pairs) + s], *pair) for s, pair in enumerate(pairs)]
                return found

            sums = along(builder, left.shape[-1], left.item, body, sums=block[0] * block[1], unroll=unroll)
            for total, seat in zip(sums, (made.seat(p, q) for p in above for q in beside), strict=True):
                before = builder.select(arguments[5], builder.load(seat), ir.Constant(made.item, 0.0))
                builder.store(builder.fadd(before, total), seat)
            return context.get_dummy_value()

        return types.void(out, a, i, b, j, more), generate

    return multiply


def _weighing(past: bool) -> Any:
    @intrinsic
    def weigh(_context, out, rows, factors):  # type: ignore[no-untyped-def]
        """``out = sum_q factors_q rows_q`` of tuples; a row None is zero, a factor None one. `out` may be a row."""

        def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
            made = Array(context, builder, signature.args[0], arguments[0])
            values, shares = (cgutils.unpack_tuple(builder, arguments[k]) for k in (1, 2))
            terms = [
                (Array(context, builder, kind, value).row(), None if isinstance(of_share, types.NoneType) else share)
                for kind, value, of_share, share in zip(
                    signature.args[1].types, values, signature.args[2].types, shares, strict=True
                )
                if not isinstance(kind, types.NoneType)
            ]

            def body(where: list[Value], kind: ir.Type, _sums: list[Value]) -> list[Value]:
                for k in where:
                    total = None
                    for row, share in terms:
                        value = load(builder, row, k, kind)
                        if share is None:
                            total = value if total is None else builder.fadd(total, value)
                        elif total is None:
                            total = builder.fmul(spread(builder, share, kind), value)
                        else:
                            total = plus_product(builder, total, spread(builder, share, kind), value)
                    store(builder, _zero(made, kind) if total is None else total, made.row(), k, past)
                return []

            along(builder, made.shape[-1], made.item, body, unroll=2)
            return context.get_dummy_value()

        return types.void(out, rows, factors), generate

    return weigh


@intrinsic
def dot(_context, a, b):  # type: ignore[no-untyped-def]
    """Return ``a . b`` of two rows."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        left, right = (Array(context, builder, signature.args[k], arguments[k]) for k in (0, 1))

        def body(where: list[Value], kind: ir.Type, sums: list[Value]) -> list[Value]:
            factors = [[load(builder, array.row(), k, kind) for array in (left, right)] for k in where]
            return [plus_product(builder, total, *pair) for total, pair in zip(sums, factors, strict=True)]

        return along(builder, left.shape[-1], left.item, body, sums=1, unroll=8)[0]

    return a.dtype(a, b), generate


# Sixteen sums stay in registers where there are 32 of them, twelve where there are 16, beside three vectors that they
# share; eight are enough to hide how long an addition takes.
_mix4, _mix1, _mix4_past, _mix1_past = _mixing(4, 2), _mixing(1, 4), _mixing(4, 2, True), _mixing(1, 4, True)
_ACROSS = 4 if WIDTH == 64 else 3
_multiply_block, _multiply14, _multiply41 = (
    _multiplying(*size) for size in (((4, _ACROSS), 1), ((1, 4), 2), ((4, 1), 2))
)
_mix44 = _mixing(4, 4 if WIDTH == 64 else 2)
weighted, _weighted_past = _weighing(False), _weighing(True)


@intrinsic
def settle(_context):  # type: ignore[no-untyped-def]
    """Finish what was written past the caches before whatever follows, on other threads too."""

    def generate(context: Any, builder: ir.IRBuilder, _signature: Any, _arguments: Any) -> Any:
        # A locked instruction or MFENCE on x86; both wait, like SFENCE, until buffered stores have gone to memory.
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), generate


@summing_part
def mixed(out, rows, factors, y, post, past):  # type: ignore[no-untyped-def]
    """``out = factors rows + post y^T``, y None for zero; `out` is apart from what is given.

    With ``past`` the result goes past the caches; its rows begin at lines of memory then, and `settle` comes after it.
    """
    n, j = out.shape[0], 0
    while j + 4 <= n:
        if past:
            _mix4_past(out, j, rows, factors, y, post)
        else:
            _mix4(out, j, rows, factors, y, post)
        j += 4
    while j < n:
        if past:
            _mix1_past(out, j, rows, factors, y, post)
        else:
            _mix1(out, j, rows, factors, y, post)
        j += 1


@summing_part
def moved(out, rows, past):  # type: ignore[no-untyped-def]
    """``out = rows``, past the caches as in `mixed`."""
    for j in range(out.shape[0]):
        if past:
            _weighted_past(out[j], (rows[j],), (None,))
        else:
            weighted(out[j], (rows[j],), (None,))


@summing_part
def combine(out, rows, factors):  # type: ignore[no-untyped-def]
    """``out = sum_i factors_i rows_i`` of one row; `out` is apart from what is given."""
    _mix1(out, 0, rows, factors, None, None)


@summing_part
def gram(out, a, b):  # type: ignore[no-untyped-def]
    """``out_ij = a_i . b_j``."""
    n, m, i = a.shape[0], b.shape[0], 0
    while i + 4 <= n:
        j = 0
        while j + _ACROSS <= m:
            _multiply_block(out, a, i, b, j, False)
            j += _ACROSS
        while j < m:
            _multiply41(out, a, i, b, j, False)
            j += 1
        i += 4
    while i < n:
        dots(out[i], a[i], b)
        i += 1


@summing_part
def dots(out, a, rows):  # type: ignore[no-untyped-def]
    """``out_j = a . rows_j`` of one row a."""
    m, j = rows.shape[0], 0
    while j + 4 <= m:
        _multiply14(out, a, 0, rows, j, False)
        j += 4
    while j < m:
        out[j] = dot(a, rows[j])
        j += 1


@summing_part
def project(out, rows, weight, count):  # type: ignore[no-untyped-def]
    """``out_kr = rows_k . weight_r`` of long rows in fours, up to the count.

    In stretches: those of one four stay in the innermost cache while the projection goes by; of several fours, those of
    a few rows of the projection while the fours do.
    """
    length, m = rows.shape[1], weight.shape[0]
    stretch = _ROW // rows.itemsize
    for k in range(0, length, stretch):
        part, beside, r = rows[:, k : k + stretch], weight[:, k : k + stretch], 0
        while r + _ACROSS <= m:
            for t in range(0, count, 4):
                _multiply_block(out, part, t, beside, r, k > 0)
            r += _ACROSS
        while r < m:
            for t in range(0, count, 4):
                _multiply41(out, part, t, beside, r, k > 0)
            r += 1


@summing_part
def expand(out, factors, stretches, count):  # type: ignore[no-untyped-def]
    """``out_k = sum_r factors_kr rows_r`` of long rows in stretches (pieces, rows, `STRETCH`), for k up to the count.

    A piece of all rows stays in the innermost cache for all results. Rows of `out` come in fours, the last ones are
    made with those before the count.
    """
    length = out.shape[1]
    for s in range(stretches.shape[0]):
        columns = slice(s * STRETCH, min((s + 1) * STRETCH, length))
        for k in range(0, count, 4):
            _mix44(out[:, columns], k, stretches[s], factors, None, None)


def _from(builder: ir.IRBuilder, first: Value, count: int) -> list[Value]:
    return [builder.add(first, number(k)) for k in range(count)]


def _zero(array: Array, kind: ir.Type) -> Value:
    lanes = kind.count if isinstance(kind, ir.VectorType) else 0
    zero = ir.Constant(array.item, 0.0)
    return ir.Constant(kind, [zero] * lanes) if lanes else zero
