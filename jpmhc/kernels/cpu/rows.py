"""Loops over the width of the streams, several rows at a time, as parts of compiled functions.

Whoever changes this file must remove ``__pycache__``: Numba looks at the file of the function that it keeps alone.
"""

from __future__ import annotations

from jpmhc.kernels.cpu.compile import summing


@summing
def combine(out, rows, weights):  # type: ignore[no-untyped-def]
    """``out = sum_i weights_i rows_i``."""
    n = rows.shape[0]
    if n >= 4:
        _start(out, rows[0], rows[1], rows[2], rows[3], weights[0], weights[1], weights[2], weights[3])
        i = 4
    else:
        scaled(out, rows[0], weights[0])
        i = 1
    _rest(out, rows, weights, i)


@summing
def _rest(out, rows, weights, i):  # type: ignore[no-untyped-def]
    """``out += sum_(j >= i) weights_j rows_j``."""
    n = rows.shape[0]
    while i + 4 <= n:
        _add(
            out,
            rows[i],
            rows[i + 1],
            rows[i + 2],
            rows[i + 3],
            weights[i],
            weights[i + 1],
            weights[i + 2],
            weights[i + 3],
        )
        i += 4
    while i < n:
        add_scaled(out, rows[i], weights[i])
        i += 1


@summing
def _start(out, a, b, c, e, wa, wb, wc, we):  # type: ignore[no-untyped-def]
    for k in range(out.shape[0]):
        out[k] = (wa * a[k] + wb * b[k]) + (wc * c[k] + we * e[k])


@summing
def _add(out, a, b, c, e, wa, wb, wc, we):  # type: ignore[no-untyped-def]
    for k in range(out.shape[0]):
        out[k] += (wa * a[k] + wb * b[k]) + (wc * c[k] + we * e[k])


@summing
def scaled(out, a, wa):  # type: ignore[no-untyped-def]
    """``out = wa a``."""
    for k in range(out.shape[0]):
        out[k] = wa * a[k]


@summing
def add_scaled(out, a, wa):  # type: ignore[no-untyped-def]
    """``out += wa a``."""
    for k in range(out.shape[0]):
        out[k] += wa * a[k]


@summing
def dot(a, b):  # type: ignore[no-untyped-def]
    """Return ``a . b``."""
    total = a[0] * b[0]
    for k in range(1, a.shape[0]):
        total += a[k] * b[k]
    return total


@summing
def dots(out, a, rows):  # type: ignore[no-untyped-def]
    """``out_i = rows_i . a``, four rows at a time."""
    n, i = rows.shape[0], 0
    while i + 4 <= n:
        out[i], out[i + 1], out[i + 2], out[i + 3] = _dot4(a, rows[i], rows[i + 1], rows[i + 2], rows[i + 3])
        i += 4
    while i < n:
        out[i] = dot(a, rows[i])
        i += 1


@summing
def gram(out, a, b):  # type: ignore[no-untyped-def]
    """``out_ij = a_i . b_j``, in blocks of 4 x 4, which keep sixteen sums in registers."""
    n, i = a.shape[0], 0
    while i + 4 <= n:
        j = 0
        while j + 4 <= n:
            _block(out[i : i + 4, j : j + 4], a[i], a[i + 1], a[i + 2], a[i + 3], b[j], b[j + 1], b[j + 2], b[j + 3])
            j += 4
        while j < n:
            out[i, j], out[i + 1, j], out[i + 2, j], out[i + 3, j] = _dot4(b[j], a[i], a[i + 1], a[i + 2], a[i + 3])
            j += 1
        i += 4
    while i < n:
        dots(out[i], a[i], b)
        i += 1


@summing
def _block(out, a, b, c, e, p, q, r, s):  # type: ignore[no-untyped-def]
    zero = a.dtype.type(0)
    ap, aq, ar, as_ = zero, zero, zero, zero
    bp, bq, br, bs = zero, zero, zero, zero
    cp, cq, cr, cs = zero, zero, zero, zero
    ep, eq, er, es = zero, zero, zero, zero
    for k in range(a.shape[0]):
        vp, vq, vr, vs = p[k], q[k], r[k], s[k]
        value = a[k]
        ap += value * vp
        aq += value * vq
        ar += value * vr
        as_ += value * vs
        value = b[k]
        bp += value * vp
        bq += value * vq
        br += value * vr
        bs += value * vs
        value = c[k]
        cp += value * vp
        cq += value * vq
        cr += value * vr
        cs += value * vs
        value = e[k]
        ep += value * vp
        eq += value * vq
        er += value * vr
        es += value * vs
    out[0, 0], out[0, 1], out[0, 2], out[0, 3] = ap, aq, ar, as_
    out[1, 0], out[1, 1], out[1, 2], out[1, 3] = bp, bq, br, bs
    out[2, 0], out[2, 1], out[2, 2], out[2, 3] = cp, cq, cr, cs
    out[3, 0], out[3, 1], out[3, 2], out[3, 3] = ep, eq, er, es


@summing
def summed(out, a, b, wb, c, wc, e):  # type: ignore[no-untyped-def]
    """``out = a + wb b + wc c + e``."""
    for k in range(out.shape[0]):
        out[k] = (a[k] + wb * b[k]) + (wc * c[k] + e[k])


@summing
def add(out, a):  # type: ignore[no-untyped-def]
    """``out += a``."""
    for k in range(out.shape[0]):
        out[k] += a[k]


@summing
def _dot4(a, b, c, e, f):  # type: ignore[no-untyped-def]
    first = a[0]
    tb, tc, te, tf = first * b[0], first * c[0], first * e[0], first * f[0]
    for k in range(1, a.shape[0]):
        value = a[k]
        tb += value * b[k]
        tc += value * c[k]
        te += value * e[k]
        tf += value * f[k]
    return tb, tc, te, tf
