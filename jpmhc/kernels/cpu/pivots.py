"""Gauss and Jordan's elimination of one matrix in place, rows in the processor's vectors, as part of other functions.

Whoever changes this file must remove ``__pycache__``: Numba looks at the file of the function that it keeps alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from jpmhc.kernels.cpu.compile import part
from jpmhc.kernels.cpu.rows import weighted
from jpmhc.kernels.cpu.vectors import WIDTH, Array, Value, absolute, counted, load, number, plus_product, spread, store

_BLOCK = 4  # pivots that are worked on together, so that a row is read and written once for all of them
_LINE = 64  # bytes of a line of the cache, and the most that a vector has


@part
def matrix_space(matrix):  # type: ignore[no-untyped-def]
    """Return an array for a square matrix and whatever makes its blocks and vectors whole.

    Rows begin on lines of the cache, and one line apart from where they would fall on the same places of it.
    """
    n, line = len(matrix), _LINE // matrix.itemsize
    rows, columns = -(-n // _BLOCK) * _BLOCK, -(-n // line) * line
    space = np.zeros(rows * (columns + line) + line, matrix.dtype)
    begin = -(space.ctypes.data // space.itemsize) % line
    return space[begin : begin + rows * (columns + line)].reshape(rows, columns + line)[:, :columns]


@part
def pivot_space(work):  # type: ignore[no-untyped-def]
    """Return what `eliminate` needs beside the matrix."""
    rows, columns = work.shape
    taken, panel = np.empty((rows, _BLOCK), work.dtype), np.zeros((_BLOCK, columns), work.dtype)
    block, chosen = np.empty((_BLOCK, _BLOCK), work.dtype), np.empty(_BLOCK, np.int64)
    return taken, panel, block, chosen, np.empty(rows, np.int64)


@part
def eliminate(work, n, space):  # type: ignore[no-untyped-def]
    """Turn the first n rows and columns into their inverse, whose column ``place[j]`` is at j, and return `place`.

    Four pivots at a time, with row pivots. With C the columns of the pivots and D the inverse of the block on the
    diagonal, the pivots' rows become ``D`` times themselves, as if they held the identity there, and every other row
    loses C times those, as if it held zeros there. Infinity and NaN come of singular matrices.
    """
    taken, panel, block, chosen, place = space
    rows, columns = work.shape
    for i in range(rows):
        place[i] = i
        for j in range(n if i < n else 0, columns):
            work[i, j] = 1 if i == j else 0
    for k in range(0, rows, _BLOCK):
        for i in range(rows):
            _take(work, taken, panel, i, k)
        _choose(work, taken, panel, chosen, place, k)
        _small_inverse(taken, block, k)
        for q in range(_BLOCK):
            work[k + q, k + q] = 1
        _turn(work, block, k)
        _subtract(work, taken, k, 0, k)
        _subtract(work, taken, k, k + _BLOCK, rows)
    return place


@part
def _choose(work, taken, panel, chosen, place, k):  # type: ignore[no-untyped-def]
    """Bring rows whose block has large pivots to k and on, by a factorisation of the panel."""
    chosen[:] = -1
    for q in range(_BLOCK):
        panel[q, :k] = 0
    for q in range(_BLOCK):
        best = _largest(panel[q])
        if best < 0:  # the matrix is singular, or has NaN
            for i in range(k, k + _BLOCK):
                if i != chosen[0] and i != chosen[1] and i != chosen[2]:
                    best = i
        for s in range(q + 1, _BLOCK):
            weighted(panel[s], (panel[s], panel[q]), (None, -panel[s, best] / panel[q, best]))
            panel[s, best] = 0
        chosen[q] = best
    for q in range(_BLOCK):
        best, pivot = chosen[q], k + q
        if best != pivot:
            place[best], place[pivot] = place[pivot], place[best]
            _swap(work, best, pivot)
            for s in range(_BLOCK):
                taken[best, s], taken[pivot, s] = taken[pivot, s], taken[best, s]
            for s in range(q + 1, _BLOCK):
                if chosen[s] == pivot:
                    chosen[s] = best


@part
def _small_inverse(taken, block, k):  # type: ignore[no-untyped-def]
    for i in range(_BLOCK):
        for j in range(_BLOCK):
            block[i, j] = taken[k + i, j]
    for q in range(_BLOCK):
        scale = 1 / block[q, q]
        block[q, q] = 1
        for j in range(_BLOCK):
            block[q, j] *= scale
        for i in range(_BLOCK):
            if i != q:
                factor = block[i, q]
                block[i, q] = 0
                for j in range(_BLOCK):
                    block[i, j] -= factor * block[q, j]


@intrinsic
def _take(_context, work, taken, panel, i, k):  # type: ignore[no-untyped-def]
    """Copy the numbers at k and on of row i to a row and to a column, and set them to zero."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        held, copy, turned = (Array(context, builder, signature.args[a], arguments[a]) for a in range(3))
        i, k = arguments[3:]
        kind = ir.VectorType(held.item, _BLOCK)
        values = load(builder, held.row(i), k, kind)
        store(builder, values, copy.row(i), number(0))
        for q in range(_BLOCK):
            builder.store(builder.extract_element(values, number(q)), turned.at(number(q), i))
        zeros = ir.Constant(kind, [ir.Constant(held.item, 0.0)] * _BLOCK)
        store(builder, zeros, held.row(i), k)
        return context.get_dummy_value()

    return types.void(work, taken, panel, i, k), generate


