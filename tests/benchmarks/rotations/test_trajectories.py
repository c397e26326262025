import math

import pytest
import torch

from benchmarks.rotations import trajectories


def seeded():
    return torch.Generator().manual_seed(3)


def expm_rotation(dim, angle, planes):
    """Truth by another road: the exponential of the generator of the planes."""
    skew = torch.zeros(dim, dim, dtype=torch.float64)
    for first, second in planes:
        skew[first, second], skew[second, first] = -angle, angle
    return torch.linalg.matrix_exp(skew)


def test_a_plane_rotation_is_the_exponential_of_its_generator():
    found = trajectories.plane_rotation(5, 3.1, 1, 3)
    assert torch.allclose(found, expm_rotation(5, 3.1, [(1, 3)]), atol=1e-12)
    assert torch.linalg.det(found).item() == pytest.approx(1.0)


@pytest.mark.parametrize("dim", [4, 5])
def test_planes_are_turned_two_by_two(dim):
    found = trajectories.planes_rotation(dim, 3.14)
    assert torch.allclose(found, expm_rotation(dim, 3.14, [(0, 1), (2, 3)]), atol=1e-12)


def test_targets_are_the_rotation_of_the_inputs_and_the_next_inputs():
    rotation = trajectories.planes_rotation(6, 3.14)
    x, target = trajectories.constant(7, 5, rotation, seeded())
    assert x.shape == target.shape == (7, 5, 6)
    assert x.dtype == torch.float32
    assert torch.allclose(target.double(), x.double() @ rotation.T, atol=1e-6)
    assert torch.equal(x[:, 1:], target[:, :-1])
    assert torch.allclose(x.norm(dim=-1), torch.ones(7, 5), atol=1e-6)


def test_a_gyroscope_turns_one_plane_of_two_axes_by_one_angle():
    x, target = trajectories.gyroscope(50, 6, 5, (0.1, 2.5), seeded())
    moved = (x - target).abs().amax(1) > 1e-6
    assert (moved.sum(-1) == 2).all()
    for path, ahead, axes in zip(x.double(), target.double(), moved, strict=True):
        a, b = path[:, axes], ahead[:, axes]
        cos = (a * b).sum(-1) / a.square().sum(-1)
        assert torch.allclose(cos, cos[:1].expand(6), atol=1e-4)
        assert math.cos(2.5) - 1e-4 <= cos[0] <= math.cos(0.1) + 1e-4


def test_the_floor_of_the_gyroscope_is_the_best_linear_guess_of_the_first_step():
    # Monte-Carlo: least squares of the second vector on the first is the mean rotation, the best any guess can be.
    dim, length, angles = 4, 3, (0.1, 2.5)
    x, target = trajectories.gyroscope(20_000, length, dim, angles, seeded())
    first, second = x[:, 0].double(), target[:, 0].double()
    fit = torch.linalg.lstsq(first, second).solution
    error = (first @ fit - second).square().mean().item()
    assert trajectories.gyroscope_floor(dim, length, angles) == pytest.approx(error / length, rel=0.03)


def test_the_floor_of_the_echo_is_what_the_mean_of_the_past_reaches():
    length, noise = 5, 1e-3
    x, target = trajectories.echo(4_000, length, 8, noise, seeded())
    past = x.double().cumsum(1) / torch.arange(1, length + 1).view(1, -1, 1)
    error = (past - target).square().mean().item()
    assert trajectories.echo_floor(length, noise) == pytest.approx(error, rel=0.02)
