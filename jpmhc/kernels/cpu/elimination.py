"""Inverses on a CPU, from one load of a matrix to one store of the result.

A library's factorisations of one matrix after another spend most of their time elsewhere up to some hundred rows.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from torch import Tensor

from jpmhc.kernels import pool
from jpmhc.kernels.bodies import body
from jpmhc.kernels.cpu.compile import compiled
from jpmhc.kernels.cpu.pivots import eliminate, matrix_space, pivot_space
from jpmhc.kernels.cpu.rows import weighted
from jpmhc.kernels.cpu.tiles import DTYPES, numbers
from jpmhc.kernels.cpu.vectors import Array, Value, counted, load, number, store
from jpmhc.kernels.shapes import oblong

LARGEST = 128  # rows of a matrix that stays in the nearer caches
_WORTH = 2**18  # multiplications that are worth compiling for; libraries take 1.6 to 3 times as long there


def fits(matrix: Tensor) -> str | None:
    """Tell why square matrices, the only argument of an operation, do not fit."""
    n = matrix.shape[-1]
    if not 1 <= n <= LARGEST:
        return f"no body for matrices of {n} x {n}, only up to {LARGEST} x {LARGEST}"
    return oblong(matrix)


def little(matrix: Tensor, *_: object) -> str | None:
    """Tell why eliminations of a batch are not worth compiling for."""
    return None if matrix.numel() * matrix.shape[-1] >= _WORTH else f"fewer than {_WORTH} multiplications"


@body(DTYPES, fits, little)
def inverse(matrix: Tensor) -> Tensor:
    """Run `_invert` over all matrices."""
    n = matrix.shape[-1]
    result = matrix.new_empty(matrix.shape)
    arrays = [numbers(tensor, n * n).reshape(-1, n, n) for tensor in (matrix, result)]
    pool.run(_invert, pool.split(len(arrays[0])), *arrays)
    return result


@compiled
def _invert(matrix, result, start, stop):  # type: ignore[no-untyped-def]
    n = matrix.shape[-1]
    work = matrix_space(matrix[0])
    space = pivot_space(work)
    for token in range(start, stop):
        for i in range(n):
            weighted(work[i, :n], (matrix[token, i],), (None,))
        place = eliminate(work, n, space)
        for i in range(n):
            _spill(work, result[token, i], place, i)


@intrinsic
def _spill(_context, work, out, place, i):  # type: ignore[no-untyped-def]
    """Copy row i of the first array, its numbers to the places that are given."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        held, made, places = (Array(context, builder, signature.args[a], arguments[a]) for a in range(3))
        row, target, where = held.row(arguments[3]), made.row(), places.row()

        def step(j: Value, _carried: list[Value]) -> list[Value]:
            store(builder, load(builder, row, j, held.item), target, load(builder, where, j, places.item))
            return []

        counted(builder, number(0), made.shape[0], 1, [], step)
        return context.get_dummy_value()

    return types.void(work, out, place, i), generate
