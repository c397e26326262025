import math

import torch
from torch import nn

from benchmarks.arc.optimisers import AdamATan2, Average, sign_sgd_


def test_adam_atan2_takes_the_published_steps():
    torch.manual_seed(0)
    p = nn.Parameter(torch.randn(3, 2, dtype=torch.float64))
    optimiser = AdamATan2([p], lr=0.1, betas=(0.8, 0.9), weight_decay=0.2)
    value, mean, square = p.detach().clone(), 0.0, 0.0
    for t in range(1, 6):
        p.grad = torch.randn_like(p)
        mean, square = 0.8 * mean + 0.2 * p.grad, 0.9 * square + 0.1 * p.grad**2
        root = torch.sqrt(square / (1 - 0.9**t))
        value = value * (1 - 0.1 * 0.2) - 0.1 / (1 - 0.8**t) * torch.atan2(mean, root)
        optimiser.step()
        torch.testing.assert_close(p.detach(), value)


def test_adam_atan2_does_not_see_the_scale_of_the_gradient():
    steps = []
    for scale in (1e-12, 1.0, 1e12):
        p = nn.Parameter(torch.zeros(4, dtype=torch.float64))
        optimiser = AdamATan2([p], lr=0.1)
        for t in range(3):
            p.grad = scale * torch.tensor([1.0, -2.0, 0.5, 0.0], dtype=torch.float64) * (t + 1)
            optimiser.step()
        steps.append(p.detach())
    torch.testing.assert_close(steps[0], steps[1])
    torch.testing.assert_close(steps[2], steps[1])


def test_groups_keep_their_own_decay_and_missing_gradients_are_skipped():
    decayed, kept, idle = (nn.Parameter(torch.ones(1)) for _ in range(3))
    optimiser = AdamATan2(
        [{"params": [decayed, idle]}, {"params": [kept], "weight_decay": 0.0}], lr=0.1, weight_decay=0.5
    )
    decayed.grad, kept.grad = torch.zeros(1), torch.zeros(1)
    optimiser.step()
    assert math.isclose(decayed.item(), 0.95, rel_tol=1e-6)
    assert kept.item() == 1.0
    assert idle.item() == 1.0


def test_sign_sgd_sums_the_gradients_of_a_row_and_leaves_the_others():
    table = torch.ones(4, 2)
    gradient = torch.tensor([[1.0, 1.0], [-3.0, 0.5], [0.0, -2.0]])
    sign_sgd_(table, torch.tensor([2, 2, 0]), gradient, lr=0.1, weight_decay=0.5)
    expected = torch.ones(4, 2)
    expected[2] = torch.tensor([0.95 + 0.1, 0.95 - 0.1])  # summed gradient (-2, 1.5)
    expected[0] = torch.tensor([0.95, 0.95 + 0.1])
    torch.testing.assert_close(table, expected)


def test_average_is_exponential():
    module = nn.Linear(2, 2)
    average = Average(module, 0.9)
    expected = module.weight.detach().clone()
    for _ in range(3):
        with torch.no_grad():
            module.weight.add_(1.0)
        average.update(module)
        expected = 0.9 * expected + 0.1 * module.weight.detach()
    torch.testing.assert_close(average.weights["weight"], expected)
