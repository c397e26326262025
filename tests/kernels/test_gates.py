"""Gates of the write and numbers of the mixer: every body against float64, and the function with its derivatives."""

import itertools

import numpy as np
import pytest
import torch

from jpmhc import kernels
from jpmhc.autodiff import gates
from jpmhc.autodiff.gates import Opening, opened
from jpmhc.kernels.bodies import interpreted
from jpmhc.kernels.gates import Gates, GatesPullback, gates_backward, gates_forward, plain_gates
from jpmhc.kernels.primitive import choice
from tests.kernels.cuda.machine import launch
from tests.kernels.interpreter import bodies, run_again

GATES = ["softmax", "sigmoid", "tanh"]
FORMS = list(itertools.product(GATES, [False, True]))
TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-14}
DTYPES = {"numba": (torch.float32, torch.float64), "reference": (torch.float32,), "triton": (torch.float32,)}
BODIES = [(*body, dtype) for body in bodies("reference", "numba") for dtype in DTYPES[body[0]]]
# Tokens, streams, raw numbers: none, one, none of a mixer, more than a tile and a chunk of a sum.
SIZES = [(0, 4, 24), (1, 1, 3), (7, 3, 6), (1100, 4, 14), (70, 16, 288)]


def material(tokens, n, m, dtype=torch.float64, scale=1.0, seed=0):
    """Raw numbers, bias and scales, and gradients of both results."""
    draw = torch.Generator().manual_seed(seed)
    shapes = (tokens, m), (m - n,), (2,), (tokens, n), (tokens, m - 2 * n)
    z, *others = (torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype) for shape in shapes)
    return scale * z, *others


def truth(z, bias, scale, grads, *options):
    """Results and gradients in float64 by torch's own rules."""
    wide = [tensor.double().requires_grad_() for tensor in (z, bias, scale)]
    results = plain_gates(*wide, *options)
    return [*results, *torch.autograd.grad(results, wide, [g.double() for g in grads])]


def by_operations(z, bias, scale, grads, gate, n, squashed):
    post, raw = gates_forward(Gates(z, bias, scale, gate, n, squashed))
    grad_z, sums = gates_backward(GatesPullback(*grads, z, post, scale, gate, squashed))
    return [post, raw, grad_z, *sums.split([len(bias), 2])]


def assert_agrees(found, wanted, tolerance):
    for value, exact in zip(found, wanted, strict=True):
        assert value.shape == exact.shape
        size = exact.abs().max().item() if exact.numel() else 0.0
        torch.testing.assert_close(value.cpu().double(), exact, rtol=0, atol=tolerance * max(1.0, size))


@pytest.mark.skipif(interpreted(), reason="the process that this test starts")
def test_triton_bodies_in_the_interpreter():
    assert run_again(__file__, "-k", "float64 or far or strides or not_finite") > 0


@pytest.mark.parametrize(("backend", "device", "dtype"), BODIES)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize(("gate", "squashed"), FORMS)
def test_bodies_agree_with_float64(gate, squashed, sizes, backend, device, dtype):
    z, bias, scale, *grads = material(*sizes, dtype)
    options = gate, sizes[1], squashed
    on_device = [tensor.to(device) for tensor in (z, bias, scale, *grads)]
    with kernels.backend(backend):
        assert choice("gates_forward", *on_device[:3], *options).backend == backend
        found = by_operations(*on_device[:3], on_device[3:], *options)
    assert_agrees(found, truth(z, bias, scale, grads, *options), 4 * TOLERANCE[dtype])


@pytest.mark.parametrize(("backend", "device", "dtype"), BODIES)
@pytest.mark.parametrize("gate", GATES)
def test_far_numbers_stay_weights(gate, backend, device, dtype):
    z, bias, scale, *grads = (tensor.to(device) for tensor in material(40, 3, 15, dtype, scale=200.0))
    with kernels.backend(backend):
        found = by_operations(z, bias, scale, grads, gate, 3, True)
    assert all(value.isfinite().all() for value in found)
    assert_agrees(
        found,
        truth(*(t.cpu() for t in (z, bias, scale)), [g.cpu() for g in grads], gate, 3, True),
        20 * TOLERANCE[dtype],
    )


