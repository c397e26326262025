"""States are views of a stacked tensor, as long as they still are."""

import pytest
import torch

from jpmhc import manifolds, optim
from tests.optim.stacks import error, points, run, separate


@pytest.mark.parametrize("steps_before", [1, 3])
@pytest.mark.parametrize("count", [1, 3])
def test_a_state_whose_numbers_were_replaced_goes_on_from_the_new_ones(count, steps_before):
    manifold = manifolds.Sphere()
    values = points(manifold, count, 5)
    through_data, in_place = separate(values, manifold), separate(values, manifold)
    optimizers = [optim.RiemannianAdam(p, lr=0.1) for p in (through_data, in_place)]
    for optimizer, parameters in zip(optimizers, (through_data, in_place), strict=True):
        run(optimizer, parameters, steps_before)
        state = optimizer.state[parameters[-1]]
        for name, value in {"exp_avg": torch.zeros(5).double(), "exp_avg_sq": 7 * torch.ones(1).double()}.items():
            if parameters is in_place:
                state[name].copy_(value)
            else:
                state[name].data = value.clone()
        run(optimizer, parameters, 2, first=steps_before)
    assert error(through_data, torch.stack(in_place)) == 0.0
    assert optimizers[0].state_dict()["state"][0]["exp_avg"].norm() > 0
