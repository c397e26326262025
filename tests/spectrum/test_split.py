"""What is split off a law exactly: atoms, what only the mixers move, and what they take to zero."""

import math
import warnings

import pytest
import torch

from jpmhc import kernels, spectrum
from tests.spectrum.jacobians import jacobian, setting


def test_bistochastic_mixers_with_uniform_gates_split_into_a_stream_and_atoms():
    M, read, write, energy = setting("bistochastic", "uniform", 6, 0.5)
    law = spectrum.predict(M, read, write, energy)
    places, masses = law.atoms
    product = torch.linalg.multi_dot(list(M.flip(0)))
    basis = torch.linalg.qr(torch.cat([torch.ones(4, 1).double(), torch.eye(4).double()[:, :3]], 1))[0][:, 1:]
    assert torch.allclose(places, torch.linalg.svdvals(basis.mT @ product @ basis).flip(0))
    assert masses.tolist() == [0.25] * 3
    # The mean stream alone: one stream whose energy the gates do not divide.
    single = spectrum.predict(torch.ones(6, 1, 1), [0.5], [2.0], energy)
    s = torch.tensor([0.2, 1.0, 3.0], dtype=torch.float64)
    steps = (places <= s[:, None]).sum(1) / 4
    assert torch.allclose(law.cdf(s), 0.25 * single.cdf(s) + steps, atol=1e-6)
    inside = law.cdf(torch.stack([places * (1 - 1e-9), places]))
    assert torch.allclose(inside[1] - inside[0], masses, atol=1e-6)
    assert torch.allclose(law.quantile(inside.mean(0)), places)


@pytest.mark.parametrize("backend", ["reference", "numba"])
def test_atoms_that_only_the_rank_of_the_branches_leaves_are_found(backend):
    with kernels.backend(backend):
        check_atoms_of_the_rank()


def check_atoms_of_the_rank():
    # J = I + 1 (x) Y with Y of C rows: I - J^T J has rank 2 C, so two of four streams' worth stay at 1.
    M, read, write, energy = setting("identity", "one", 8, 0.5)
    law = spectrum.predict(M, read, write, energy)
    places, masses = law.atoms
    assert places.tolist() == pytest.approx([1.0])
    assert masses.tolist() == pytest.approx([0.5], abs=1e-6)
    draw = torch.linalg.svdvals(jacobian(M, read, write, energy, 64))
    assert ((draw - 1).abs() < 1e-9).double().mean() == 0.5
    others = draw[(draw - 1).abs() > 1e-9].sort().values
    shares = (torch.arange(len(others)) + 0.5) / (2 * len(others)) + 0.5 * (others > 1)
    assert float((law.cdf(others) - shares).abs().max()) < 0.03


@pytest.mark.parametrize("size", [0, 1e-12, 1e-8, 1e-6, 1e-5, 3e-5, 1e-4, 1e-3])
@pytest.mark.parametrize("layers", [2, 12])
def test_atoms_of_mixers_that_round_off_moved_are_counted_once(layers, size):
    # Token means of float32 mixers have values that are equal but for round-off; each must not count what all share.
    generator = torch.Generator().manual_seed(3)
    mixer = torch.full((4, 4), 0.1 / 3, dtype=torch.float64).fill_diagonal_(0.9)
    M = mixer * (1 + size * torch.randn(layers, 4, 4, generator=generator, dtype=torch.float64))
    # Every layer reads another stream, and none writes what the mixers damp: only the rank leaves an atom.
    read = (0.6 * torch.eye(4) + 0.1).repeat(3, 1)[:layers]
    exact = spectrum.predict(mixer.expand_as(M), read, torch.ones(4), 0.3)
    assert exact.atoms[1].tolist() == pytest.approx([0.5], abs=1e-6)
    law = spectrum.predict(M, read, torch.ones(4), 0.3)
    place = exact.atoms[0]
    s = torch.cat([place * x for x in (0.5, 0.9, 1.1, 2.0)] + [torch.tensor([0.3, 1.0, 2.0])])
    assert torch.allclose(law.cdf(s), exact.cdf(s), atol=1e-3 + 20 * size)
    assert float(law.quantile(0.99)) == pytest.approx(float(exact.quantile(0.99)), rel=1e-2)
    assert law.quantile(torch.tensor([0.4, 0.6])).tolist() == pytest.approx(
        exact.quantile(torch.tensor([0.4, 0.6])).tolist(), rel=1e-2 + 20 * size
    )


def test_kernel_is_mass_at_zero():
    M = torch.diag(torch.tensor([1.0, 1.0, 0.0])).double().expand(3, 3, 3)
    read = write = torch.tensor([1.0, 0.3, 0.0])
    law = spectrum.predict(M, read, write, 0.1)
    assert float(law.mass_below(1e-6)) == pytest.approx(1 / 3, abs=1e-3)
    assert law.edges[0] == 0
    assert law.condition == math.inf
    assert float(law.mean_log) == -math.inf
    assert float(law.quantile(0.2)) == 0


