"""Factorisations of batches: right for any number of threads, and with the derivatives that they had."""

import subprocess
import sys

import pytest
import torch

from jpmhc.kernels.batches import determinant_sign, each, inv, solve

D = {"dtype": torch.float64}


@pytest.mark.parametrize("shape", [(3, 150, 150), (2, 1, 151, 151), (160, 160), (0, 150, 150), (4, 4)])
def test_one_by_one_is_the_batch(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0), **D) / shape[-1] ** 0.5
    matrix = matrix + 2 * torch.eye(shape[-1], **D)
    rhs = torch.randn(2, *(1,) * (len(shape) - 2), shape[-1], 3, generator=torch.Generator().manual_seed(1), **D)
    torch.testing.assert_close(matrix @ solve(matrix, rhs), rhs.expand(2, *shape[:-1], 3), rtol=0, atol=1e-11)
    eye = torch.eye(shape[-1], **D).expand(shape)
    torch.testing.assert_close(matrix @ inv(matrix), eye, rtol=0, atol=1e-11)
    assert torch.equal(determinant_sign(matrix), torch.ones(shape[:-2], **D))


def test_derivatives_go_through():
    matrix = torch.randn(2, 130, 130, generator=torch.Generator().manual_seed(0), **D) / 12 + 2 * torch.eye(130, **D)
    matrix.requires_grad_()
    weights = torch.randn(2, 130, 130, generator=torch.Generator().manual_seed(1), **D)
    (ours,) = torch.autograd.grad((inv(matrix) * weights).sum(), matrix)
    inverse = torch.stack([torch.linalg.inv(one) for one in matrix.detach()])
    torch.testing.assert_close(ours, -inverse.mT @ weights @ inverse.mT, rtol=0, atol=1e-11)


def test_small_matrices_and_other_devices_go_together():
    calls = []

    def count(matrix):
        calls.append(matrix.shape)
        return matrix

    each(count, torch.zeros(5, 4, 4))
    each(count, torch.zeros(5, 200, 200, device="meta"))
    assert calls == [(5, 4, 4), (5, 200, 200)]


def test_after_a_change_of_threads_large_matrices_are_right():
    code = (
        "import torch; torch.set_num_threads(1); torch.set_num_threads(2); torch.manual_seed(0)\n"
        "from jpmhc import autodiff, kernels, manifolds\n"
        "D = {'dtype': torch.float64}; eye = torch.eye(200, **D)\n"
        "raw = torch.randn(3, 200, 200, **D) / 14\n"
        "q = autodiff.cayley(raw); assert (q.mT @ q - eye).abs().max() < 1e-13\n"
        "assert (raw @ kernels.inverse(raw) - eye).abs().max() < 1e-9\n"
        "q = kernels.polar_newton(raw); assert (q.mT @ q - eye).abs().max() < 1e-13\n"
        "for manifold, n, p in ((manifolds.Stiefel(), 200, 200), (manifolds.Stiefel(), 400, 160),\n"
        "                       (manifolds.SpecialOrthogonal(), 200, 200), (manifolds.Grassmann(), 400, 160)):\n"
        "    x = manifold.random(3, n, p, **D); u = manifold.proju(x, torch.randn(3, n, p, **D) / n)\n"
        "    assert manifold.point_error(x).max() < 1e-13\n"
        "    together = manifold.retr_transp(x, u, u)\n"
        "    alone = [manifold.retr_transp(a, b, b) for a, b in zip(x.split(1), u.split(1))]\n"
        "    for k in range(2):\n"
        "        assert (together[k] - torch.cat([pair[k] for pair in alone])).abs().max() < 1e-11\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "MKL ERROR" not in done.stdout + done.stderr
