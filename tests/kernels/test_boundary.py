"""The boundary between sublayers: every body against float64, every transform against its definition."""

import subprocess
import sys

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from jpmhc import kernels
from jpmhc.kernels import crossing
from jpmhc.kernels.bodies import interpreted
from jpmhc.kernels.boundary import Boundary, Pullback, boundary_backward, boundary_forward
from jpmhc.kernels.crossing import Reading, Writing, cross
from jpmhc.kernels.primitive import choice
from tests.kernels.boundaries import FORMS, TOLERANCE, boundary, deviation, function, results, tensors, truth
from tests.kernels.interpreter import bodies, run_again

DTYPES = {
    "reference": (torch.float64, torch.float32, torch.bfloat16),
    "numba": (torch.float64, torch.float32),
    "triton": (torch.float32, torch.bfloat16, torch.float16),
}
BODIES = [(*body, dtype) for body in bodies("reference", "numba") for dtype in DTYPES[body[0]]]
# Tokens, streams, width, raw numbers. The interpreter takes long for many streams.
SIZES = [(0, 4, 6, 14), (1, 1, 9, 3), (7, 3, 5, 12), (17, 8, 31, 44), (5, 2, 150, 8)]
SIZES += [(3, 9, 37, 11), (2, 16, 3, 18)] if interpreted() else [(67, 16, 3, 32)]


@pytest.mark.skipif(interpreted(), reason="the process that this test starts")
def test_triton_bodies_in_the_interpreter():
    assert run_again(__file__, "-k", "every_body or sizes or strides or fit or masked or do_not_come or again") > 0


@pytest.mark.parametrize(("backend", "device", "dtype"), BODIES)
@pytest.mark.parametrize("form", FORMS)
def test_every_body_agrees_with_float64(form, backend, device, dtype):
    assert deviation(form, backend, dtype, device) < TOLERANCE[dtype]


@pytest.mark.parametrize(("backend", "device", "dtype"), BODIES)
@pytest.mark.parametrize("sizes", SIZES)
def test_sizes_are_any(sizes, backend, device, dtype):
    tokens, n, d, m = sizes
    forms = ["write post-norm, read softmax norm", "read sigmoid norm", "write"]
    for form in forms[:1] if interpreted() and dtype != torch.float32 else forms:
        assert deviation(form, backend, dtype, device, tokens=tokens, n=n, d=d, m=m) < TOLERANCE[dtype]


@pytest.mark.parametrize("form", ["write, read sigmoid norm", "read softmax norm", "write post-norm"])
def test_streams_too_large_for_a_cache(form):
    # 16 MiB in rows of whole lines; groups of four tokens with two left over.
    assert deviation(form, "numba", torch.float32, "cpu", tokens=514, n=8, d=1024, m=24) < 1e-4


@pytest.mark.parametrize("dtype", DTYPES["numba"])
@pytest.mark.parametrize("tokens", [3, 37])
def test_a_projection_too_large_for_a_cache(tokens, dtype):
    body = pytest.importorskip("jpmhc.kernels.cpu.boundary")
    n, d, m = 8, 700, 80
    assert 4 * m * n * d > body._LARGE
    assert deviation("write, read sigmoid norm", "numba", dtype, tokens=tokens, n=n, d=d, m=m) < TOLERANCE[dtype]


@pytest.mark.parametrize(("backend", "device", "dtype"), BODIES)
@pytest.mark.parametrize("masked", [0, 2])
def test_a_stream_may_be_masked(masked, backend, device, dtype):
    x, _, read = boundary("read softmax norm", dtype=dtype)
    read.bias.data[masked] = -torch.inf
    call, arguments = function(None, read), [a.detach().to(device).requires_grad_() for a in tensors(x, None, read)]
    cotangents = [torch.ones_like(o) for o in call(*arguments)]
    wanted = truth(call, arguments, cotangents)
    with kernels.backend(backend):
        found = results(call, arguments, cotangents)
    for value, exact in zip(found, wanted, strict=True):
        assert exact.isfinite().all()
        torch.testing.assert_close(value.double(), exact, rtol=0, atol=100 * TOLERANCE[dtype])