@pytest.mark.parametrize(("backend", "device", "dtype"), BODIES)
def test_any_strides(backend, device, dtype):
    given = [tensor.to(device) for tensor in material(37, 4, 24, dtype)]
    z, bias, scale, *grads = [t.t().contiguous().t() if t.ndim == 2 else torch._neg_view(-t) for t in given]
    with kernels.backend(backend):
        found = by_operations(z, bias, scale, grads, "softmax", 4, False)
    wanted = truth(*(t.cpu() for t in given[:3]), [g.cpu() for g in given[3:]], "softmax", 4, False)
    assert_agrees(found, wanted, 4 * TOLERANCE[dtype])


@pytest.mark.parametrize(("backend", "device", "dtype"), BODIES)
@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", ["write", "mixer", "grad_post", "grad_raw"])
def test_what_is_not_finite_is_not_lost_and_stays_where_it_belongs(place, wrong, gate, backend, device, dtype):
    z, bias, scale, grad_post, grad_raw = material(40, 4, 14, dtype)
    scale = scale.abs()
    wrongs = {"write": z[3, 4:8], "mixer": z[3, 8:], "grad_post": grad_post[3], "grad_raw": grad_raw[3]}
    wrongs[place][1] = wrong
    wanted = by_operations(z, bias, scale, (grad_post, grad_raw), gate, 4, False)
    with kernels.backend(backend):
        given = [tensor.to(device) for tensor in (z, bias, scale, grad_post, grad_raw)]
        found = by_operations(*given[:3], given[3:], gate, 4, False)
    for value, expected in zip(found, wanted, strict=True):
        assert torch.equal(value.cpu().isfinite(), expected.isfinite())
    for value, expected in zip(found[:3], wanted[:3], strict=True):
        torch.testing.assert_close(value.cpu(), expected, equal_nan=True, rtol=1e-5, atol=1e-5)
    # The other part knows nothing of it.
    other = found[3][:4] if place in ("mixer", "grad_raw") else found[3][4:]
    assert other.isfinite().all()
    assert found[2][torch.arange(40) != 3].isfinite().all()


@pytest.mark.skipif(interpreted(), reason="of the compiler")
@pytest.mark.parametrize("before", [0, 2**30])
@pytest.mark.parametrize(("gate", "squashed"), [("softmax", False), ("sigmoid", True), ("tanh", True), ("tanh", False)])
@pytest.mark.parametrize("sizes", [(70, 4, 24), (9, 3, 8), (5, 16, 288)], ids=str)
def test_compiled_for_a_gpu(gate, squashed, sizes, before):
    pytest.importorskip("triton")
    z, bias, scale, *grads = material(*sizes, torch.float32)
    options = gate, sizes[1], squashed
    with launch.machine(before=before) as ran, kernels.backend("triton"):
        found = by_operations(z, bias, scale, grads, *options)
    assert set(ran) == {"_open", "_close"}
    assert_agrees(found, truth(z, bias, scale, grads, *options), 8e-6)


@pytest.mark.parametrize("name", ["bias", "scale", "z"])
def test_what_does_not_fit_is_not_read_by_compiled_code(name):
    pytest.importorskip("numba")
    z, bias, scale, *_ = material(9, 4, 24, torch.float32)
    given = Gates(z, bias, scale, "softmax", 4, False)
    short = given._replace(**{name: z[:, :7] if name == "z" else getattr(given, name)[:1]})
    with kernels.backend("numba"):
        assert choice("gates_forward", *short).reason.startswith(f"{name}: expected")


