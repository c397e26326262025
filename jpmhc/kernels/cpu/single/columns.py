"""Maps of orthonormal columns and rotations, one matrix at a time."""

from __future__ import annotations

import numpy as np

from jpmhc.kernels.cpu.compile import summing, summing_part
from jpmhc.kernels.polar import CUBIC_STEPS, NEAR

JACOBI_SWEEPS = 15  # more than enough: the last of them converge quadratically
# Of a squared column in float64: what is less has lost digits.
_LEAST_SQUARE = float(np.finfo(np.float64).tiny / np.finfo(np.float64).eps)
_POLISHES = 8
KEPT = 1e4  # of a squared column, in squared machine epsilons: less is round-off of what was taken off


@summing
def cayley_step(x, u, v, y, moved, eps, transport):  # type: ignore[no-untyped-def]
    """Move x along ``u = x A + N`` to ``y = Z - x``, ``Z = (2 x + N) (I - A/2 + N^T N/4)^-1``, and carry v along.

    ``v = x C + M`` becomes ``y C + M - Z N^T M / 2``.
    """
    tokens, n, p = x.shape
    xu, system, product = np.empty((p, p)), np.empty((p, p)), np.empty((p, p))
    normal, z, end, other = np.empty((n, p)), np.empty((n, p)), np.empty((n, p)), np.empty((n, p))
    tall = n > p  # in a square x A + N there is no N
    for t in range(tokens):
        _gram(x[t], u[t], xu)
        _across(x[t], u[t], xu, normal, tall)
        _gram(normal, normal, product)
        for i in range(p):
            for j in range(p):
                system[i, j] = (1.0 if i == j else 0.0) - (xu[i, j] - xu[j, i]) / 4 + product[i, j] / 4
        for i in range(n):
            for j in range(p):
                z[i, j] = 2 * x[t, i, j] + normal[i, j]
        _divide(z, system)
        for i in range(n):
            for j in range(p):
                other[i, j] = z[i, j] - x[t, i, j]
        # A step that is long for its rounding needs more than one.
        for _ in range(_POLISHES):
            _polish(other, product, end)
            other, end = end, other
            if not _defect(other, product) > eps:
                break
        _polish(other, product, end)
        _store(end, y, t)
        if transport:
            _gram(x[t], v[t], xu)
            _across(x[t], v[t], xu, other, tall)
            _gram(normal, other, product)
            for i in range(n):
                for j in range(p):
                    total = other[i, j]
                    for k in range(p):
                        total += end[i, k] * (xu[k, j] - xu[j, k]) / 2 - z[i, k] * product[k, j] / 2
                    moved[t, i, j] = total


@summing
def cayley(raw, result, _eps, half_step, limit):  # type: ignore[no-untyped-def]
    """``2 (I - B)^-1 - I``, polished; return a mask of the matrices with entries beyond the limit."""
    tokens, n, _ = raw.shape
    b, q, polished, steep = np.empty((n, n)), np.empty((n, n)), np.empty((n, n)), np.empty(tokens, np.bool_)
    for t in range(tokens):
        largest = 0.0
        for i in range(n):
            for j in range(n):
                value = half_step * (np.float64(raw[t, j, i]) - np.float64(raw[t, i, j]))
                largest = max(largest, abs(value))
                b[i, j] = value + (1.0 if i == j else 0.0)
                q[i, j] = 2.0 if i == j else 0.0
        steep[t] = not largest <= limit
        _divide(q, b)
        for i in range(n):
            q[i, i] -= 1
        _polish(q, b, polished)
        _store(polished, result, t)
    return steep


