"""Steps of doubly stochastic matrices: the bodies against the reference in float64."""

import pytest
import torch

from jpmhc import kernels, manifolds
from jpmhc.kernels.sinkhorn import sinkhorn_forward
from tests.kernels.ways import way


def moved(x, u, root, name, steps=128):
    eps = torch.finfo(x.dtype).eps
    with way(name):
        return kernels.birkhoff_retraction(x, u, root, eps**2, 4 * eps, steps)


def material(*shape, length=0.5):
    generator = torch.Generator().manual_seed(0)
    birkhoff = manifolds.Birkhoff()
    x = birkhoff.random(*shape, dtype=torch.float64, generator=generator)
    u = birkhoff.proju(x, torch.randn(shape, dtype=torch.float64, generator=generator))
    return x, length * u / birkhoff.norm(x, u, keepdim=True)


@pytest.mark.parametrize("root", [True, False])
@pytest.mark.parametrize(
    "shape", [(40, 2, 2), (33, 3, 3), (5, 7, 16, 16), (3, 17, 17), (2, 66, 66), (1, 131, 131), (0, 4, 4)]
)
@pytest.mark.parametrize(("dtype", "tol"), [(torch.float64, 1e-14), (torch.float32, 2e-6)])
@pytest.mark.parametrize("name", ["numba", "tiles"])
def test_bodies_are_the_reference(root, shape, dtype, tol, name):
    x, u = material(*shape)
    # Columns apart in memory, as a transposed batch has them.
    x, u = (tensor.to(dtype).mT.contiguous().mT for tensor in (x, u))
    result = moved(x, u, root, name)
    expected = moved(x.double(), u.double(), root, "reference")
    assert (result.dtype, result.is_contiguous(), result.shape) == (dtype, True, x.shape)
    torch.testing.assert_close(result.double(), expected, rtol=0, atol=tol)


def test_the_reference_is_the_definition():
    x, u = material(6, 5, 5, length=1.0)
    w = 1 + u / (2 * x)
    q = ((w - 1) ** 2 / (1 + (w - 1) ** 2)) ** 2
    bent = (w + (w * w + q).sqrt()) / 2
    for root, to in ((True, x * bent**2), (False, x * (u / x).exp())):
        expected = sinkhorn_forward(to.log(), None, None, 1e-15, 128)
        torch.testing.assert_close(moved(x, u, root, "reference"), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("root", [True, False])
@pytest.mark.parametrize(("size", "name"), [(4, "numba"), (4, "tiles"), (24, "numba")])
def test_what_overflows_goes_by_logarithms_and_stays_in_its_matrix(root, size, name):
    x, u = material(4, size, size)
    x = x.float()
    u = u.float()
    u[1] *= 20  # numbers whose exponentials float32 does not hold
    x[2] = 1e-6 / size + (1 - 1e-6) * torch.eye(size)  # next to a vertex
    u[2] = torch.randn(size, size, generator=torch.Generator().manual_seed(1)) * (x[2].sqrt() if root else 20 * x[2])
    u[3, 0, 0] = float("nan")
    result = moved(x, u, root, name)
    assert result[3].isnan().any()
    alone = torch.cat([moved(one[None], along[None], root, name) for one, along in zip(x[:3], u[:3], strict=True)])
    assert torch.equal(result[:3], alone)
    assert (result[:3] > 0).all()
    one = torch.ones(3, size)
    torch.testing.assert_close(result[:3].sum(-1), one, rtol=0, atol=1e-5)
    torch.testing.assert_close(result[:3].sum(-2), one, rtol=0, atol=1e-5)


@pytest.mark.parametrize("retraction", ["root", "sinkhorn"])
@pytest.mark.parametrize("shape", [(150, 3, 3), (50, 20, 20)])
def test_derivatives_are_those_of_the_reference(retraction, shape):
    birkhoff = manifolds.Birkhoff(retraction)
    x, u = material(*shape)
    # Half way to the centre: second derivatives divide by the square of an entry, and round-off with it.
    x = (x + 1 / shape[-1]) / 2
    weights = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    found = []
    for name in ("numba", "reference"):
        with kernels.backend(name):
            arguments = x.clone().requires_grad_(), u.clone().requires_grad_()
            first = torch.autograd.grad((birkhoff.retr(*arguments) * weights).sum(), arguments, create_graph=True)
            second = torch.autograd.grad(sum((g * weights).sum() for g in first), arguments)
            tangent = torch.func.jvp(birkhoff.retr, (x, u), (torch.zeros_like(u), weights))[1]
            found.append((*first, *second, tangent))
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9 * float(expected.detach().abs().max()))
