"""Directions that a product takes to zero, and laws that have some."""

import math
from dataclasses import replace

import numpy as np
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


@pytest.mark.parametrize("rank", [0.37, 0.3712, 1 / 3 - 1e-3, 0.0123, 0.98765])
def test_a_branch_of_any_rank_is_counted(rank):
    branch = spectrum.Hidden(rank)
    # Its own kernel, and what it leaves of the two streams of four that a projector takes to zero.
    assert kernel_share(chain(torch.zeros(1, 1, 1).double(), branch)) == pytest.approx(1 - rank, abs=1e-9)
    assert kernel_share(chain(projectors(1, 2), branch)) == pytest.approx((2 - rank) / 4, abs=1e-9)


@pytest.mark.parametrize("rank", [0.19, 0.1987, 0.1999, 0.2003, 0.21])
def test_a_share_may_bend_between_two_ranks(rank):
    # Five branches of a stream that is left out in the end write to one that was taken to zero before.
    ends = [torch.diag(torch.tensor(kept)).double() for kept in ([1.0, 0.0], [0.0, 1.0])]
    M = torch.stack([ends[0], *[torch.eye(2).double()] * 3, ends[1]])
    read, write = (torch.eye(2).double()[[column] * 5] for column in (0, 1))
    found = Chain(M, read, write, torch.ones(5).double(), spectrum.Hidden(rank))
    assert kernel_share(found) == pytest.approx(1 - min(5 * rank, 1) / 2, abs=1e-9)


def marchenko_pastur(active, s):
    """Distribution function of the squares of a product of Gaussian matrices around a mask, from its cubic equation.

    ``z f S(f) = 1 + f`` with ``S = active / ((active + f) (1 + f))``.
    """
    x = torch.linspace(1e-6, float(s) ** 2, 20001, dtype=torch.float64)
    middle = (x[1:] + x[:-1]) / 2
    heights = []
    for z in middle.tolist():
        # (1 + f)^2 (active + f) = active z f; the density of the squares is -Im (1 + f) / (pi z).
        roots = np.roots([1, 2 + active, 1 + 2 * active - active * z, active])
        heights.append(np.abs(roots.imag).max() / (math.pi * z))
    return 1 - active + float(torch.tensor(heights).double() @ x.diff())


def test_a_thin_branch_alone_is_the_law_of_its_cubic_equation():
    law = spectrum.predict(torch.zeros(1, 1, 1), [1.0], [1.0], 1.0, spectrum.Hidden(0.37))
    assert law.atoms[0].tolist() == [0.0]
    assert law.atoms[1].tolist() == pytest.approx([0.63], abs=1e-12)
    s = torch.tensor([0.0, 1e-6, 0.01, 0.6, 1.0, 2.0], dtype=torch.float64)
    expected = [0.63] * 3 + [marchenko_pastur(0.37, place) for place in s[3:]]
    assert law.cdf(s).tolist() == pytest.approx(expected, abs=2e-4)
    assert float(law.quantile(0.6)) == 0
    assert law.floor == 0


def test_projectors_and_thin_branches_have_a_mass_at_zero():
    frames = torch.linalg.qr(torch.randn(2, 3, 2, generator=torch.Generator().manual_seed(0)).double())[0]
    read, write = gates("random", 2, 3)
    law = spectrum.predict(frames @ frames.mT, read, write, 1.0, spectrum.Hidden(0.37))
    draw = spectrum.simulate(frames @ frames.mT, read, write, 1.0, spectrum.Hidden(0.37), width=100)
    # (1 - 0.37) / 3, of which a width of 100 has just as much.
    assert float(law.cdf(0.0)) == pytest.approx(0.21, abs=1e-4)
    assert float(draw.cdf(1e-9)) == pytest.approx(0.21)
    s = torch.tensor([0.1, 0.6, 1.0, 2.0], dtype=torch.float64)
    assert torch.allclose(law.cdf(s), draw.cdf(s), atol=0.02)


def test_a_thin_branch_carries_derivatives():
    energy = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    law = spectrum.predict(torch.zeros(1, 1, 1), [1.0], [1.0], energy, spectrum.Hidden(0.37))
    for s in (0.8, 1.5):
        (slope,) = torch.autograd.grad(law.cdf(s), energy, retain_graph=True)
        # The law of sqrt(v) X: cdf(s / sqrt v).
        assert float(slope) == pytest.approx(-s / 2 * float(law.density(s).detach()), rel=1e-3)


def test_a_place_above_its_right_neighbours_is_left_out_and_lifts_none(monkeypatch):
    bulk = spectrum.predict(torch.ones(1, 1, 1), [1.0], [1.0], 0.3)._bulk
    x = torch.tensor([0.5, 0.8, 1.0, 1.2, 1.4], dtype=torch.float64)
    far, near = bulk.solve(x)
    right = bulk._evaluate(x, far, near, attached=False)
    for wrong, kept in ((0, [1, 2, 3, 4]), (2, [0, 1, 3, 4]), (4, [0, 1, 2, 3, 4])):
        cdf = right.cdf.clone()
        cdf[wrong] = 0.99 if wrong < 4 else cdf[4]
        with monkeypatch.context() as patch:
            patch.setattr(bulk, "_evaluate", lambda *a, cdf=cdf, **k: replace(right, cdf=cdf))
            grid = bulk._sorted(x, far, near)
        assert torch.equal(grid.x, x[kept])
        assert torch.equal(grid.cdf, right.cdf[kept])


@pytest.mark.parametrize(
    ("active", "layers", "mass"),
    # 1 - 2 rank of each layer: what its branch neither reads nor writes.
    [(0.37, 1, 0.26), (0.371, 1, 0.258), (0.25, 1, 0.5), (0.123, 2, 0.508), (0.0711, 5, 0.289)],
)
def test_masses_beside_thin_branches_are_exact(active, layers, mass):
    law = spectrum.predict(torch.ones(layers, 1, 1), [1.0], [1.0], 1.0, spectrum.Hidden(active))
    assert law.atoms[0].tolist() == [1.0]
    assert law.atoms[1].tolist() == pytest.approx([mass], abs=1e-12)