@summing
def cayley_adjoint(rotation, cotangent, result, _eps, quarter_step):  # type: ignore[no-untyped-def]
    """``H - H^T`` with ``H = step E G E / 4`` and ``E = Q^T + I``."""
    tokens, n, _ = rotation.shape
    e, h, product = np.empty((n, n)), np.empty((n, n)), np.empty((n, n))
    for t in range(tokens):
        for i in range(n):
            for j in range(n):
                e[i, j] = rotation[t, j, i] + (1.0 if i == j else 0.0)
        for i in range(n):
            for j in range(n):
                total = 0.0
                for k in range(n):
                    total += e[i, k] * cotangent[t, k, j]
                product[i, j] = total
        _product(product, e, h)
        for i in range(n):
            for j in range(n):
                result[t, i, j] = quarter_step * (h[i, j] - h[j, i])


@summing
def orthonormalise(matrix, result, eps):  # type: ignore[no-untyped-def]
    """Gram and Schmidt's projections, each made twice; return a mask of matrices with dependent columns."""
    tokens, n, p = matrix.shape
    x, polished, column, square = np.empty((n, p)), np.empty((n, p)), np.empty(n), np.empty((p, p))
    hard = np.empty(tokens, np.bool_)
    for t in range(tokens):
        hard[t] = False
        for j in range(p):
            before = 0.0
            for k in range(n):
                column[k] = matrix[t, k, j]
                before += column[k] * column[k]
            for _ in range(2):
                for i in range(j):
                    total = 0.0
                    for k in range(n):
                        total += x[k, i] * column[k]
                    for k in range(n):
                        column[k] -= total * x[k, i]
            after = 0.0
            for k in range(n):
                after += column[k] * column[k]
            hard[t] |= not max(KEPT * eps * eps * before, _LEAST_SQUARE) < after < np.inf
            for k in range(n):
                x[k, j] = column[k] / np.sqrt(after)
        _polish(x, square, polished)
        _store(polished, result, t)
    return hard


@summing
def polar(matrix, result, eps):  # type: ignore[no-untyped-def]
    """Few products near an orthonormal matrix, Jacobi's rotations of columns elsewhere.

    Return a mask of the matrices with a column of zeros after the rotations, and of those that are not finite.
    """
    tokens, n, p = matrix.shape
    hard = np.empty(tokens, np.bool_)
    x, other, square, step = np.empty((n, p)), np.empty((n, p)), np.empty((p, p)), np.empty((p, p))
    for t in range(tokens):
        for i in range(n):
            for j in range(p):
                x[i, j] = matrix[t, i, j]
        if not _defect(x, square) < NEAR * NEAR:
            _rotate(x, step, other, eps)
        for _ in range(CUBIC_STEPS):
            if not _defect(x, square) > eps:
                break
            # x (I - D / 2 + 3/8 D^2) with D = x^T x - I.
            _product(square, square, step)
            for i in range(p):
                for j in range(p):
                    step[i, j] = 3 / 8 * step[i, j] - square[i, j] / 2 + (1.0 if i == j else 0.0)
            _product(x, step, other)
            x, other = other, x
        _polish(x, square, other)
        _store(other, result, t)
        hard[t] = not _defect(other, square) < 1
    return hard


@summing_part
def _store(x, result, t):  # type: ignore[no-untyped-def]
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            result[t, i, j] = x[i, j]


@summing_part
def _product(a, b, result):  # type: ignore[no-untyped-def]
    """Set ``result = a b``."""
    for i in range(result.shape[0]):
        for j in range(result.shape[1]):
            total = 0.0
            for k in range(b.shape[0]):
                total += a[i, k] * b[k, j]
            result[i, j] = total


@summing_part
def _gram(a, b, result):  # type: ignore[no-untyped-def]
    """Set ``result = a^T b``."""
    for i in range(result.shape[0]):
        for j in range(result.shape[1]):
            total = 0.0
            for k in range(a.shape[0]):
                total += np.float64(a[k, i]) * np.float64(b[k, j])
            result[i, j] = total


@summing_part
def _across(x, u, xu, result, tall):  # type: ignore[no-untyped-def]
    """Set ``result = u - x (x^T u)``, nothing where x is square."""
    n, p = result.shape
    for i in range(n):
        for j in range(p):
            total = np.float64(u[i, j])
            for k in range(p):
                total -= x[i, k] * xu[k, j]
            result[i, j] = total if tall else 0.0


