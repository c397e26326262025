"""Small matrices by elimination against dense algebra in float64."""

import pytest
import torch

from jpmhc import kernels
from jpmhc.kernels import polar
from jpmhc.kernels.elementary import eliminated, gram_schmidt
from jpmhc.kernels.elimination import inverse

DTYPES = [torch.float32, torch.float64]


def spectrum(n, condition, rows=None, batch=40):
    """Random matrices in float64 with singular values from one down to the inverse of the condition."""
    generator = torch.Generator().manual_seed(0)
    u = torch.linalg.qr(torch.randn(batch, rows or n, n, dtype=torch.float64, generator=generator)).Q
    v = torch.linalg.qr(torch.randn(batch, n, n, dtype=torch.float64, generator=generator)).Q
    values = torch.logspace(0, -torch.tensor(condition).log10().item(), n, dtype=torch.float64)
    return u, values, v.mT


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("condition", [1.0, 1e2, 1e4])
@pytest.mark.parametrize("n", [1, 2, 3, 4, 7])
def test_inverse_is_as_good_as_the_condition_allows(n, condition, dtype):
    u, values, vh = spectrum(n, condition)
    matrix = ((u * values) @ vh).to(dtype)
    found, expected = eliminated(matrix).double(), torch.linalg.inv(matrix.double())
    assert ((found - expected).norm(dim=(-2, -1)) / expected.norm(dim=(-2, -1))).max() < (
        20 * condition * torch.finfo(dtype).eps
    )


def test_pivots_that_are_zero_are_passed_over_and_singular_matrices_leave_neighbours_alone():
    turn = torch.tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], dtype=torch.float64)
    matrix = torch.stack([turn, torch.zeros(3, 3, dtype=torch.float64), 2 * torch.eye(3), turn.mT])
    found = eliminated(matrix)
    assert torch.equal(found[[0, 2, 3]], torch.stack([turn.mT, torch.eye(3).double() / 2, turn]))
    assert not found[1].isfinite().all()
    assert eliminated(matrix[:0]).shape == (0, 3, 3)


SIZES = [1, 2, 4, 5, 8, 15, 16, 17, 33, 64, 100, 128]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("condition", [1.0, 1e4])
@pytest.mark.parametrize("n", SIZES)
def test_inverses_by_blocks_of_pivots(n, condition, dtype):
    pytest.importorskip("numba")
    u, values, vh = spectrum(n, condition, batch=5)
    matrix = ((u * values) @ vh).to(dtype).mT.contiguous().mT
    with kernels.backend("numba"):
        assert kernels.choice("inverse", matrix).backend == "numba"
        found = inverse(matrix)
    expected = torch.linalg.inv(matrix.double())
    assert (found.dtype, found.shape, found.is_contiguous()) == (dtype, matrix.shape, True)
    error = (found.double() - expected).norm(dim=(-2, -1)) / expected.norm(dim=(-2, -1))
    assert error.max() < 20 * n**0.5 * condition * torch.finfo(dtype).eps


@pytest.mark.parametrize("n", [3, 4, 9, 21])
def test_rows_change_places_where_pivots_are_zero(n):
    pytest.importorskip("numba")
    generator = torch.Generator().manual_seed(n)
    turns = torch.stack([torch.eye(n)[torch.randperm(n, generator=generator)] for _ in range(20)])
    singular = torch.ones(1, n, n)
    bad = torch.full((1, n, n), torch.nan)
    with kernels.backend("numba"):
        found = inverse(torch.cat([turns, singular, bad, 0 * bad.nan_to_num(), turns]))
        assert inverse(turns[:0]).shape == (0, n, n)
        alone = torch.cat([inverse(turn) for turn in turns.split(1)])
    assert torch.equal(found[:20], turns.mT)
    assert torch.equal(found[-20:], turns.mT)
    assert torch.equal(alone, turns.mT)
    assert not any(found[20 + k].isfinite().all() for k in range(3))


def test_inverses_are_by_the_library_where_it_is_as_fast():
    pytest.importorskip("numba")
    assert kernels.choice("inverse", torch.randn(64, 64, 64)).backend == "numba"
    assert str(kernels.choice("inverse", torch.randn(7, 32, 32))) == "reference: fewer than 262144 multiplications"
    assert "129 x 129" in str(kernels.choice("inverse", torch.randn(64, 129, 129)))


