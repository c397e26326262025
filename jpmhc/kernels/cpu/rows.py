"""Loops over the width of the streams, several rows at a time, as parts of compiled functions.

Whoever changes this file must remove ``__pycache__``: Numba looks at the file of the function that it keeps alone.
"""

from __future__ import annotations

from jpmhc.kernels.cpu.compile import summing, summing_part


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


# The next two write to four arrays that their caller has made: after they have become part of it the compiler knows
# that those are apart from each other and from what is read. It would compare every pair of pointers otherwise, and
# gives up on the processor's vectors where there are many.
@summing_part
def start4(a, b, c, e, rows, i, weights, j, y, post):  # type: ignore[no-untyped-def]
    """Four rows from the j-th on of ``weights rows + post y^T``, as far as the rows i to i + 3 make them."""
    u, v, w, x = rows[i], rows[i + 1], rows[i + 2], rows[i + 3]
    au, av, aw, ax = weights[j, i], weights[j, i + 1], weights[j, i + 2], weights[j, i + 3]
    bu, bv, bw, bx = weights[j + 1, i], weights[j + 1, i + 1], weights[j + 1, i + 2], weights[j + 1, i + 3]
    cu, cv, cw, cx = weights[j + 2, i], weights[j + 2, i + 1], weights[j + 2, i + 2], weights[j + 2, i + 3]
    eu, ev, ew, ex = weights[j + 3, i], weights[j + 3, i + 1], weights[j + 3, i + 2], weights[j + 3, i + 3]
    if y is None:
        for k in range(a.shape[0]):
            a[k] = (au * u[k] + av * v[k]) + (aw * w[k] + ax * x[k])
            b[k] = (bu * u[k] + bv * v[k]) + (bw * w[k] + bx * x[k])
            c[k] = (cu * u[k] + cv * v[k]) + (cw * w[k] + cx * x[k])
            e[k] = (eu * u[k] + ev * v[k]) + (ew * w[k] + ex * x[k])
    else:
        ay, by, cy, ey = post[j], post[j + 1], post[j + 2], post[j + 3]
        for k in range(a.shape[0]):
            a[k] = (au * u[k] + av * v[k]) + (aw * w[k] + ax * x[k]) + ay * y[k]
            b[k] = (bu * u[k] + bv * v[k]) + (bw * w[k] + bx * x[k]) + by * y[k]
            c[k] = (cu * u[k] + cv * v[k]) + (cw * w[k] + cx * x[k]) + cy * y[k]
            e[k] = (eu * u[k] + ev * v[k]) + (ew * w[k] + ex * x[k]) + ey * y[k]


@summing_part
def more4(a, b, c, e, rows, i, weights, j):  # type: ignore[no-untyped-def]
    """Add what four further rows contribute."""
    u, v, w, x = rows[i], rows[i + 1], rows[i + 2], rows[i + 3]
    au, av, aw, ax = weights[j, i], weights[j, i + 1], weights[j, i + 2], weights[j, i + 3]
    bu, bv, bw, bx = weights[j + 1, i], weights[j + 1, i + 1], weights[j + 1, i + 2], weights[j + 1, i + 3]
    cu, cv, cw, cx = weights[j + 2, i], weights[j + 2, i + 1], weights[j + 2, i + 2], weights[j + 2, i + 3]
    eu, ev, ew, ex = weights[j + 3, i], weights[j + 3, i + 1], weights[j + 3, i + 2], weights[j + 3, i + 3]
    for k in range(a.shape[0]):
        a[k] += (au * u[k] + av * v[k]) + (aw * w[k] + ax * x[k])
        b[k] += (bu * u[k] + bv * v[k]) + (bw * w[k] + bx * x[k])
        c[k] += (cu * u[k] + cv * v[k]) + (cw * w[k] + cx * x[k])
        e[k] += (eu * u[k] + ev * v[k]) + (ew * w[k] + ex * x[k])


@summing_part
def mixed(out, rows, weights, y, post, a, b, c, e):  # type: ignore[no-untyped-def]
    """``out = weights rows + post y^T``, y None for zero; a, b, c and e are scratch of the width."""
    n, j = rows.shape[0], 0
    while j + 4 <= n:
        start4(a, b, c, e, rows, 0, weights, j, y, post)
        i = 4
        while i + 4 <= n:
            more4(a, b, c, e, rows, i, weights, j)
            i += 4
        out[j, :] = a
        out[j + 1, :] = b
        out[j + 2, :] = c
        out[j + 3, :] = e
        while i < n:
            for r in range(4):
                add_scaled(out[j + r], rows[i], weights[j + r, i])
            i += 1
        j += 4
    while j < n:
        scaled(out[j], rows[0], weights[j, 0])
        for i in range(1, n):
            add_scaled(out[j], rows[i], weights[j, i])
        if y is not None:
            add_scaled(out[j], y, post[j])
        j += 1