@pytest.mark.parametrize(("backend", "device"), bodies("numba"))
@pytest.mark.parametrize("name", ["matrix", "post", "y", "weight", "bias"])
def test_what_does_not_fit_is_not_read_by_compiled_code(name, backend, device):
    x, write, read = boundary("write, read softmax norm", tokens=9, dtype=torch.float32)
    given = Boundary(x, *write[:3], read.weight, read.bias, read.scale, read.gate, True, read.eps, -1.0)
    given = Boundary._make(t.to(device) if isinstance(t, torch.Tensor) else t for t in given)
    with kernels.backend(backend), torch.no_grad():
        assert choice("boundary_forward", *given).backend == backend
        short = given._replace(**{name: getattr(given, name)[:3]})
        assert choice("boundary_forward", *short).reason.startswith(f"{name}: expected")
        with pytest.raises(RuntimeError, match=r"size|shape"):
            boundary_forward(short)


@pytest.mark.parametrize(("n", "d"), [(4, 0), (0, 6)])
def test_streams_of_no_numbers_take_the_reference(n, d):
    x, post, y = torch.ones(9, n, d), torch.ones(9, n), torch.ones(9, d)
    with kernels.backend("numba"):
        streams, *_ = boundary_forward(Boundary(x, None, post, y, None, None, None, "given", False, 0.0, -1.0))
    assert streams.shape == x.shape


LARGE = {"n": 8, "d": 704, "m": 80}
"""Sizes of a projection that does not stay in a cache, in rows of whole lines."""


@pytest.mark.parametrize("sizes", [{"n": 4, "d": 50, "m": 24}, LARGE], ids=str)
def test_a_token_does_not_depend_on_the_others(sizes):
    x, write, read = boundary("write, read sigmoid norm", tokens=37, dtype=torch.float32, **sizes)

    def crossed(start, stop):
        part = [t[start:stop].detach().requires_grad_() for t in (x, write.matrix, write.post, write.y)]
        crossing = cross(part[0], Writing(*part[1:], write.eps), read)
        loss = sum(t.square().sum() for t in crossing[:3])
        return *crossing, *torch.autograd.grad(loss, part)

    with kernels.backend("numba"):
        whole = crossed(0, 37)
        for start, stop in ((0, 1), (0, 33), (18, 37), (35, 37)):
            for found, wanted in zip(crossed(start, stop), whole, strict=True):
                assert torch.equal(found, wanted[start:stop])


@pytest.mark.parametrize("sizes", [{"n": 3, "d": 32}, LARGE], ids=str)
@pytest.mark.parametrize("far", [False, True])
def test_threads_change_no_token(far, sizes, monkeypatch):
    body = pytest.importorskip("jpmhc.kernels.cpu.boundary")
    monkeypatch.setattr(body, "_FAR", 0 if far else body._FAR)
    x, write, read = boundary("write, read sigmoid norm", tokens=87, dtype=torch.float32, **sizes)
    found = []
    for threads in (1, 2, 3):
        # Not torch.set_num_threads, after which torch factorises large matrices wrongly.
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        with kernels.backend("numba"):
            crossed = cross(x, write, read)
            loss = sum(t.square().sum() for t in crossed[:3])
            found.append([*crossed, *torch.autograd.grad(loss, tensors(x, write, None))])
    assert all(torch.equal(one, other) for others in found[1:] for one, other in zip(found[0], others, strict=True))


