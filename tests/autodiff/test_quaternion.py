"""Rotations by pairs of quaternions: the map by its definition, the derivative of every order and mode."""

import pytest
import torch

from jpmhc import autodiff, kernels


def pairs(*batch, dtype=torch.float64):
    return torch.randn(*batch, 2, 4, generator=torch.Generator().manual_seed(0), dtype=dtype)


def product(a, b):
    (a0, *av), (b0, *bv) = a.tolist(), b.tolist()
    av, bv = torch.tensor(av, dtype=torch.float64), torch.tensor(bv, dtype=torch.float64)
    return torch.cat([(a0 * b0 - av @ bv).view(1), a0 * bv + b0 * av + torch.linalg.cross(av, bv)])


def test_it_is_the_product_of_three_quaternions():
    pair, x = pairs(), torch.randn(4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    p, q = pair / pair.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(autodiff.quaternion(pair) @ x, product(product(p, x), q), rtol=0, atol=1e-14)


def test_results_are_rotations_in_float32_at_least():
    rotation = autodiff.quaternion(pairs(500, dtype=torch.float32).bfloat16())
    assert rotation.dtype == torch.float32
    torch.testing.assert_close(rotation @ rotation.mT, torch.eye(4).expand(500, 4, 4), rtol=0, atol=1e-6)
    torch.testing.assert_close(torch.linalg.det(rotation), torch.ones(500))


@pytest.mark.parametrize("backend", ["reference", "numba"])
def test_derivatives_of_first_and_second_order(backend):
    pair = pairs(3).requires_grad_()
    with kernels.backend(backend):
        assert torch.autograd.gradcheck(autodiff.quaternion, pair, check_forward_ad=True, check_batched_grad=True)
        assert torch.autograd.gradgradcheck(autodiff.quaternion, pair)


TRANSFORMS = {
    "jacrev": torch.func.jacrev,
    "jacfwd": torch.func.jacfwd,
    "vmap": torch.func.vmap,
    "jacfwd of jacrev": lambda f: torch.func.jacfwd(torch.func.jacrev(f)),
    "jacfwd of jacfwd": lambda f: torch.func.jacfwd(torch.func.jacfwd(f)),
}


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_every_transform_gives_the_derivative_of_the_plain_map(transform):
    found = transform(autodiff.quaternion)(pairs(2))
    torch.testing.assert_close(found, transform(kernels.plain_quaternion)(pairs(2)))


@pytest.mark.parametrize("transform", ["jacrev", "jacfwd"])
def test_compiled_whole_it_has_the_same_derivatives(transform):
    torch._dynamo.reset()
    transform = TRANSFORMS[transform]
    found = torch.compile(transform(autodiff.quaternion), fullgraph=True, backend="aot_eager")(pairs(2))
    torch.testing.assert_close(found, transform(autodiff.quaternion)(pairs(2)))


def test_it_keeps_the_pair_alone():
    pair, saved = pairs(7).requires_grad_(), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        autodiff.quaternion(pair)
    assert [t.data_ptr() for t in saved] == [pair.data_ptr()]


def test_a_quaternion_of_zeros_counts_as_one():
    pair = torch.zeros(2, 4).requires_grad_()
    rotation = autodiff.quaternion(pair)
    torch.testing.assert_close(rotation, torch.eye(4))
    assert torch.equal(torch.autograd.grad(rotation[0, 1], pair)[0], torch.zeros(2, 4))


@pytest.mark.parametrize(
    ("pair", "error"), [(torch.zeros(4, 2), ValueError), (torch.zeros(2, 4, dtype=torch.int64), TypeError)]
)
def test_what_is_no_pair_is_refused(pair, error):
    with pytest.raises(error, match="pair: expected"):
        autodiff.quaternion(pair)