@summing_part
def _divide(b, m):  # type: ignore[no-untyped-def]
    """Replace b by ``b m^-1``, and m by what is left of its elimination, with the largest pivot of every row."""
    n, p = b.shape
    for k in range(p):
        best = k
        for j in range(k + 1, p):
            best = j if abs(m[k, j]) > abs(m[k, best]) else best
        for i in range(p):
            m[i, k], m[i, best] = m[i, best], m[i, k]
        for i in range(n):
            b[i, k], b[i, best] = b[i, best], b[i, k]
        for j in range(k + 1, p):
            factor = m[k, j] / m[k, k]
            for i in range(k + 1, p):
                m[i, j] -= factor * m[i, k]
            for i in range(n):
                b[i, j] -= factor * b[i, k]
    for back in range(p):
        k = p - 1 - back
        for i in range(n):
            total = b[i, k]
            for j in range(k + 1, p):
                total -= b[i, j] * m[j, k]
            b[i, k] = total / m[k, k]


@summing_part
def _polish(y, square, result):  # type: ignore[no-untyped-def]
    """Set ``result = y (3 I - y^T y) / 2``."""
    p = y.shape[1]
    _gram(y, y, square)
    for i in range(p):
        for j in range(p):
            square[i, j] = (1.5 if i == j else 0.0) - square[i, j] / 2
    _product(y, square, result)


@summing_part
def _defect(x, square):  # type: ignore[no-untyped-def]
    """``square = x^T x - I``, and the square of its Frobenius norm."""
    p = x.shape[1]
    _gram(x, x, square)
    total = 0.0
    for i in range(p):
        square[i, i] -= 1
        for j in range(p):
            total += square[i, j] * square[i, j]
    return total


@summing_part
def _rotate(x, v, other, eps):  # type: ignore[no-untyped-def]
    """Replace x by its polar factor: rotate columns until they are orthogonal, normalise them, rotate back.

    One-sided Jacobi (Hestenes, 1958): all singular values come out, small ones to their own relative precision.
    """
    n, p = x.shape
    top = 0.0
    for i in range(n):
        for j in range(p):
            top = abs(x[i, j]) if not abs(x[i, j]) <= top else top
    for i in range(n):
        for j in range(p):
            x[i, j] /= top
    for i in range(p):
        for j in range(p):
            v[i, j] = 1.0 if i == j else 0.0
    for _ in range(JACOBI_SWEEPS):
        some = False
        for i in range(p - 1):
            for j in range(i + 1, p):
                alpha, beta, gamma = 0.0, 0.0, 0.0
                for k in range(n):
                    alpha += x[k, i] * x[k, i]
                    beta += x[k, j] * x[k, j]
                    gamma += x[k, i] * x[k, j]
                if gamma * gamma <= 4 * eps * eps * alpha * beta:
                    continue
                some = True
                zeta = (beta - alpha) / (2 * gamma)
                tangent = 1 / (abs(zeta) + np.sqrt(1 + zeta * zeta))
                tangent = -tangent if zeta < 0 else tangent
                c = 1 / np.sqrt(1 + tangent * tangent)
                s = c * tangent
                for k in range(n):
                    a, b = x[k, i], x[k, j]
                    x[k, i], x[k, j] = c * a - s * b, s * a + c * b
                for k in range(p):
                    a, b = v[k, i], v[k, j]
                    v[k, i], v[k, j] = c * a - s * b, s * a + c * b
        if not some:
            break
    for j in range(p):
        total = 0.0
        for k in range(n):
            total += x[k, j] * x[k, j]
        total = 1 / np.sqrt(total)
        for k in range(n):
            x[k, j] *= total
    for k in range(n):
        for j in range(p):
            total = 0.0
            for i in range(p):
                total += x[k, i] * v[j, i]
            other[k, j] = total
    for k in range(n):
        for j in range(p):
            x[k, j] = other[k, j]