@intrinsic
def _largest(_context, row):  # type: ignore[no-untyped-def]
    """Return the place of the largest absolute value of a row of whole vectors, -1 if there is none above 0."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        held = Array(context, builder, signature.args[0], arguments[0])
        wide = _vector(held)
        lanes, index = wide.count, ir.IntType(32 if isinstance(held.item, ir.FloatType) else 64)
        places = ir.VectorType(index, lanes)

        def better(sizes: Value, where: Value, best: Value, at: Value) -> list[Value]:
            above = builder.fcmp_ordered(">", sizes, best)
            return [builder.select(above, sizes, best), builder.select(above, where, at)]

        def step(place: Value, carried: list[Value]) -> list[Value]:
            best, at, here = carried
            found = better(absolute(builder, load(builder, held.row(), place, wide)), here, best, at)
            return [*found, builder.add(here, ir.Constant(places, [lanes] * lanes))]

        zeros = ir.Constant(wide, [ir.Constant(held.item, 0.0)] * lanes)
        start = [zeros, ir.Constant(places, [-1] * lanes), ir.Constant(places, [*range(lanes)])]
        best, at, _ = counted(builder, number(0), held.shape[0], lanes, start, step)
        while lanes > 1:
            lanes //= 2
            low, high = (
                [
                    builder.shuffle_vector(
                        value, value, ir.Constant(ir.VectorType(ir.IntType(32), lanes), [*range(part, part + lanes)])
                    )
                    for value in (best, at)
                ]
                for part in (0, lanes)
            )
            best, at = better(*high, *low)
        return (
            builder.sext(builder.extract_element(at, number(0)), ir.IntType(64))
            if index.width == 32
            else builder.extract_element(at, number(0))
        )

    return types.int64(row), generate


@intrinsic
def _swap(_context, work, i, j):  # type: ignore[no-untyped-def]
    """Exchange two rows of whole vectors."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        held = Array(context, builder, signature.args[0], arguments[0])
        wide, rows = _vector(held), [held.row(index) for index in arguments[1:]]

        def step(place: Value, _carried: list[Value]) -> list[Value]:
            values = [load(builder, row, place, wide) for row in rows]
            for row, value in zip(rows, reversed(values), strict=True):
                store(builder, value, row, place)
            return []

        counted(builder, number(0), held.shape[1], wide.count, [], step)
        return context.get_dummy_value()

    return types.void(work, i, j), generate


@intrinsic
def _turn(_context, work, block, k):  # type: ignore[no-untyped-def]
    """Multiply the rows at k and on by a block from the left."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        held, square = (Array(context, builder, signature.args[a], arguments[a]) for a in (0, 1))
        wide = _vector(held)
        rows = [held.row(builder.add(arguments[2], number(q))) for q in range(_BLOCK)]
        shares = [
            [spread(builder, builder.load(square.at(number(q), number(s))), wide) for s in range(_BLOCK)]
            for q in range(_BLOCK)
        ]

        def step(place: Value, _carried: list[Value]) -> list[Value]:
            values = [load(builder, row, place, wide) for row in rows]
            for row, of_row in zip(rows, shares, strict=True):
                total = builder.fmul(of_row[0], values[0])
                for share, value in zip(of_row[1:], values[1:], strict=True):
                    total = plus_product(builder, total, share, value)
                store(builder, total, row, place)
            return []

        counted(builder, number(0), held.shape[1], wide.count, [], step)
        return context.get_dummy_value()

    return types.void(work, block, k), generate


@intrinsic
def _subtract(_context, work, taken, k, start, stop):  # type: ignore[no-untyped-def]
    """Take from the rows from `start` to `stop` the rows at k and on, times what was taken."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        held, factors = (Array(context, builder, signature.args[a], arguments[a]) for a in (0, 1))
        k, start, stop = arguments[2:]
        wide, width = _vector(held), held.shape[1]
        zero = ir.Constant(held.item, 0.0)
        pivots = [held.row(builder.add(k, number(q))) for q in range(_BLOCK)]

        def stretch(count: int) -> Any:
            def step(place: Value, _carried: list[Value]) -> list[Value]:
                places = [builder.add(place, number(c * wide.count)) for c in range(count)]
                given = [[load(builder, row, at, wide) for at in places] for row in pivots]

                def of_row(i: Value, _carried: list[Value]) -> list[Value]:
                    totals = [load(builder, held.row(i), at, wide) for at in places]
                    for q, values in enumerate(given):
                        factor = builder.fsub(zero, builder.load(factors.at(i, number(q))))
                        share = spread(builder, factor, wide)
                        totals = [plus_product(builder, t, share, v) for t, v in zip(totals, values, strict=True)]
                    for total, at in zip(totals, places, strict=True):
                        store(builder, total, held.row(i), at)
                    return []

                counted(builder, start, stop, 1, [], of_row)
                return []

            return step

        pairs = builder.and_(width, number(-2 * wide.count))
        counted(builder, number(0), pairs, 2 * wide.count, [], stretch(2))
        counted(builder, pairs, width, wide.count, [], stretch(1))
        return context.get_dummy_value()

    return types.void(work, taken, k, start, stop), generate


def _vector(array: Array) -> ir.VectorType:
    return ir.VectorType(array.item, WIDTH // (4 if isinstance(array.item, ir.FloatType) else 8))