def test_gradients_of_the_read_do_not_depend_on_the_number_of_threads():
    """In processes of their own: torch.set_num_threads leaves its LU wrong in this one."""
    program = """
import sys
import torch
from jpmhc import kernels
from jpmhc.kernels.crossing import cross
from tests.kernels.boundaries import boundary
torch.set_num_threads(int(sys.argv[1]))
for n, m in ((1, 2), (4, 14)):
    for body in ("numba", "reference"):
        x, write, read = boundary("read sigmoid norm", tokens=40_000, n=n, d=4, m=m, dtype=torch.float32)
        with kernels.backend(body):
            found = cross(x, write, read)
            loss = found.u.square().sum() + found.z.sum()
            # The projection's gradient is a product of torch in the reference.
            given = [read.bias, read.scale] + [read.weight] * (body == "numba")
            print([t.flatten().tolist() for t in torch.autograd.grad(loss, given)])
"""
    pytest.importorskip("numba")
    printed = [
        subprocess.run([sys.executable, "-c", program, threads], capture_output=True, text=True, check=True).stdout
        for threads in ("1", "2", "3")
    ]
    assert printed[0].count("[") > 4
    assert printed[1:] == printed[:1] * 2


@pytest.mark.parametrize(("backend", "device", "dtype"), BODIES)
def test_strides_are_any(backend, device, dtype):
    def scattered(arguments):
        spread = [
            torch.empty(*a.shape, 2, dtype=a.dtype, device=a.device)[..., 1].copy_(a)
            for a in (t.detach() for t in arguments)
        ]
        return [s.detach().requires_grad_() for s in spread]

    def transposed(arguments):
        turned = [a.detach().transpose(0, -1).contiguous().transpose(0, -1) for a in arguments]
        return [t.requires_grad_() for t in turned]

    def negated(arguments):
        return [torch._neg_view(-a.detach()).requires_grad_() for a in arguments]

    for form in ("write, read sigmoid norm", "read softmax norm", "read given"):
        assert deviation(form, backend, dtype, device, change=transposed) < TOLERANCE[dtype]
        assert deviation(form, backend, dtype, device, change=negated) < TOLERANCE[dtype]
    for form in ("write, read sigmoid norm", "read given"):
        assert deviation(form, backend, dtype, device, change=scattered) < TOLERANCE[dtype]


