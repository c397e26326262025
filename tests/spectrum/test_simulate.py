import pytest
import torch

from jpmhc import spectrum


def gates(L, n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    read = torch.rand(L, n, generator=generator, dtype=torch.float64)
    return read / read.sum(-1, keepdim=True), 0.5 + torch.rand(L, n, generator=generator, dtype=torch.float64)


def mixers(L, n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.eye(n).double() + 0.2 * torch.randn(L, n, n, generator=generator, dtype=torch.float64)


def second_moment(M, p, q, v):
    """Exact at every width: R <- M R M^T + v a R a^T, a = q p^T."""
    R = torch.eye(M.shape[-1]).double()
    for l in range(len(M)):
        a = torch.outer(q[l], p[l])
        R = M[l] @ R @ M[l].T + v * a @ R @ a.T
    return R.trace() / len(R)


@pytest.mark.parametrize("branch", ["gaussian", "haar", "relu"])
def test_the_second_moment_is_that_of_the_model(branch):
    M, (p, q) = mixers(3, 3), gates(3, 3)
    law = spectrum.simulate(M, p, q, 0.7, branch, width=40, draws=12)
    assert law.singular_values.shape == (12, 120)
    assert float(law.moment(2)) == pytest.approx(float(second_moment(M, p, q, 0.7)), rel=0.04)


def test_noise_on_every_stream():
    M = mixers(2, 3)
    law = spectrum.simulate(M, energy=torch.tensor([0.3, 0.1]), branch="isotropic", width=40, draws=4)
    R = torch.eye(3).double()
    for l, v in enumerate((0.3, 0.1)):
        R = M[l] @ R @ M[l].T + v * R.trace() / 3 * torch.eye(3)
    assert float(law.moment(2)) == pytest.approx(float(R.trace()) / 3, rel=0.02)


def test_without_energy_only_the_mixers_are_left():
    M, (p, q) = mixers(3, 3), gates(3, 3)
    law = spectrum.simulate(M, p, q, 0.0, width=4)
    expected = torch.linalg.svdvals(M[2] @ M[1] @ M[0]).sort().values.repeat_interleave(4)
    torch.testing.assert_close(law.singular_values[0], expected)


def test_rotations_of_a_branch_are_rotations():
    one = torch.ones(1, 1)
    law = spectrum.simulate(torch.zeros(1, 1, 1), one, one, 4.0, "haar", width=12)
    torch.testing.assert_close(law.singular_values[0], torch.full((12,), 2.0, dtype=torch.float64))


def test_draws_are_those_of_their_seed():
    one = torch.ones(1, 1)
    values = [spectrum.simulate(one[None], one, one, width=8, seed=s).singular_values for s in (0, 0, 1)]
    assert torch.equal(values[0], values[1])
    assert not torch.equal(values[0], values[2])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0}, "width: expected an integer of at least 1"),
        ({"width": 100_000}, "width: a Jacobian of 100000 x 100000 entries takes 74.5 GiB"),
        ({"draws": 1.5}, "draws: expected an integer"),
        ({"energy": -1.0}, "energy: "),
        ({"branch": spectrum.Branch(lambda f: (1 + f) ** -2, "two layers")}, "branch: expected gaussian"),
    ],
)
def test_mistakes_are_named(options, message):
    one = torch.ones(1, 1)
    with pytest.raises(ValueError, match=message):
        spectrum.simulate(**{"mixers": one[None], "read": one, "write": one, **options})
