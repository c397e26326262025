"""The elimination of a chain of layers, held to the inverse of the linearisation, and its bodies to one another."""

import pytest
import torch

from jpmhc import kernels
from jpmhc.kernels.chain import chain_sweeps, noisy_chain_sweeps, noisy_sweeps, sweeps

OPERATIONS = {"chain_sweeps": (chain_sweeps, sweeps), "noisy_chain_sweeps": (noisy_chain_sweeps, noisy_sweeps)}


def given(operation, layers, streams, points, angle=0.3, seed=0):
    """Real tensors of the operation, then the complex ones."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    mixers = torch.eye(streams) + 0.3 * normal(layers, streams, streams)
    gates = (normal(layers, streams), normal(layers, streams)) if operation == "chain_sweeps" else ()
    w = torch.polar(0.5 + normal(points).abs(), torch.full((points,), angle, dtype=torch.float64))
    s, t = (torch.complex(0.2 * normal(points, layers), -0.3 * normal(points, layers).abs()) for _ in range(2))
    return (mixers, *gates), (w, s, t)


def linearisation(mixers, gates, w, s, t):
    """The matrix over y_0, x_1, y_1, ..., x_L, y_L whose inverse the sweeps take apart, at one point."""
    layers, streams = mixers.shape[:2]
    size = (2 * layers + 1) * streams
    eye = torch.eye(streams, dtype=w.dtype)
    matrix = torch.zeros(size, size, dtype=w.dtype)

    def block(i, j, value):
        matrix[i * streams : (i + 1) * streams, j * streams : (j + 1) * streams] += value

    block(0, 0, w * eye)
    block(2 * layers, 2 * layers, -eye / w)
    for l in range(layers):
        read, write = (eye, eye) if not gates else (gates[0][l][:, None].to(w.dtype), gates[1][l][:, None].to(w.dtype))
        y, x, after = 2 * l, 2 * l + 1, 2 * l + 2
        block(x, after, eye)
        block(after, x, eye)
        block(x, y, -mixers[l].to(w.dtype))
        block(y, x, -mixers[l].mT.to(w.dtype))
        block(y, y, -s[l] * read @ read.mT)
        block(x, x, -t[l] * write @ write.mT)
    return matrix


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize(("layers", "streams"), [(1, 1), (3, 2), (4, 4)])
def test_sweeps_give_the_inverse_of_the_linearisation(operation, layers, streams):
    real, points = given(operation, layers, streams, 2)
    g, gx, gy, pivots = OPERATIONS[operation][1](*real, *points)
    for k, (w, s, t) in enumerate(zip(*points, strict=True)):
        matrix = linearisation(real[0], real[1:], w, s, t)
        inverse = torch.linalg.inv(matrix)

        def block(i, inverse=inverse):
            return inverse[i * streams : (i + 1) * streams, i * streams : (i + 1) * streams]

        assert torch.allclose(g[k], block(0).trace() / streams)
        for l in range(layers):
            seen = [block(2 * l + 1), block(2 * l)]
            if len(real) > 1:
                vectors = (real[2][l].to(w.dtype), real[1][l].to(w.dtype))
                values = [v @ G @ v for v, G in zip(vectors, seen, strict=True)]
            else:
                values = [G.trace() / streams for G in seen]
            assert torch.allclose(torch.stack([gx[k, l], gy[k, l]]), torch.stack(values))
        without = torch.linalg.det(linearisation(0 * real[0], real[1:], w, 0 * s, 0 * t))
        assert torch.allclose(pivots[k].prod(), torch.linalg.det(matrix) / without)


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize(("layers", "streams", "points"), [(9, 4, 21), (2, 1, 1), (12, 5, 8), (3, 16, 3), (9, 4, 0)])
def test_the_body_agrees_with_the_reference(operation, layers, streams, points):
    real, complex_ones = given(operation, layers, streams, points, angle=1e-3)
    args = (*real, *map(torch.view_as_real, complex_ones))
    with kernels.backend("numba"):
        assert kernels.choice(operation, *args).backend == "numba"
        found = OPERATIONS[operation][0](*args)
    expected = OPERATIONS[operation][1](*real, *complex_ones)
    for value, truth in zip(found, expected, strict=True):
        assert value.is_contiguous()
        assert torch.allclose(torch.view_as_complex(value), truth, rtol=1e-9)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_torch_accepts_the_registration(operation):
    real, points = given(operation, 9, 2, 3)
    args = (*real, *map(torch.view_as_real, points))
    with kernels.backend("numba"):
        torch.library.opcheck(getattr(torch.ops.jpmhc, operation).default, args)


def test_auto_compiles_for_deep_chains():
    for layers, expected in ((2, "reference: fewer than 3 layers"), (3, "numba: the body for the device cpu")):
        real, points = given("chain_sweeps", layers, 2, 3)
        assert str(kernels.choice("chain_sweeps", *real, *map(torch.view_as_real, points))) == expected


@pytest.mark.parametrize("operation", OPERATIONS)
def test_derivatives_of_the_plain_sweeps(operation):
    real, points = given(operation, 2, 2, 2)
    tensors = [tensor.clone().requires_grad_() for tensor in (*real, *points)]
    assert torch.autograd.gradcheck(OPERATIONS[operation][1], tensors)