def projectors(rank, layers, *, alike=False, containing=None):
    """Projectors (layers, 4, 4) on subspaces that contain a vector, if one is given."""
    raw = torch.randn(1 if alike else layers, 4, rank, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    if containing is not None:
        raw[..., 0] = containing
    frame = torch.linalg.qr(raw)[0]
    return (frame @ frame.mT).expand(layers, 4, 4)


def test_differences_that_projectors_keep_and_lose_are_told_apart():
    # Between uniform gates the differences go their own way: the product keeps one, and takes the other two to zero.
    one = torch.ones(10, 4, dtype=torch.float64)
    M = projectors(2, 10, containing=one[0])
    product = torch.linalg.multi_dot(list(M.flip(0)))
    kept = torch.linalg.svdvals(product - one[:1].mT @ one[:1] / 4)
    assert kept[0] < 1e-3
    assert kept[1] < 1e-12
    law = spectrum.predict(M, one / 4, one, 0.1)
    places, masses = law.atoms
    assert torch.allclose(places, torch.stack([0 * kept[0], kept[0]]), rtol=1e-10)
    assert masses.tolist() == pytest.approx([0.5, 0.25])
    # What remains is one stream.
    single = spectrum.predict(torch.ones(10, 1, 1), [1.0], [1.0], 0.1)
    assert torch.allclose(law.quantile(torch.tensor([0.8, 0.9])), single.quantile(torch.tensor([0.2, 0.6])), rtol=1e-4)


@pytest.mark.parametrize("gate", ["uniform", "equal"])
def test_equal_projectors_and_gates_are_solved_down_to_small_values(gate):
    # A direction that P keeps and no branch reads or writes stays at one; one that P loses is read and written back.
    p = torch.tensor({"uniform": [0.5] * 4, "equal": [0.9, -0.4, 0.1, 0.3]}[gate], dtype=torch.float64)
    M, energy = projectors(2, 6, alike=True), torch.full((6,), 0.4, dtype=torch.float64)
    law = spectrum.predict(M, p, p, energy)
    places, masses = law.atoms
    assert places.tolist() == pytest.approx([0, 1])
    assert masses.tolist() == pytest.approx([0.25, 0.25])
    draw = torch.linalg.svdvals(jacobian(M, p.expand(6, 4), p.expand(6, 4), energy, 128)).sort().values
    levels = torch.tensor([0.3, 0.4, 0.45, 0.55, 0.65], dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = law.quantile(levels)
    assert torch.allclose(found, torch.quantile(draw, levels), rtol=0.1)
    assert found[0] < 1e-3


def test_quantiles_below_the_floor_are_zero_without_a_warning():
    # Different reads and writes of one projector: a band of values down to 1e-11, beyond double precision here.
    M = projectors(2, 10, alike=True)
    law = spectrum.predict(M, torch.tensor([0.4, 0.3, 0.2, 0.1]), torch.tensor([1.0, 0.2, 0.8, 2.0]), 0.1)
    law.atoms  # noqa: B018
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = law.quantile(torch.tensor([0.1, 0.3, 0.75]))
    assert 0 < law.floor < 1e-4 * law.edges[1]
    assert found[:2].tolist() == [0, 0]
    assert found[2] > 0.1
    assert float(law.cdf(0.0)) == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("branch", ["gaussian", "isotropic"])
@pytest.mark.parametrize("kind", ["rank", "nearly", "zero"])
def test_silent_branches_leave_the_product_and_what_it_takes_to_zero(branch, kind):
    # Single precision leaves round-off where a mixer takes a direction to zero.
    raw = torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    M = {"rank": raw[..., :2] @ raw[..., 2:].mT, "nearly": (raw[..., :1] @ raw[..., 1:2].mT).float(), "zero": 0 * raw}[
        kind
    ]
    gates = (None, None) if branch == "isotropic" else (torch.ones(4), torch.ones(4))
    law = spectrum.predict(M, *gates, 0.0, branch)
    product = torch.linalg.svdvals(torch.linalg.multi_dot(list(M.double().flip(0)))).flip(0)
    assert float(law.atoms[1].sum()) == pytest.approx(1)
    assert law.quantile(torch.tensor([0.1, 0.3, 0.6, 0.9])).tolist() == pytest.approx(product.tolist(), abs=1e-12)
    assert float(law.cdf(1e-9)) == {"rank": 0.5, "nearly": 0.75, "zero": 1.0}[kind]
    assert law.cdf(2 * law.edges[1] + 1) == 1


def test_branches_that_write_what_the_next_mixer_takes_to_zero():
    # The last layer reads what no mixer and no branch leaves anything of.
    read = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    law = spectrum.predict(torch.zeros(2, 2, 2), read, torch.ones(2), 0.5)
    assert law.edges == (0.0, 0.0)
    assert law.cdf(0.0) == 1


def test_a_layer_without_energy_does_not_slow_the_others():
    # Next to the edge the iteration alone takes hundreds of steps.
    one = torch.ones(2, 1, 1)
    alone = spectrum.predict(one[:1], [1.0], [1.0], 1.25)
    for dead in ({"energy": [0.0, 1.25], "read": [1.0]}, {"energy": 1.25, "read": [[0.0], [1.0]]}):
        law = spectrum.predict(one, dead["read"], [1.0], dead["energy"])
        s = law.edges[1] * torch.tensor([0.3, 0.9, 0.995, 0.9967, 0.999], dtype=torch.float64)
        points = law.points(s)
        assert points.converged.all()
        assert points.steps.max() <= 60
        assert torch.allclose(points.cdf, alone.cdf(s), atol=1e-6)


@pytest.mark.parametrize(
    ("layers", "branch", "energy"), [(1, "haar", 1e4), (3, "gaussian", 1e4), (3, "gaussian", 1e10)]
)
def test_atoms_far_below_the_rest_keep_their_places(layers, branch, energy):
    # Three of four streams stay at one; the mean stream is |1 + 100 e^(i theta)|, or a product that reaches down.
    M, one = torch.eye(4).expand(layers, 4, 4), torch.ones(4)
    law = spectrum.predict(M, one / 4, one, energy, branch)
    assert law.quantile(torch.tensor([0.3, 0.7])).tolist() == pytest.approx([1, 1])
    assert float(law.cdf(0.999)) == pytest.approx(0, abs=5e-4)
    assert float(law.cdf(1.001)) == pytest.approx(0.75, abs=5e-4)
    assert float(law.cdf(law.quantile(0.9))) == pytest.approx(0.9, abs=1e-5)


def test_nothing_is_asked_below_the_floor():
    # Two strong layers: a density down to zero, not all of which double precision solves.
    M, read, write, energy = setting("bistochastic", "random", 4, 20.0, n=2)
    law = spectrum.predict(M, read, write, energy)
    assert law.edges[0] == 0 < law.floor < 1e-6
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cdf = law.cdf(law.edges[1] * torch.logspace(-14, 0, 60, dtype=torch.float64))
    assert (cdf.diff() >= -1e-9).all()
    assert law.cdf(0.0) == cdf[0]


@pytest.mark.parametrize("branch", ["haar", "gaussian", "relu"])
def test_a_layer_without_a_read_or_write_is_its_mixer(branch):
    M, read, write, energy = setting("cayley", "random", 3)
    merged, wrote = torch.stack([M[1] @ M[0], M[2]]), torch.stack([M[1] @ write[0], write[2]])
    alone = spectrum.predict(merged, read[[0, 2]], wrote, energy[[0, 2]], branch)
    for gate in (read, write):
        kept, gate[1] = gate[1].clone(), 0
        law = spectrum.predict(M, read, write, energy, branch)
        assert torch.allclose(law.quantile(torch.tensor([0.1, 0.5])), alone.quantile(torch.tensor([0.1, 0.5])))
        gate[1] = kept


def test_an_atom_in_a_steep_density_has_its_mass():
    # Half of the two directions that reflectors between equal gates leave; the density grows towards them.
    raw = torch.randn(2, 4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    frame = torch.linalg.qr(raw)[0]
    M = 2 * frame @ frame.mT - torch.eye(4, dtype=torch.float64)
    gate = torch.tensor([0.9, -0.4, 1.1, 0.3], dtype=torch.float64)
    energy = torch.full((2,), 0.5 * 4 / 2, dtype=torch.float64) / gate.square().sum().square()
    law = spectrum.predict(M, gate, gate, energy, "relu")
    draw = spectrum.simulate(M, gate, gate, energy, "relu", width=96)
    share = float(draw.cdf(1 + 1e-9) - draw.cdf(1 - 1e-9))
    assert share == pytest.approx(0.5, abs=1e-2)
    assert law.atoms[1].tolist() == pytest.approx([0.5], abs=1e-6)
    assert float(law.cdf(1 + 1e-5) - law.cdf(1 - 1e-5)) == pytest.approx(0.5, abs=5e-3)


@pytest.mark.parametrize("load", [1e-8, 1e-4, 20.0])
def test_atoms_of_rank_are_found_at_any_energy(load):
    # I - J^T J has rank 2 C: three of five streams' worth stays at one.
    M, read, write, energy = setting("identity", "one", 10, load, n=5)
    assert spectrum.predict(M, read, write, energy).atoms[1].tolist() == pytest.approx([0.6])


def test_a_level_at_the_top_of_an_atom_is_the_atom():
    # Between uniform gates: bands of the mean stream around atoms, whose levels the solve knows to 1e-8.
    M, read, write, energy = setting("bistochastic", "uniform", 3, 2.0)
    law = spectrum.predict(M, read, write, energy)
    places, masses = law.atoms
    for place, top in zip(places, law.cdf(places), strict=True):
        levels = top + torch.tensor([-1e-9, 0.0, 1e-9], dtype=torch.float64)
        assert law.quantile(levels).tolist() == pytest.approx([float(place)] * 3)
    assert masses.tolist() == [0.25] * 3
