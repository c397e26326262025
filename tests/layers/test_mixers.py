"""The contract that every registered mixer keeps."""

import itertools
import math

import pytest
import torch

from jpmhc import layers

INFOS = layers.mixers()
MIXERS = [str(info) for info in INFOS]
SIZED = [(info.name, n) for info in INFOS for n in (1, 2, 3, 4, 5, 8) if info.supports(n)]


def typical(info):
    return 3 if info.supports(3) else info.streams[0]


def extremes(count, scale):
    """Signs, lone large numbers, few of them, all equal."""
    signs, lone = torch.randint(0, 2, (32, count)).mul(2).sub(1), torch.eye(count)
    few, even = signs * (torch.rand(32, count) < 0.2), torch.ones(1, count)
    return scale * torch.cat([signs, lone, -lone, few, even, -even])


def by_parts(chart, raw):
    """So few at a time that no kernel is compiled for them."""
    return torch.cat([chart(part) for part in raw.split(64)])


AT_ONE_SIZE = [(info.name, typical(info)) for info in INFOS]


@pytest.mark.parametrize(("mixer", "streams"), SIZED)
def test_exact_mixers_keep_their_constraint_to_round_off_and_all_report_it(mixer, streams):
    torch.manual_seed(0)
    chart = layers.make_mixer(mixer, streams)
    exact = next(info.exact for info in INFOS if info.name == mixer)
    for scale in (0.1, 1.0, 10.0, 100.0):
        raw = torch.cat([scale * torch.randn(64, chart.n_coefficients), extremes(chart.n_coefficients, scale)])
        matrix = by_parts(chart, raw)
        assert matrix.shape == (len(raw), streams, streams)
        assert matrix.dtype == torch.float32
        assert by_parts(chart, raw.bfloat16()).dtype == torch.float32
        assert chart.residual(matrix).shape == (len(raw),)
        if exact:
            assert chart.residual(matrix).max() < 5e-6
            if scale < 100.0:  # beyond the logits that `autodiff.sinkhorn` promises to solve in float64
                assert chart.residual(by_parts(chart, raw.double())).max() < 1e-13
        elif streams > 1 and scale == 100.0:
            assert chart.residual(matrix).max() > 1e-3


@pytest.mark.parametrize(("mixer", "streams"), [pair for pair in AT_ONE_SIZE if pair[0] != "free"])
def test_residual_sees_a_matrix_that_is_off(mixer, streams):
    chart = layers.make_mixer(mixer, streams)
    off = chart(chart.start()) + 0.25
    assert chart.residual(off) > 0.1


# The gradient of the published iteration is that of the equation at the point reached, so it fits the equation only.
@pytest.mark.parametrize(
    ("mixer", "streams"), [(m, n) for m, n in SIZED if n in (2, 3, 4, 5) and m not in ("identity", "cayley-iterated")]
)
def test_gradient_matches_finite_differences(mixer, streams):
    torch.manual_seed(0)
    chart = layers.make_mixer(mixer, streams)
    raw = torch.randn(3, chart.n_coefficients, dtype=torch.float64, requires_grad=True)
    assert chart.n_coefficients == 0 or torch.autograd.gradcheck(chart, (raw,))


@pytest.mark.parametrize(("mixer", "streams"), SIZED)
@pytest.mark.parametrize("scale", [0.0, 1e2, 1e4])
def test_extreme_numbers_give_finite_matrices_and_gradients(mixer, streams, scale):
    torch.manual_seed(0)
    chart = layers.make_mixer(mixer, streams)
    raw = torch.cat([scale * torch.randn(64, chart.n_coefficients), extremes(chart.n_coefficients, scale)])
    raw.requires_grad_()
    matrix = by_parts(chart, raw)
    assert matrix.isfinite().all()
    if raw.numel():
        matrix.sin().sum().backward()
        assert raw.grad.isfinite().all()


