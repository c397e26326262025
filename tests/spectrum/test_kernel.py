"""Directions that a product takes to zero, and laws that have some."""

import pytest
import torch

from jpmhc import spectrum
from jpmhc.spectrum.branches import make_branch
from jpmhc.spectrum.chain import Chain
from jpmhc.spectrum.kernel import kernel_share
from tests.spectrum.jacobians import energies, gates, jacobian, mixers


def projectors(layers, rank, n=4, alike=False):
    raw = torch.randn(layers, n, rank, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    frames = torch.linalg.qr(raw)[0]
    P = frames @ frames.mT
    return P[:1].expand_as(P).contiguous() if alike else P


def chain(M, branch="gaussian", energy=0.5):
    read, write = gates("random", len(M), M.shape[-1])
    return Chain(M, read, write, torch.full((len(M),), energy, dtype=torch.float64), make_branch(branch))


@pytest.mark.parametrize(
    ("M", "branch", "energy", "share"),
    [
        (mixers("free", 5, 4), "gaussian", 0.5, 0.0),
        # Rank 2 of 4, and one more that the branch saves.
        (projectors(1, 2), "gaussian", 0.5, 0.25),
        (projectors(6, 2), "gaussian", 0.5, 0.25),
        (projectors(3, 1), "haar", 0.5, 0.5),
        (projectors(1, 2), "gaussian", 0.0, 0.5),
        (projectors(1, 3), "gaussian", 0.5, 0.0),
        # A ReLU's branch has half of its own directions only.
        (torch.zeros(1, 1, 1).double(), "relu", 0.5, 0.5),
        (projectors(1, 2), "relu", 0.5, 0.375),
        (torch.zeros(2, 3, 3).double(), "gaussian", 0.0, 1.0),
    ],
)
def test_share_is_that_of_the_rank(M, branch, energy, share):
    assert kernel_share(chain(M, branch, energy)) == pytest.approx(share)


def test_noise_on_all_streams_leaves_no_kernel():
    M, energy = projectors(2, 2), torch.full((2,), 0.1, dtype=torch.float64)
    assert kernel_share(Chain(M, None, None, energy, make_branch("gaussian"))) == 0


SLOW = [pytest.param(10, False, marks=pytest.mark.slow), pytest.param(4, True, marks=pytest.mark.slow)]


@pytest.mark.parametrize(("layers", "alike"), [(1, False), (2, False), *SLOW])
def test_law_of_projectors_is_that_of_a_draw(layers, alike):
    M = projectors(layers, 2, alike=alike)
    read, write = gates("random", layers)
    energy = energies(read, write, 0.5)
    law = spectrum.predict(M, read, write, energy)
    places, masses = law.atoms
    assert float(places[0]) == 0
    assert float(masses[0]) == pytest.approx(0.25)
    assert float(law.cdf(0.0)) == pytest.approx(0.25 if law.floor == 0 else float(law.cdf(law.floor)))
    assert law.edges[0] == 0
    draw = torch.linalg.svdvals(jacobian(M, read, write, energy, 96)).sort().values
    shares = (torch.arange(len(draw)) + 0.5) / len(draw)
    above = draw > max(law.floor, 1e-9 * float(draw[-1]))
    assert float((law.cdf(draw[above]) - shares[above]).abs().nan_to_num(0).max()) < 0.03


def test_a_single_projector_has_bands_of_its_own():
    # One layer, one branch: C values each of the kernel, of the stream that is kept as it is, and of two mixed ones.
    M = torch.diag(torch.tensor([1.0, 1.0, 0.0, 0.0])).double().unsqueeze(0)
    gate = torch.tensor([0.0, 1.0, 0.0, 0.0])
    law = spectrum.predict(M, gate, gate, 0.3)
    places, masses = law.atoms
    assert places.tolist() == pytest.approx([0.0, 1.0])
    assert masses.tolist() == pytest.approx([0.5, 0.25])
    single = spectrum.predict(torch.ones(1, 1, 1), [1.0], [1.0], 0.3)
    s = torch.tensor([0.4, 0.9, 1.3], dtype=torch.float64)
    assert torch.allclose(law.density(s), 0.25 * single.density(s), rtol=1e-5)


@pytest.mark.parametrize(("active", "rank"), [(0.5, 0.5), (1 / 3, 1 / 3), (1.0, 1.0), (4.0, 1.0)])
def test_rank_of_a_branch_follows_from_its_s_transform(active, rank):
    given = spectrum.Branch(lambda f: active / ((active + f) * (1 + f)))
    assert given.rank == pytest.approx(rank)
    assert spectrum.Hidden(active).rank == pytest.approx(rank)