@pytest.mark.parametrize("name", ["inverse", "newton_polar"])
def test_operations_are_registered_as_torch_asks(name):
    torch.library.opcheck(getattr(torch.ops.jpmhc, name).default, (torch.eye(3) + torch.rand(2, 3, 3) / 4,))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [9, 12, 16, 33, 70])
@pytest.mark.parametrize("more", [0, 3])
@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e20])
def test_polar_factors_by_newton_are_those_of_the_singular_vectors(columns, more, scale, dtype):
    pytest.importorskip("numba")
    u, values, vh = spectrum(columns, 1e3, rows=columns + more, batch=6)
    matrix = (scale * (u * values) @ vh).to(dtype)
    with kernels.backend("numba"):
        found = kernels.polar_forward(matrix)
    eps = torch.finfo(dtype).eps
    assert (found.mT @ found - torch.eye(columns, dtype=dtype)).abs().max() < 16 * eps
    assert (found.double() - u @ vh).norm(dim=(-2, -1)).max() < 20 * 1e3 * eps


def test_a_matrix_without_a_factor_leaves_its_neighbours_alone():
    pytest.importorskip("numba")
    matrix = torch.randn(9, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with kernels.backend("numba"):
        good = kernels.polar_forward(matrix)
        matrix[3], matrix[5, 2, 7] = 0.0, torch.nan
        found = kernels.polar_forward(matrix)
        alone = kernels.polar_forward(matrix[8:])
    rest = [0, 1, 2, 4, 6, 7, 8]
    torch.testing.assert_close(found[rest], good[rest], rtol=0, atol=1e-14)
    torch.testing.assert_close(found[8:], alone, rtol=0, atol=1e-14)
    assert not found[5].isfinite().any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("condition", [1.0, 1e3, 1e5])
def test_columns_become_orthonormal_in_their_order(condition, dtype):
    u, values, vh = spectrum(4, condition, rows=9)
    matrix = ((u * values) @ vh).to(dtype)
    q = gram_schmidt(matrix)
    eps = torch.finfo(dtype).eps
    assert (q.mT @ q - torch.eye(4, dtype=dtype)).abs().max() < 8 * eps
    r = q.mT @ matrix
    assert r.tril(-1).abs().max() < 8 * eps
    assert (r.diagonal(dim1=-2, dim2=-1) > 0).all()
    torch.testing.assert_close(q @ r, matrix, rtol=0, atol=8 * eps)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("condition", [1.0, 1e2, 1e4])
@pytest.mark.parametrize("shape", [(1, 1), (4, 1), (2, 2), (4, 2), (8, 3), (4, 4)])
def test_polar_factors_on_an_accelerator_are_those_of_the_singular_vectors(shape, condition, dtype, monkeypatch):
    u, values, vh = spectrum(shape[1], condition, rows=shape[0])
    matrix = (1e3 * (u * values) @ vh).to(dtype)
    # What runs where the device is no CPU.
    monkeypatch.setattr(polar, "orthonormal_columns", gram_schmidt)
    monkeypatch.setattr(polar, "inverse", eliminated)
    factor = polar._by_elimination(matrix)
    eps = torch.finfo(dtype).eps
    assert (factor.double() - u @ vh).abs().max() < 20 * condition * eps
    assert (factor.mT @ factor - torch.eye(shape[1], dtype=dtype)).abs().max() < 8 * eps


def test_a_grassmann_mixer_keeps_its_contract_on_them(monkeypatch):
    from jpmhc import kernels, layers

    monkeypatch.setattr(polar, "orthonormal_columns", gram_schmidt)
    monkeypatch.setattr(polar, "inverse", eliminated)
    monkeypatch.setattr(polar, "can_read", lambda _: False)
    monkeypatch.setattr(kernels, "polar_forward", kernels.polar_forward.__wrapped__)
    monkeypatch.setattr(kernels, "polar_adjoint", kernels.polar_adjoint.__wrapped__)
    monkeypatch.setattr(kernels, "sylvester", kernels.sylvester.__wrapped__)
    for streams, rank in ((4, 1), (4, 2), (5, 3), (8, 4)):
        chart = layers.Grassmann(streams, rank)
        torch.manual_seed(0)
        for scale in (1.0, 1e2, 1e4):
            raw = (scale * torch.randn(64, streams * rank)).requires_grad_()
            matrix = chart(raw)
            assert scale > 1e2 or chart.residual(matrix).max() < 5e-6
            (gradient,) = torch.autograd.grad(matrix.sin().sum(), raw)
            assert gradient.isfinite().all()
        raw = torch.randn(3, streams * rank, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(chart, (raw,))