@pytest.mark.parametrize("mixer", MIXERS)
def test_result_does_not_depend_on_the_batch(mixer):
    torch.manual_seed(0)
    chart = layers.make_mixer(mixer, 4)
    raw = torch.randn(6, chart.n_coefficients, dtype=torch.float64)
    together = chart(raw.view(2, 3, -1)).flatten(0, 1)
    alone = torch.stack([chart(r) for r in raw])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-14)


@pytest.mark.parametrize(("mixer", "streams"), AT_ONE_SIZE)
def test_wrong_number_of_coefficients_is_refused(mixer, streams):
    chart = layers.make_mixer(mixer, streams)
    with pytest.raises(ValueError, match=rf"raw: expected shape \(\.\.\., {chart.n_coefficients}\)"):
        chart(torch.zeros(2, chart.n_coefficients + 1))


COUNTS = {
    "identity": 0,
    "free": 16,
    "sinkhorn": 16,
    "permutations": 24,
    "kronecker": 4,
    "orthostochastic": 28,
    "cayley": 6,
    "cayley-iterated": 6,
    "cayley-mean": 3,
    "quaternion": 8,
    "reflection": 11,
    "spectral": 9,
    "grassmann": 8,
    "manifold": 0,
}


@pytest.mark.parametrize(("mixer", "count"), COUNTS.items())
def test_number_of_coefficients(mixer, count):
    assert layers.make_mixer(mixer, 4).n_coefficients == count
    # With four for the read and four for the write: 14 for rotations, 24 for matrices, 48 as published.
    assert layers.HyperConnection(6, mixer=mixer).projection.shape == (8 + count, 24)
    if count == 16 or mixer == "cayley":
        assert layers.HyperConnection(6, mixer=mixer, projection="published").projection.shape == (48, 24)


def test_cayley_packs_the_upper_triangle_row_by_row():
    raw = torch.arange(1.0, 7.0, dtype=torch.float64) / 10
    upper = torch.tensor([[0, 1, 2, 3], [0, 0, 4, 5], [0, 0, 0, 6], [0, 0, 0, 0]], dtype=torch.float64) / 10
    half = 0.5 * 0.25 * (upper - upper.mT)
    eye = torch.eye(4, dtype=torch.float64)
    expected = torch.linalg.solve(eye - half, eye + half)
    torch.testing.assert_close(layers.Cayley(4, step=0.25)(raw), expected)


def test_sinkhorn_slopes_at_the_start_are_those_of_the_docstring():
    for streams, slopes in ((4, [0.12] + [0.0643] * 3 + [0.0333] * 5), (2, [0.18])):
        chart = layers.Sinkhorn(streams)
        jacobian = torch.func.jacrev(lambda raw, chart=chart: chart(raw).flatten())(chart.start())
        found = torch.linalg.svdvals(jacobian)
        expected = torch.tensor(slopes, dtype=torch.float64)
        torch.testing.assert_close(found[: len(slopes)], expected, rtol=0, atol=5e-5)
        assert found[len(slopes) :].max() < 1e-12