@pytest.mark.parametrize(("backend", "device", "dtype"), BODIES)
def test_again_it_gives_the_same_bits(backend, device, dtype):
    halves = boundary("write post-norm, read softmax norm", tokens=19, dtype=dtype)
    call, arguments = function(*halves[1:]), [a.detach().to(device).requires_grad_() for a in tensors(*halves)]
    cotangents = [torch.randn_like(o) for o in call(*arguments)]
    with kernels.backend(backend):
        first, again = (results(call, arguments, cotangents) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_a_boundary_is_a_write_and_then_a_read():
    x, write, read = boundary("write post-norm, read softmax norm")
    both = cross(x, write, read)
    written = cross(x, write)
    after = cross(written.streams, None, read)
    for name in ("u", "z", "pre"):
        torch.testing.assert_close(getattr(both, name), getattr(after, name))
    torch.testing.assert_close(both.streams, after.streams)
    assert [written.u, written.z, written.pre] == [None, None, None]


def test_it_computes_what_it_says():
    x, write, read = boundary("write, read softmax norm", tokens=1)
    crossing_ = cross(x, write, read)
    streams = write.matrix[0] @ x[0] + torch.outer(write.post[0], write.y[0])
    raw = read.weight @ streams.flatten() / (streams.flatten().square().mean() + read.eps).sqrt()
    pre = torch.softmax(read.bias + read.scale * raw[:4], 0)
    for value, exact in zip(crossing_, (streams, pre @ streams, raw, pre), strict=True):
        torch.testing.assert_close(value[0], exact)


def test_shared_coefficients_stand_for_every_token():
    x, write, _ = boundary("write")
    matrix, post, pre = write.matrix[0], write.post[0], torch.randn(4, dtype=torch.float64)
    shared = cross(x.view(5, 1, 4, 6), Writing(matrix, post, write.y.view(5, 1, 6)), Reading(pre))
    each = cross(x, Writing(matrix.expand(5, 4, 4), post.expand(5, 4), write.y), Reading(pre.expand(5, 4)))
    torch.testing.assert_close(shared.streams.view(5, 4, 6), each.streams)
    torch.testing.assert_close(shared.u.view(5, 6), each.u)
    one, many = (torch.autograd.grad(c.streams.sin().sum() + c.u.cos().sum(), matrix) for c in (shared, each))
    torch.testing.assert_close(one, many)


@pytest.mark.parametrize("form", FORMS)
def test_derivatives_of_first_and_second_order(form):
    halves = boundary(form, tokens=2, n=2, d=3, m=5)
    call, arguments = function(*halves[1:]), tensors(*halves)
    assert torch.autograd.gradcheck(call, arguments)
    assert torch.autograd.gradgradcheck(call, arguments)


@pytest.mark.parametrize("backend", BODIES[0][:1])
@pytest.mark.parametrize("form", ["write post-norm, read softmax norm", "read given"])
def test_gradients_that_do_not_come_are_zeros(form, backend):
    halves = boundary(form, dtype=torch.float32 if backend == "triton" else torch.float64)
    call, arguments = function(*halves[1:]), tensors(*halves)
    for chosen in range(len(call(*arguments))):
        exact = torch.func.grad(lambda *a, i=chosen: call(*a)[i].sin().sum(), tuple(range(len(arguments))))(*arguments)
        with kernels.backend(backend):
            found = torch.autograd.grad(call(*arguments)[chosen].sin().sum(), arguments, materialize_grads=True)
        torch.testing.assert_close(found, exact)


@pytest.mark.parametrize("form", ["write post-norm, read softmax norm", "read sigmoid norm", "write identity"])
def test_every_transform_gives_the_same_derivative(form):
    halves = boundary(form)
    call, arguments = function(*halves[1:]), [a.detach() for a in tensors(*halves)]
    cotangents = [torch.randn_like(o) for o in call(*arguments)]
    tangents = [torch.randn_like(a) for a in arguments]
    exact = truth(call, arguments, cotangents)[len(cotangents) :]
    leaves = [a.requires_grad_() for a in arguments]
    recomputed = results(lambda *a: checkpoint(call, *a, use_reentrant=False), leaves, cotangents)[len(cotangents) :]
    torch.testing.assert_close(recomputed, exact)
    _, pushed = torch.func.jvp(call, tuple(arguments), tuple(tangents))
    with torch.autograd.forward_ad.dual_level():
        duals = [torch.autograd.forward_ad.make_dual(a, t) for a, t in zip(arguments, tangents, strict=True)]
        dual = [torch.autograd.forward_ad.unpack_dual(o).tangent for o in call(*duals)]
    torch.testing.assert_close(dual, list(pushed))
    inner = sum((p * c).sum() for p, c in zip(pushed, cotangents, strict=True))
    torch.testing.assert_close(inner, sum((g * t).sum() for g, t in zip(exact, tangents, strict=True)))
    batched = torch.func.vmap(call)(*(torch.stack([a, 2 * a]) for a in arguments))
    for value, once in zip(batched, call(*arguments), strict=True):
        torch.testing.assert_close(value[0], once)


@pytest.mark.parametrize("opaque", [False, True])
@pytest.mark.parametrize("form", ["write post-norm, read softmax norm", "read sigmoid norm"])
def test_compiled_whole_it_has_the_same_gradients(form, opaque, monkeypatch):
    monkeypatch.setattr(crossing, "_has_body", lambda *_: opaque)
    crossing._has_body._dynamo_marked_constant = True
    torch._dynamo.reset()
    halves = boundary(form)
    call, arguments = function(*halves[1:]), tensors(*halves)
    cotangents = [torch.randn_like(o) for o in call(*arguments)]
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    found = results(compiled, arguments, cotangents)
    torch.testing.assert_close(found, truth(call, arguments, cotangents))


@pytest.mark.parametrize("chosen", [slice(0, 1), slice(-1, None)], ids=["first", "last"])
@pytest.mark.parametrize("form", ["write post-norm, read softmax norm", "read given"])
def test_double_backward_of_a_traced_boundary_raises(form, chosen, monkeypatch):
    monkeypatch.setattr(crossing, "_has_body", lambda *_: True)
    crossing._has_body._dynamo_marked_constant = True
    torch._dynamo.reset()
    halves = boundary(form)
    call, arguments = function(*halves[1:]), [a.detach() for a in tensors(*halves)]
    wanted = [a.requires_grad_() for a in arguments[chosen]]

    # Behind another function, whose own second derivative would be found whatever becomes of the boundary's.
    def loss(*given):
        return sum(output.sin().sum() for output in call(*(a.sin() for a in given)))

    traced = torch.compile(loss, fullgraph=True, backend="eager")
    exact = torch.autograd.grad(loss(*arguments), wanted)
    torch.testing.assert_close(torch.autograd.grad(traced(*arguments), wanted), exact)

    def curvature():
        slope = torch.autograd.grad(traced(*arguments), wanted, create_graph=True)
        return torch.autograd.grad(sum(s.square().sum() for s in slope), wanted)

    with pytest.raises(RuntimeError, match="create_graph=True"):
        curvature()


@pytest.mark.parametrize("form", ["write post-norm, read softmax norm", "write identity", "read given"])
def test_operations_keep_the_contract_of_torch_library(form):
    x, write, read = boundary(form)
    matrix, post, y, post_eps = write or (None, None, None, None)
    bias, weight, scale, gate, eps = read or (None, None, None, "given", None)
    given = [None if t is None else t.detach() for t in (x, matrix, post, y, weight, bias, scale)]
    options = (gate, eps is not None, eps or 0.0, -1.0 if post_eps is None else post_eps)
    torch.library.opcheck(torch.ops.jpmhc.boundary_forward, (*given, *options))
    streams, u, z, pre, rms, post_rms = boundary_forward(Boundary(*given, *options))
    x, matrix, post, y, weight, bias, scale = given
    kept = [t if t.numel() else None for t in (z, pre, rms, post_rms)]
    grads = [None if t is None else torch.randn_like(t) for t in (x, None if read is None else u, kept[0])]
    arguments = (*grads, x, matrix, post, y, weight, scale, streams if write else x, *kept, gate)
    torch.library.opcheck(torch.ops.jpmhc.boundary_backward, arguments)
    batched = tuple(torch.stack([a, 2 * a]) if a is grads[0] else a for a in arguments)
    dims = tuple(0 if a is grads[0] else None for a in arguments)
    doubled = torch.func.vmap(torch.ops.jpmhc.boundary_backward, in_dims=dims)(*batched)
    again = boundary_backward(Pullback(2 * grads[0], *arguments[1:]))
    for value, once, twice in zip(doubled, boundary_backward(Pullback(*arguments)), again, strict=True):
        torch.testing.assert_close(value, torch.stack([once, twice]))


def test_it_keeps_small_numbers_for_backward_beside_the_streams():
    x, write, read = boundary("write post-norm, read softmax norm", tokens=9, d=64)
    saved = []
    with kernels.backend("reference"), torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, id):
        crossed = cross(x, write, read)
    inputs = {t.data_ptr() for t in (*tensors(x, write, read), crossed.streams)}
    assert sum(t.numel() for t in saved if t.data_ptr() not in inputs) == 9 * (14 + 4 + 1 + 4)


def test_the_gradient_of_the_streams_is_written_once():
    x, write, read = boundary("write, read softmax norm")
    first = cross(x, None, read)
    last = cross(first.streams, write._replace(y=first.u)).streams
    with torch.profiler.profile(record_shapes=True) as profile:
        torch.autograd.grad(last.sum(), x)
    added = [event.input_shapes for event in profile.events() if event.name in ("aten::add", "aten::add_")]
    assert [5, 4, 6] not in [shapes[0] for shapes in added]
