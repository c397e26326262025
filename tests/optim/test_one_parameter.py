"""What an optimiser does for a single parameter in another way than for many."""

import pytest
import torch

from jpmhc import manifolds, optim

OPTIMISERS = [lambda p: optim.RiemannianAdam(p, lr=0.1), lambda p: optim.RiemannianSGD(p, lr=0.1, momentum=0.9)]


def model():
    module = torch.nn.Module()
    generator = torch.Generator().manual_seed(0)
    module.point = manifolds.Parameter(manifolds.Sphere().random(4, generator=generator), manifolds.Sphere())
    return module


@pytest.mark.parametrize("make", OPTIMISERS)
@pytest.mark.parametrize("bad", [(torch.inf, -torch.inf), (torch.nan, 0.0), (torch.inf, 0.0)])
def test_a_gradient_that_is_not_finite_is_found_and_moves_nothing(make, bad):
    module = model()
    optimizer, before = make(module.parameters()), module.point.detach().clone()
    module.point.grad = torch.tensor([*bad, 1.0, 1.0])
    with pytest.raises(ValueError, match="expected a finite gradient"):
        optimizer.step()
    assert torch.equal(module.point, before)


def test_a_finite_gradient_whose_sum_overflows_is_taken():
    module = model()
    optimizer = optim.RiemannianSGD(module.parameters(), lr=1e-38)
    before = module.point.detach().clone()
    module.point.grad = torch.tensor([3e38, 3e38, 0.0, 0.0])
    assert not module.point.grad.sum().isfinite()
    optimizer.step()
    assert module.point.isfinite().all()
    assert not torch.equal(module.point, before)


@pytest.mark.parametrize("make", OPTIMISERS)
def test_one_that_changes_its_dtype_takes_its_state_along(make):
    module = model()
    optimizer = make(module.parameters())
    for dtype in (torch.float32, torch.float64):
        module.to(dtype)
        module.point.grad = torch.tensor([1.0, 2.0, -1.0, 0.5], dtype=dtype)
        optimizer.step()
    tensors = [v for v in optimizer.state[module.point].values() if v.ndim and v.numel() > 1]
    assert [v.dtype for v in tensors] == [torch.float64]
    assert abs(float(module.point.detach().norm()) - 1) < 1e-14