def test_sinkhorn_by_sweeps_ends_with_the_columns():
    raw = 3 * torch.randn(5, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    matrix = raw.view(5, 4, 4).exp()
    for _ in range(20):
        matrix = matrix / matrix.sum(-1, keepdim=True)
        matrix = matrix / matrix.sum(-2, keepdim=True)
    torch.testing.assert_close(layers.Sinkhorn(4, iterations=20)(raw), matrix)


@pytest.mark.parametrize("sweeps", [1, 20])
def test_sinkhorn_by_sweeps_ends_with_the_rows_where_asked_to(sweeps):
    raw = 3 * torch.randn(5, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    matrix = raw.view(5, 4, 4).exp()
    for _ in range(sweeps):
        matrix = matrix / matrix.sum(-2, keepdim=True)
        matrix = matrix / matrix.sum(-1, keepdim=True)
    assert (matrix.sum(-2) - 1).abs().max() > 1e-3  # far enough from the solution for the order to matter
    chart = layers.Sinkhorn(4, iterations=sweeps, last="rows")
    torch.testing.assert_close(chart(raw), matrix)
    raw.requires_grad_()
    columns_last = layers.Sinkhorn(4, iterations=sweeps)(raw.unflatten(-1, (4, 4)).mT.flatten(-2)).mT
    cotangent = torch.randn_like(matrix)
    found, expected = (torch.autograd.grad(made, raw, cotangent)[0] for made in (chart(raw), columns_last))
    torch.testing.assert_close(found, expected)


def test_the_marginal_normalised_last_is_the_exact_one_of_a_converged_matrix_too():
    raw = 4 * torch.randn(512, 16, generator=torch.Generator().manual_seed(0))
    errors = {}
    for last in ("rows", "columns"):
        chart = layers.Sinkhorn(4, last=last)
        matrix = chart(raw).double()
        errors[last] = {"rows": (matrix.sum(-1) - 1).abs().max(), "columns": (matrix.sum(-2) - 1).abs().max()}
        assert chart.residual(matrix.float()).max() < 5e-6
    assert errors["rows"]["rows"] < 3e-7 < errors["rows"]["columns"]
    assert errors["columns"]["columns"] < 3e-7 < errors["columns"]["rows"]


def test_the_marginal_normalised_last_is_told_and_checked():
    assert layers.Sinkhorn(4, iterations=20, last="rows").describe() == "Sinkhorn(4, iterations=20, last='rows')"
    # As weights that were written before there was a choice name it.
    assert layers.Sinkhorn(4, iterations=20).describe() == "Sinkhorn(4, iterations=20)"
    with pytest.raises(ValueError, match="last: expected 'rows' or 'columns', got 'row'"):
        layers.Sinkhorn(4, last="row")


def test_published_iteration_is_its_recursion():
    raw = torch.randn(6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    upper = torch.zeros(4, 4, dtype=torch.float64)
    upper[tuple(torch.triu_indices(4, 4, 1))] = raw
    skew, eye = upper - upper.mT, torch.eye(4, dtype=torch.float64)
    expected = eye + 0.1 * skew
    for _ in range(2):
        expected = eye + 0.05 * skew @ (eye + expected)
    torch.testing.assert_close(layers.CayleyIterated(4)(raw), expected)


def test_quaternions_turn_streams_like_a_product_of_quaternions():
    def times(p, q):
        a, b = p[0], q[0]
        u, v = p[1:], q[1:]
        return torch.cat([(a * b - u @ v).view(1), a * v + b * u + torch.linalg.cross(u, v)])

    generator = torch.Generator().manual_seed(0)
    raw, x = (torch.randn(size, generator=generator, dtype=torch.float64) for size in (8, 4))
    p, q = raw[:4] + torch.tensor([1.0, 0, 0, 0]), raw[4:] + torch.tensor([1.0, 0, 0, 0])
    expected = times(times(p / p.norm(), x), q / q.norm())
    torch.testing.assert_close(layers.Quaternion(4)(raw) @ x, expected)
    singular = torch.tensor([-1.0, 0, 0, 0, 0, 0, 0, 0], requires_grad=True)
    layers.Quaternion(4)(singular).sum().backward()
    assert singular.grad.isfinite().all()


def test_reflections_reach_both_halves_of_the_orthogonal_group():
    torch.manual_seed(0)
    chart = layers.Reflection(4)
    for gate, determinant in ((-40.0, 1.0), (40.0, -1.0)):
        raw = torch.cat([torch.randn(5, 10), torch.full((5, 1), gate)], -1).double()
        matrix = chart(raw)
        assert chart.residual(matrix).max() < 1e-14
        torch.testing.assert_close(torch.linalg.det(matrix), torch.full((5,), determinant, dtype=torch.float64))
    singular = torch.linalg.svdvals(chart(torch.randn(50, 11, dtype=torch.float64)))
    assert (singular[:, :3] - 1).abs().max() < 1e-13
    assert singular[:, 3].min() > 0


def test_cayley_mean_keeps_the_mean_and_the_contrasts_apart():
    torch.manual_seed(0)
    matrix = layers.CayleyMean(5)(torch.randn(7, 6, dtype=torch.float64))
    ones = torch.ones(5, dtype=torch.float64)
    torch.testing.assert_close(matrix @ ones, ones.expand(7, 5))
    torch.testing.assert_close(matrix.mT @ ones, ones.expand(7, 5))
    assert (matrix - torch.eye(5)).abs().max() > 0.1


def test_permutations_are_a_convex_mean():
    raw = torch.randn(6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weights, expected = raw.softmax(-1), torch.zeros(3, 3, dtype=torch.float64)
    for weight, permutation in zip(weights, itertools.permutations(range(3)), strict=True):
        for i, j in enumerate(permutation):
            expected[i, j] += weight
    torch.testing.assert_close(layers.Permutations(3)(raw), expected)
    few = layers.Permutations(4, layers.JPMHC_PERMUTATIONS)
    assert few.n_coefficients == 6
    assert few(few.start()).diagonal().mean() == pytest.approx(0.9)


def test_kronecker_is_the_product_of_its_factors():
    raw = torch.randn(10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    chart = layers.Kronecker(12)
    assert chart.factors == (2, 2, 3)
    a, b, c = layers.Permutations(2)(raw[:2]), layers.Permutations(2)(raw[2:4]), layers.Permutations(3)(raw[4:])
    torch.testing.assert_close(chart(raw), torch.kron(torch.kron(a, b), c))


def test_orthostochastic_sums_squares_over_blocks():
    raw = torch.randn(15, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    upper = torch.zeros(6, 6, dtype=torch.float64)
    upper[tuple(torch.triu_indices(6, 6, 1))] = raw
    half, eye = (upper - upper.mT) / 2, torch.eye(6, dtype=torch.float64)
    rotation = torch.linalg.solve(eye - half, eye + half)
    expected = torch.stack(
        [rotation[2 * i : 2 * i + 2, 2 * j : 2 * j + 2].square().sum() / 2 for i in range(3) for j in range(3)]
    ).view(3, 3)
    torch.testing.assert_close(layers.Orthostochastic(3)(raw), expected)


def test_spectral_has_free_singular_values_below_one_and_keeps_sums():
    torch.manual_seed(0)
    chart = layers.Spectral(4)
    raw = torch.randn(20, 9, dtype=torch.float64)
    matrix = chart(raw)
    expected = torch.cat([raw[:, 6:].tanh().abs(), torch.ones(20, 1)], -1).sort(-1, descending=True).values
    torch.testing.assert_close(torch.linalg.svdvals(matrix), expected)
    assert (matrix < 0).any()


@pytest.mark.parametrize("rank", [1, 2, 3, 4])
def test_grassmann_is_a_projector_of_its_rank_and_its_reflector_is_orthogonal(rank):
    torch.manual_seed(0)
    chart, mirror = layers.Grassmann(4, rank=rank), layers.Grassmann(4, rank=rank, reflector=True)
    raw = torch.randn(9, 4 * rank, dtype=torch.float64)
    matrix = chart(raw)
    values = torch.linalg.eigvalsh(matrix)
    expected = torch.tensor([0.0] * (4 - rank) + [1.0] * rank, dtype=torch.float64).expand(9, 4)
    torch.testing.assert_close(values, expected, rtol=0, atol=1e-13)
    torch.testing.assert_close(mirror(raw), 2 * matrix - torch.eye(4))
    assert mirror.residual(mirror(raw)).max() < 1e-13
    torch.testing.assert_close(chart(chart.start()).sum(-1), torch.ones(4, dtype=torch.float64))


def test_search_finds_the_set_with_the_largest_gap():
    best, gap = layers.search_permutations(3, 2)
    others = [p for p in itertools.permutations(range(3)) if p != (0, 1, 2)]
    gaps = {}
    for other in others:
        mean = (torch.eye(3) + torch.eye(3)[list(other)]) / 2
        gaps[other] = 1 - torch.linalg.svdvals(mean)[1].item()
    assert gap == pytest.approx(max(gaps.values()), abs=1e-6)
    assert gaps[best[1]] == pytest.approx(gap, abs=1e-6)
    latin, gap = layers.search_permutations(4, 4)
    assert gap == pytest.approx(1.0)  # four permutations that meet nowhere average to 1/4 everywhere
    assert all(len({p[i] for p in latin}) == 4 for i in range(4))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: layers.Quaternion(3), "streams: expected 4 for a quaternion, got 3"),
        (lambda: layers.Reflection(1), "streams: expected at least 2 for a reflection, got 1"),
        (lambda: layers.Permutations(5), "permutations: all 120 of 5 streams are too many"),
        (lambda: layers.Permutations(2, [(0, 1), (0, 0)]), r"expected permutations of \(0, 1\), got \(0, 0\)"),
        (lambda: layers.Permutations(2, [(1, 0)]), "expected the identity among them and none twice"),
        (lambda: layers.Kronecker(6, (2, 2)), r"factors: expected sizes of at least 2 and product 6, got \(2, 2\)"),
        (lambda: layers.Orthostochastic(4, blocks=0), "blocks: expected at least 1, got 0"),
        (lambda: layers.Grassmann(4, rank=5), "rank: expected 1 to 4, got 5"),
        (lambda: layers.Manifold(4, base=torch.eye(3)), r"base: expected a point that is, or projects to, .*\(4, 4\)"),
        (lambda: layers.Manifold(4, base=torch.ones(4, 4)), "SpecialOrthogonal"),
        (lambda: layers.search_permutations(6, 2), "streams: expected 2 to 5, got 6"),
        (lambda: layers.search_permutations(4, 1), "count: expected 2 to 24, got 1"),
        (lambda: layers.search_permutations(5, 6), f"count: {math.comb(119, 5)} sets of 6 permutations are too many"),
    ],
)
def test_wrong_arguments_of_mixers_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_mixer_from_outside_gets_a_name():
    @layers.register_mixer("tests-swap", set="{P}", coefficients="0", exact=True)
    class Swap(layers.Identity):
        def forward(self, raw):
            return super().forward(raw).flip(-1)

    assert "tests-swap" in [str(info) for info in layers.mixers()]
    hc = layers.HyperConnection(3, torch.zeros_like, streams=2, mixer="tests-swap")
    x = torch.randn(4, 2, 3)
    assert torch.equal(hc(x), x.flip(-2))
    with pytest.raises(ValueError, match="name: mixer 'tests-swap' is already registered"):
        layers.register_mixer("tests-swap")(layers.Identity)


def test_arguments_a_mixer_does_not_take_are_named():
    with pytest.raises(TypeError, match=r"mixer: 'identity' refused \{'step': 2\}"):
        layers.make_mixer("identity", 4, step=2)


def test_methods_of_a_mixer_may_be_of_any_kind():
    class Double:
        def forward(self, raw):
            return torch.eye(self.streams).expand(*raw.shape[:-1], -1, -1)

    class Odd(Double, layers.Mixer):
        n_coefficients = 1

        def start(self):
            return torch.zeros(1)

        @staticmethod
        def residual(matrix):
            return matrix.flatten(-2).norm(dim=-1)

    odd = Odd(4)
    assert odd(torch.zeros(3, 1)).shape == (3, 4, 4)
    assert odd(raw=torch.zeros(3, 1)).shape == (3, 4, 4)
    assert torch.allclose(odd.residual(torch.eye(4)), torch.tensor(2.0))
    with pytest.raises(TypeError, match="raw"):
        odd()