def test_threads_change_nothing(monkeypatch):
    pytest.importorskip("numba")
    z, bias, scale, *grads = material(3000, 4, 24, torch.float32)
    found = []
    for threads in (1, 2, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        with kernels.backend("numba"):
            found.append(by_operations(z, bias, scale, grads, "softmax", 4, False))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("few", [0, 512])
@pytest.mark.parametrize(("gate", "squashed"), FORMS)
def test_derivatives_of_every_order_and_mode(gate, squashed, few, monkeypatch):
    monkeypatch.setattr(gates, "_FEW", few)
    z, bias, scale, *_ = (tensor.requires_grad_() for tensor in material(3, 2, 7))

    def function(z, bias, scale):
        return opened(z.view(3, 1, 7), Opening(bias, scale, gate, 2, squashed))

    torch.autograd.gradcheck(function, (z, bias, scale), check_forward_ad=True, check_batched_grad=True)
    torch.autograd.gradgradcheck(function, (z, bias, scale))
    torch.autograd.gradcheck(function, (z.detach(), bias, scale.detach()))


@pytest.mark.parametrize("gate", GATES)
def test_function_transforms_see_plain_operations(gate, monkeypatch):
    monkeypatch.setattr(gates, "_FEW", 0)  # for few tokens all do
    z, bias, scale, *_ = material(6, 2, 7)

    def loss(z, bias, scale):
        post, raw = opened(z, Opening(bias, scale, gate, 2))
        return (post.sin().sum(-1) + raw.square().sum(-1)).sum()

    apart = torch.func.vmap(torch.func.grad(loss), (0, None, None))(z, bias, scale)
    torch.testing.assert_close(apart, torch.autograd.functional.jacobian(loss, (z, bias, scale))[0])
    together = torch.func.hessian(loss, 1)(z, bias, scale)
    torch.testing.assert_close(together, torch.autograd.functional.hessian(lambda b: loss(z, b, scale), bias))


def test_what_is_kept_for_backward():
    z, bias, scale, *_ = (tensor.requires_grad_() for tensor in material(600, 4, 24, torch.float32))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        post, _ = opened(z, Opening(bias, scale, "softmax", 4))
    assert {t.data_ptr() for t in kept} == {t.data_ptr() for t in (z, scale, post)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tanh_is_right_to_three_units_in_the_last_place(dtype):
    pytest.importorskip("numba")
    sizes = torch.cat([torch.logspace(-30, 1.5, 4000), torch.linspace(0.4, 0.6, 2000), torch.tensor([0.0, 400.0])])
    z = torch.cat([sizes, -sizes]).to(dtype).view(-1, 1).expand(-1, 3)
    with kernels.backend("numba"):
        _, raw = gates_forward(Gates(z, z.new_zeros(2), z.new_ones(2), "sigmoid", 1, True))
    exact = z[:, 2:].numpy().astype(np.longdouble)
    unit = np.spacing(np.abs(np.tanh(exact)).astype(z.numpy().dtype))
    assert (np.abs(raw.numpy() - np.tanh(exact)) <= 3 * unit).all()


def test_an_unknown_gate_is_refused():
    z, bias, scale, *_ = material(600, 4, 24, torch.float32)
    for name in ("numba", "reference"):
        with kernels.backend(name), pytest.raises(ValueError, match="gate: expected one of softmax, sigmoid, tanh"):
            gates_forward(Gates(z, bias, scale, "given", 4, False))


def test_a_body_asked_for_by_name_opens_the_gates_of_few_tokens(monkeypatch):
    calls = []
    monkeypatch.setattr(gates, "gates_forward", lambda given: calls.append(given) or gates_forward(given))
    z, bias, scale, *_ = material(5, 4, 24, torch.float32)
    opened(z, Opening(bias, scale, "softmax", 4))
    assert not calls
    with kernels.backend("numba"):
        opened(z, Opening(bias, scale, "softmax", 4))
    assert len(calls) == 1


@pytest.mark.parametrize("operation", ["gates_forward", "gates_backward"])
def test_operations_are_registered_as_torch_asks(operation):
    z, bias, scale, *grads = material(5, 2, 7, torch.float32)
    post, _ = gates_forward(Gates(z, bias, scale, "softmax", 2, False))
    options = {
        "gates_forward": (z, bias, scale, "softmax", 2, False),
        "gates_backward": (*grads, z, post, scale, "softmax", False),
    }
    torch.library.opcheck(getattr(torch.ops.jpmhc, operation).default, options[operation])


@pytest.mark.parametrize("tokens", [5, 600])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_raw_numbers_of_low_precision_are_raised_to_the_bias(dtype, tokens):
    z, bias, scale, *_ = material(tokens, 2, 7, torch.float32)
    post, raw = opened(z.to(dtype), Opening(bias, scale, "sigmoid", 2))
    assert post.dtype == raw.dtype == torch.float32
