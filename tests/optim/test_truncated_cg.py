import pytest
import torch

from jpmhc.manifolds.peer import geoopt
from jpmhc.optim.batch import Batch
from jpmhc.optim.blocks import Blocks
from jpmhc.optim.truncated_cg import truncated_cg
from tests.optim import problems


def flat(size):
    batch = Batch(geoopt.Euclidean())
    batch.add(torch.zeros(size, dtype=torch.float64), {})
    return Blocks([batch])


def solve(matrix, gradient, radius, **options):
    x, slope = [torch.zeros_like(gradient)[None]], [gradient[None]]
    return truncated_cg(flat(len(gradient)), x, slope, lambda u: [u[0] @ matrix], radius, max_inner=100, **options)


def test_inside_the_region_the_newton_step_is_found():
    matrix, _ = problems.symmetric(torch.linspace(1, 4, 7, dtype=torch.float64))
    gradient = problems.randn(7)
    result = solve(matrix, gradient, 1e3, kappa=1e-12)
    assert not result.at_boundary
    assert torch.allclose(result.step[0][0], -torch.linalg.solve(matrix, gradient), atol=1e-9)
    assert torch.allclose(result.hessian_step[0], result.step[0] @ matrix, atol=1e-9)


@pytest.mark.parametrize("values", [(1.0, 4.0), (-1.0, 4.0), (-3.0, -1.0)])
def test_a_step_that_would_leave_ends_on_the_boundary_and_lowers_the_model(values):
    matrix, _ = problems.symmetric(torch.linspace(*values, 7, dtype=torch.float64))
    gradient = problems.randn(7)
    result = solve(matrix, gradient, 0.1)
    step = result.step[0][0]
    assert result.at_boundary
    assert float(step.norm()) == pytest.approx(0.1)
    cauchy = -0.1 * gradient / gradient.norm()

    def model(s):
        return float(gradient @ s + s @ matrix @ s / 2)

    assert model(step) <= model(cauchy) + 1e-12
    assert torch.allclose(result.hessian_step[0], result.step[0] @ matrix, atol=1e-12)


def test_inner_iterations_are_limited():
    matrix, _ = problems.symmetric(torch.logspace(0, 3, 7, dtype=torch.float64))
    gradient = problems.randn(7)
    calls = []
    x = [torch.zeros(1, 7, dtype=torch.float64)]
    truncated_cg(flat(7), x, [gradient[None]], lambda u: calls.append(1) or [u[0] @ matrix], 1e9, max_inner=3)
    assert len(calls) == 3
