"""Reads that are recomputed give the same gradients and are not kept."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad

from benchmarks.memory import saved_mib
from jpmhc import kernels, layers


class Gated(nn.Module):
    """Keeps its input more than once, as views, one of them transposed."""

    def __init__(self, dim):
        super().__init__()
        self.up, self.out = nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)

    def forward(self, u):
        a, b = self.up(u).chunk(2, -1)
        attention = (u @ u.mT).softmax(-1) @ u
        return self.out(a.sigmoid() * b) + u * u[..., :1] + attention


class Rotary(nn.Module):
    """Keeps a view of its input whose sign is not in its numbers."""

    def __init__(self, dim):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(dim // 2))

    def forward(self, u):
        z = torch.view_as_complex(u.unflatten(-1, (-1, 2))).conj()
        return torch.cat([z.real * self.weight, z.imag * self.weight], -1)


class InPlace(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.out = nn.Linear(dim, dim)

    def forward(self, u):
        return self.out(u.mul_(2)).sin()


def stacks(branch, dim=8, dtype=torch.float64, **options):
    torch.manual_seed(0)
    made = [layers.HyperConnection(dim, branch(dim), layer_index=i, **options) for i in range(3)]
    for layer in made:
        for parameter in layers.mixing_parameters(layer):
            parameter.data.add_(0.3 * torch.randn_like(parameter))
    made = nn.ModuleList(made).to(dtype)
    return made, layers.HyperStack(made), layers.HyperStack(made, recompute_reads=True)


def gradients(stack, parameters, x):
    result = stack(x)
    return [result, *torch.autograd.grad(result.sin().sum(), [x, *parameters], allow_unused=True)]


@pytest.mark.parametrize(
    ("options", "backend"),
    [({}, "reference"), ({}, "numba"), ({"dynamic": False}, "reference"), ({"gate": "sigmoid"}, "reference")],
    ids=str,
)
@pytest.mark.parametrize("branch", [Gated, InPlace, Rotary])
def test_the_gradients_are_the_same(branch, options, backend):
    made, kept, recomputed = stacks(branch, **options)
    x = torch.randn(2, 5, 4, 8, dtype=torch.float64).requires_grad_()
    with kernels.backend(backend):
        exact, found = (gradients(stack, [*made.parameters()], x) for stack in (kept, recomputed))
    for a, b in zip(exact, found, strict=True):
        assert a is b is None or torch.allclose(a, b, rtol=1e-11, atol=1e-11)


def test_second_derivatives():
    *_, recomputed = stacks(Gated, 4)
    x = torch.randn(1, 2, 4, 4, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradgradcheck(recomputed, x, fast_mode=True)


def test_u_is_not_kept():
    torch.manual_seed(0)
    layer = layers.HyperConnection(512, nn.Linear(512, 512, bias=False), mixer="sinkhorn")
    x = torch.randn(256, 4, 512).requires_grad_()
    size = x.numel() * 4 / 2**20
    kept, recomputed = (
        saved_mib(layers.HyperStack([layer], recompute_reads=r), x, *layer.parameters()) / size for r in (False, True)
    )
    assert kept - recomputed == pytest.approx(0.25)
    assert recomputed < 0.3


def test_bfloat16_and_autocast():
    made, kept, recomputed = stacks(Gated, dtype=torch.float32)
    x = torch.randn(2, 5, 4, 8).bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        exact, found = (gradients(stack, [*made.parameters()], x) for stack in (kept, recomputed))
    for a, b in zip(exact, found, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("ran_before", [False, True])
def test_compiled_it_is_left_to_the_compiler(ran_before):
    torch._dynamo.reset()
    _, kept, recomputed = stacks(Gated)
    x = torch.randn(2, 5, 4, 8, dtype=torch.float64).requires_grad_()
    if ran_before:
        recomputed(x)
    compiled = torch.compile(recomputed, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(gradients(compiled, [x], x)[:2], gradients(kept, [x], x)[:2])


class Sparse(nn.Module):
    """Keeps a matrix that has no storage."""

    def __init__(self, dim):
        super().__init__()
        self.up = nn.Linear(dim, dim)
        self.register_buffer("mask", torch.eye(dim).roll(1, 0).to_sparse())

    def forward(self, u):
        return torch.sparse.mm(self.mask, (self.up(u) * u).reshape(-1, u.shape[-1]).T).T.reshape(u.shape)


class Mapped(nn.Module):
    """Keeps batches of ``torch.vmap`` of its input, and tangents of zero."""

    def __init__(self, dim):
        super().__init__()
        self.up = nn.Linear(dim, dim)

    def forward(self, u):
        rows = torch.func.vmap(lambda row: self.up(row).tanh() * row)(u.reshape(-1, u.shape[-1]))
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(u, torch.ones_like(u))
            pushed = forward_ad.unpack_dual((dual * self.up(u)).sin()).tangent
        return rows.reshape(u.shape) + pushed


@pytest.mark.parametrize("branch", [Sparse, Mapped])
def test_the_gradients_are_the_same_whatever_kind_of_tensor_a_branch_keeps(branch):
    made, kept, recomputed = stacks(branch)
    x = torch.randn(2, 5, 4, 8, dtype=torch.float64).requires_grad_()
    exact, found = (gradients(stack, [*made.parameters()], x) for stack in (kept, recomputed))
    torch.testing.assert_close(found, exact, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("without", [torch.no_grad, torch.inference_mode])
def test_without_gradients_it_computes_the_same(without):
    _, kept, recomputed = stacks(Gated)
    x = torch.randn(2, 5, 4, 8, dtype=torch.float64)
    with without():
        torch.testing.assert_close(recomputed(x), kept(x), rtol=0, atol=0)


def test_streams_made_in_inference_mode_may_be_differentiated_in_the_parameters():
    made, kept, recomputed = stacks(Gated)
    with torch.inference_mode():
        x = torch.randn(2, 5, 4, 8, dtype=torch.float64)

    def of(stack):
        x_again = x.clone()  # torch keeps no tensor of inference mode for backward
        return torch.autograd.grad(stack(x_again).sin().sum(), [*made.parameters()], allow_unused=True)

    for a, b in zip(of(recomputed), of(kept), strict=True):
        assert a is b is None or torch.allclose(a, b, rtol=1e-11, atol=1e-11)


def test_forward_mode_and_transforms():
    _, kept, recomputed = stacks(Gated)
    x, tangent = (torch.randn(2, 5, 4, 8, dtype=torch.float64) for _ in range(2))

    def by_duals(stack):
        with forward_ad.dual_level():
            return forward_ad.unpack_dual(stack(forward_ad.make_dual(x, tangent))).tangent

    expected = torch.func.jvp(kept, (x,), (tangent,))[1]
    for found in (by_duals(recomputed), torch.func.jvp(recomputed, (x,), (tangent,))[1]):
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(torch.func.vmap(recomputed)(x), torch.stack([kept(part) for part in x]))


class Overtaken(layers.HyperConnection):
    """Once, when it has left its coefficients for statistics, something else happens before it goes on."""

    meanwhile = None

    def __setattr__(self, name, value):
        super().__setattr__(name, value)
        if name == "last" and self.meanwhile is not None:
            happen, self.meanwhile = self.meanwhile, None
            happen()


@pytest.mark.parametrize("options", [{}, {"gate": "sigmoid", "norm": "layer"}], ids=str)
def test_a_forward_in_another_thread_does_not_change_what_is_read_again(options):
    torch.manual_seed(0)
    made = nn.ModuleList(Overtaken(8, Gated(8), layer_index=i, **options) for i in range(3)).double()
    for parameter in layers.mixing_parameters(made):
        parameter.data.add_(0.3 * torch.randn_like(parameter))
    x, other = torch.randn(2, 2, 5, 4, 8, dtype=torch.float64)
    x.requires_grad_()
    exact = gradients(layers.HyperStack(made), [*made.parameters()], x)
    recomputed = layers.HyperStack(made, recompute_reads=True)
    with ThreadPoolExecutor(1) as pool:
        for layer in made:
            layer.meanwhile = lambda: pool.submit(recomputed, other).result()
            found = gradients(recomputed, [*made.parameters()], x)
            assert layer.meanwhile is None
            torch.testing.assert_close(found, exact, rtol=1e-11, atol=1e-11)
