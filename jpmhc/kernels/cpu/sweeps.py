"""Sinkhorn sweeps of one larger matrix at a time, which stays in the processor's cache from first to last."""

from __future__ import annotations

import numpy as np

from jpmhc.kernels.cpu.compile import summing

# A matrix that needs more is close to a permutation. The reference takes as long as 3000 of them at n = 20, as 40 at
# n = 256 (measured).
SWEEPS = 64
_ROWS = 32  # column sums are summed in parts of so many rows, or 512 of them would lose a digit of float32


@summing
def swept(matrix, result, finished, low, least, tol, start, stop):  # type: ignore[no-untyped-def]
    """Scale positive matrices by two vectors until their row sums are 1 to `tol`; column sums are exact to round-off.

    Numbers below `low` are raised to it before, numbers below `least` after. A sweep reads the matrix once: the scale
    of a row is known when the row has been summed, and while it is at hand it goes into the column sums.

    After a sweep that changed the columns' scales by d, relative to them, the row sums are off by averages of d: less
    than d by the second singular value of the result, whose square is the factor between the changes of two sweeps.
    """
    _, n, m = matrix.shape
    dtype = matrix.dtype.type
    left, right = np.empty(n, matrix.dtype), np.empty(m, matrix.dtype)
    sums, part = np.empty(m, matrix.dtype), np.empty(m, matrix.dtype)
    zero, one = dtype(0), dtype(1)
    wanted = dtype(n / m)
    whole = n - n % 4
    for token in range(start, stop):
        right[:] = one
        finished[token] = False
        before = one
        for sweep in range(SWEEPS):
            sums[:] = zero
            part[:] = zero
            # Four rows at a time: the vectors are read and written a quarter as often.
            for i in range(0, whole, 4):
                a, b, c, d = matrix[token, i], matrix[token, i + 1], matrix[token, i + 2], matrix[token, i + 3]
                of_a = of_b = of_c = of_d = zero
                for j in range(m):
                    of_a += (low if a[j] < low else a[j]) * right[j]
                    of_b += (low if b[j] < low else b[j]) * right[j]
                    of_c += (low if c[j] < low else c[j]) * right[j]
                    of_d += (low if d[j] < low else d[j]) * right[j]
                of_a, of_b, of_c, of_d = one / of_a, one / of_b, one / of_c, one / of_d
                left[i], left[i + 1], left[i + 2], left[i + 3] = of_a, of_b, of_c, of_d
                for j in range(m):
                    upper = of_a * (low if a[j] < low else a[j]) + of_b * (low if b[j] < low else b[j])
                    part[j] += upper + of_c * (low if c[j] < low else c[j]) + of_d * (low if d[j] < low else d[j])
                if i % _ROWS == _ROWS - 4:
                    for j in range(m):
                        sums[j] += part[j]
                        part[j] = zero
            for i in range(whole, n):
                row = matrix[token, i]
                total = zero
                for j in range(m):
                    total += (low if row[j] < low else row[j]) * right[j]
                total = one / total
                left[i] = total
                for j in range(m):
                    part[j] += total * (low if row[j] < low else row[j])
            change = zero
            for j in range(m):
                value = wanted / (sums[j] + part[j])
                change = max(change, abs(value / right[j] - one))
                right[j] = value
            # The first change has no predecessor: it says nothing of the singular value.
            if change <= tol or (sweep > 0 and change * np.sqrt(min(change / before, one)) <= tol):
                finished[token] = True
                break
            before = change
        for i in range(n):
            row, target, scale = matrix[token, i], result[token, i], left[i]
            for j in range(m):
                value = scale * (low if row[j] < low else row[j]) * right[j]
                target[j] = least if value < least else value
