import math
import warnings

import pytest
import torch

from jpmhc import spectrum
from jpmhc.autodiff import ConvergenceWarning
from tests.spectrum.jacobians import jacobian, mixers, setting

SHARES = torch.tensor([0.01, 0.1, 0.5, 0.9, 0.99], dtype=torch.float64)


@pytest.mark.parametrize(
    ("kind", "gate", "layers", "branch"),
    [
        ("haar", "random", 1, "gaussian"),
        ("cayley", "softmax", 2, "haar"),
        ("free", "random", 5, "relu"),
        ("bistochastic", "softmax", 5, "gaussian"),
        ("bistochastic", "random", 3, "isotropic"),
    ],
)
def test_law_is_that_of_a_draw(kind, gate, layers, branch):
    M, read, write, energy = setting(kind, gate, layers, 0.5)
    given = (None, None) if branch == "isotropic" else (read, write)
    law = spectrum.predict(M, *given, energy, branch)
    draw = torch.linalg.svdvals(jacobian(M, read, write, energy, 128, branch)).sort().values
    places = torch.quantile(draw, torch.linspace(0.05, 0.95, 10, dtype=torch.float64))
    w = places * complex(math.cos(0.1), math.sin(0.1))
    measured = (w[:, None] / (w[:, None] ** 2 - draw**2)).mean(1)
    assert float(((law.stieltjes(w) - measured).abs() / measured.abs()).median()) < 0.015
    inner = draw[5:-5:12]
    away = (inner[:, None] / law.atoms[0]).log().abs().amin(1) > 1e-6 if len(law.atoms[0]) else inner > 0
    shares = (torch.arange(len(draw))[5:-5:12] + 0.5) / len(draw)
    assert float((law.cdf(inner) - shares)[away].abs().max()) < 0.02
    assert torch.allclose(law.quantile(SHARES)[1:], torch.quantile(draw, SHARES)[1:], rtol=0.04)


def test_one_noisy_stream_is_the_law_of_dozier_and_silverstein():
    # m = (1/z) part of the cubic: for 1 + X, g(w) solves the scalar equations a = w - v g, g = a / (a^2 - 1).
    w = torch.tensor([0.7 + 0.2j, 1.5 + 0.05j, 0.3 + 0.5j], dtype=torch.complex128)
    g = spectrum.predict(torch.ones(1, 1, 1), [1.0], [1.0], 0.3).stieltjes(w)
    a = w - 0.3 * g
    assert torch.allclose(g * (a**2 - 1), a, atol=1e-7)
    assert (g.imag < 0).all()


def test_noise_alone_is_a_quarter_circle():
    # M = 0: singular values of a square Gaussian matrix (Marchenko and Pastur), density sqrt(4 v - s^2) / (pi v).
    law = spectrum.predict(torch.zeros(1, 1, 1), [1.0], [1.0], 1.0)
    s = torch.linspace(0.05, 1.9, 12, dtype=torch.float64)
    assert torch.allclose(law.density(s), (4 - s**2).sqrt() / math.pi, atol=2e-4)
    exact = s * (4 - s**2).sqrt() / (2 * math.pi) + 2 / math.pi * (s / 2).asin()
    assert torch.allclose(law.cdf(s), exact, atol=2e-4)
    assert law.edges == pytest.approx((0.0, 2.0), abs=3e-3)
    assert float(law.mean_log) == pytest.approx(-0.5)


@pytest.mark.parametrize("layers", [2, 3])
def test_products_of_gaussian_matrices_have_fuss_catalan_moments(layers):
    law = spectrum.predict(torch.zeros(layers, 1, 1), [1.0], [1.0], 1.0)
    for k in (1, 2, 3):
        expected = math.comb((layers + 1) * k, k) / (layers * k + 1)
        assert float(law.moment(2 * k)) == pytest.approx(expected, rel=1e-9 if k < 3 else 2e-3)
    # The largest is ((layers + 1)^(layers + 1) / layers^layers)^(1/2).
    assert law.edges[1] == pytest.approx(((layers + 1) ** (layers + 1) / layers**layers) ** 0.5, rel=5e-3)


def fuss_catalan(layers):
    """Places, ascending, and distribution function there, of products of Gaussian matrices, by their known density."""
    # In s^2 = sin^(L + 1)((L + 1) a) / (sin a sin^L(L a)) it is sin^2 a sin^(L - 1)(L a) / (pi sin^L((L + 1) a)).
    L = layers
    e = math.pi / (L + 1) * torch.logspace(-14, 0, 200_001, dtype=torch.float64)[:-1]
    a, near = math.pi / (L + 1) - e, ((L + 1) * e).sin()
    square = near ** (L + 1) / (a.sin() * (L * a).sin() ** L)
    density = a.sin() ** 2 * (L * a).sin() ** (L - 1) / (math.pi * near**L)
    # At zero the density of log s^2 falls like s^(2 / (L + 1)).
    steps = (square * density)[1:] + (square * density)[:-1]
    below = (L + 1) * square[0] * density[0] + torch.cat(
        [torch.zeros(1).double(), steps / 2 * square.log().diff()]
    ).cumsum(0)
    return square.sqrt(), below


@pytest.mark.parametrize("layers", [1, 2, 10])
def test_a_law_that_reaches_zero_is_solved_down_to_it(layers):
    law = spectrum.predict(torch.zeros(layers, 1, 1), [1.0], [1.0], 1.0)
    places, below = fuss_catalan(layers)
    assert float(below[-1]) == pytest.approx(1, abs=1e-4)
    assert law.edges[0] == 0
    assert law.condition == math.inf
    levels = torch.tensor([0.02, 0.1, 0.5], dtype=torch.float64)
    index = torch.searchsorted(below, levels)
    assert torch.allclose(law.quantile(levels), places[index], rtol=5e-3)
    for place in (1e-8, 1e-5):
        assert float(law.cdf(place)) == pytest.approx(float(below[torch.searchsorted(places, place)]), rel=5e-3)


def test_negative_moments_are_infinite_where_the_density_makes_them_so():
    # Of a square Gaussian matrix the density at zero is 1 / pi, of a product of two it grows like s^(-1/3).
    law, product = (spectrum.predict(torch.zeros(layers, 1, 1), [1.0], [1.0], 1.0) for layers in (1, 2))
    assert float(law.moment(-1)) == math.inf
    places, below = fuss_catalan(1)
    middle = (places[1:] * places[:-1]).sqrt()
    expected = float((middle**-0.5 * below.diff()).sum())
    assert float(law.moment(-0.5)) == pytest.approx(expected, rel=2e-3)
    assert float(product.moment(-0.7)) == math.inf
    assert 0 < float(product.moment(-0.2)) < math.inf
    away = spectrum.predict(torch.ones(1, 1, 1), [1.0], [1.0], 0.1)
    assert float(away.moment(-2)) == pytest.approx(
        float(away.quantile(torch.linspace(0.001, 0.999, 500)).pow(-2).mean()), rel=1e-2
    )


def test_branches_that_overwhelm_the_skip_leave_values_of_many_sizes():
    M, read, write, energy = setting("haar", "random", 5, 50.0)
    law = spectrum.predict(M, read, write, energy)
    draw = torch.linalg.svdvals(jacobian(M, read, write, energy, 256)).sort().values
    levels = torch.tensor([0.02, 0.05, 0.2], dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = law.quantile(levels)
    assert found[0] < 1e-5 * law.edges[1]
    assert torch.allclose(found.log(), torch.quantile(draw, levels).log(), atol=0.3)
    assert law.floor < 1e-9 * law.edges[1]


def test_rotation_branch_on_one_stream():
    # |1 + sqrt(v) e^(i theta)|, theta uniform.
    v = 0.4
    law = spectrum.predict(torch.ones(1, 1, 1), [1.0], [1.0], v, "haar")
    theta = (torch.arange(20000, dtype=torch.float64) + 0.5) / 20000 * math.pi
    exact = (1 + v + 2 * v**0.5 * theta.cos()).sqrt()
    assert torch.allclose(law.quantile(SHARES), torch.quantile(exact, SHARES), rtol=2e-3)
    assert law.edges == pytest.approx((1 - v**0.5, 1 + v**0.5), rel=5e-3)


@pytest.mark.parametrize(
    "name", ["relu", pytest.param("haar", marks=pytest.mark.slow), pytest.param("gaussian", marks=pytest.mark.slow)]
)
def test_branch_by_its_s_transform_is_the_closed_one(name):
    transforms = {
        "gaussian": lambda f: 1 / (1 + f),
        "haar": torch.ones_like,
        "relu": lambda f: 0.5 / ((0.5 + f) * (1 + f)),
    }
    M, read, write, energy = setting("haar", "random", 4, 2.0)
    given = spectrum.Branch(transforms[name])
    laws = [spectrum.predict(M, read, write, energy, branch) for branch in (name, given)]
    w = torch.tensor([0.2 + 0.02j, 1 + 0.05j, 3 + 0.1j], dtype=torch.complex128)
    assert torch.allclose(laws[0].stieltjes(w), laws[1].stieltjes(w), rtol=1e-7)
    s = torch.tensor([0.3, 0.9, 2.5] if name == "relu" else [0.3, 0.9, 1.0, 2.5], dtype=torch.float64)
    assert torch.allclose(laws[0].cdf(s), laws[1].cdf(s), atol=1e-6)
    if name == "relu":
        # Four branches of rank C / 2 move just all of the 4 C directions: at one the density has a pole, and half of
        # the values of draws lie below. The two are read at different angles there.
        assert [float(law.cdf(1.0)) for law in laws] == pytest.approx([0.5, 0.5], abs=3e-3)
    assert float(laws[0].mean_log) == pytest.approx(float(laws[1].mean_log), abs=1e-3)
    assert torch.allclose(laws[0].moment(4), laws[1].moment(4))


def test_wide_hidden_layer_is_gaussian():
    M, read, write, energy = setting("haar", "random", 3)
    laws = [spectrum.predict(M, read, write, energy, branch) for branch in ("gaussian", spectrum.Hidden(1e6))]
    assert torch.allclose(*(law.quantile(SHARES) for law in laws), rtol=1e-4)


@pytest.mark.slow
def test_orthogonal_change_of_basis_and_permutations_change_nothing():
    M, read, write, energy = setting("free", "random", 3)
    frames = mixers("haar", 4, seed=5)
    turned = frames[1:] @ M @ frames[:-1].mT
    reads = (frames[:-1] @ read.unsqueeze(-1)).squeeze(-1)
    writes = (frames[1:] @ write.unsqueeze(-1)).squeeze(-1)
    laws = spectrum.predict(M, read, write, energy), spectrum.predict(turned, reads, writes, energy)
    assert torch.allclose(*(law.quantile(SHARES) for law in laws), rtol=1e-5)
    assert torch.allclose(*(law.moment(4) for law in laws))


def test_inverse_scaling_of_gates_and_energy_changes_nothing():
    M, read, write, energy = setting("free", "random", 3)
    laws = spectrum.predict(M, read, write, energy), spectrum.predict(M, 10 * read, write / 2, energy / 25)
    assert torch.allclose(*(law.quantile(SHARES) for law in laws), rtol=1e-7)


@pytest.mark.slow
def test_as_the_noise_vanishes_the_values_are_those_of_the_product():
    M, read, write, energy = setting("free", "random", 4)
    product = torch.linalg.svdvals(torch.linalg.multi_dot(list(M.flip(0)))).flip(0)
    middle = torch.tensor([0.125, 0.375, 0.625, 0.875], dtype=torch.float64)
    errors = [
        float((spectrum.predict(M, read, write, noise * energy).quantile(middle) / product).log().abs().max())
        for noise in (1e-1, 1e-2, 1e-3)
    ]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 5e-3
    silent = spectrum.predict(M, read, write, 0.0)
    assert torch.allclose(silent.atoms[0], product)
    assert torch.allclose(silent.quantile(middle), product)


def test_transform_reflects_and_decays():
    law = spectrum.predict(*setting("cayley", "softmax", 3))
    w = torch.tensor([0.8 + 0.3j, 2 + 1j], dtype=torch.complex128)
    g = law.stieltjes(w)
    assert torch.allclose(law.stieltjes(-w), -g)
    assert torch.allclose(law.stieltjes(w.conj()), g.conj())
    far = torch.tensor(1e3 + 1e3j, dtype=torch.complex128)
    assert torch.allclose(law.stieltjes(far), 1 / far + law.moment(2) / far**3, rtol=1e-9)


def test_distribution_density_and_moments_agree_with_each_other():
    law = spectrum.predict(*setting("cayley", "softmax", 5))
    s = torch.linspace(*law.edges, 200, dtype=torch.float64)
    cdf, density = law.cdf(s), law.density(s)
    steps = (density[1:] + density[:-1]) / 2 * s.diff()
    assert torch.allclose(cdf[0] + steps.cumsum(0), cdf[1:], atol=6e-3)
    assert float(law.moment(1)) == pytest.approx(float((1 - cdf[:-1] / 2 - cdf[1:] / 2) @ s.diff() + s[0]), rel=3e-3)
    assert float(law.cdf(0.0)) == pytest.approx(0, abs=1e-4)
    assert law.cdf(math.inf) == 1
    assert law.density(torch.tensor([-1.0, 0.0])).tolist() == [0, 0]
    assert torch.allclose(law.cdf(law.quantile(SHARES)), SHARES, atol=1e-5)


def test_errors_estimated_from_the_regularisation_cover_the_truth():
    law = spectrum.predict(torch.zeros(1, 1, 1), [1.0], [1.0], 1.0)
    s = torch.tensor([0.5, 1.0, 1.5, 1.9], dtype=torch.float64)
    points = law.points(s)
    assert points.converged.all()
    assert (points.steps > 0).all()
    exact = (4 - s**2).sqrt() / math.pi
    assert ((points.density - exact).abs() <= points.density_error + 1e-6).all()


def test_points_that_do_not_converge_are_nan_and_warn(monkeypatch):
    law = spectrum.predict(*setting("cayley", "softmax", 3))
    law.quantile(0.5)
    monkeypatch.setattr("jpmhc.spectrum.dyson._STEPS", 1)
    monkeypatch.setattr("jpmhc.spectrum.dyson._PATIENT_STEPS", 1)
    with pytest.warns(ConvergenceWarning, match="2 of 2 points did not converge and are NaN"):
        points = law.points(torch.tensor([0.7, 1.3]))
    assert points.cdf.isnan().all()
    assert not points.converged.any()


@pytest.mark.parametrize("name", ["cdf", "density", "stieltjes", "quantile", "moment"])
def test_derivatives_are_those_of_differences(name):
    M, read, write, energy = setting("free", "random", 2, n=2)
    question = {
        "cdf": lambda law: law.cdf(0.9),
        "density": lambda law: law.density(0.9),
        "stieltjes": lambda law: law.stieltjes(0.9 + 0.1j).imag,
        "quantile": lambda law: law.quantile(0.7),
        "moment": lambda law: law.moment(1),
    }[name]
    inputs = [tensor.clone().requires_grad_() for tensor in (M, read, write, energy)]
    gradients = torch.autograd.grad(question(spectrum.predict(*inputs)), inputs)
    generator = torch.Generator().manual_seed(7)
    moves = [torch.randn(tensor.shape, generator=generator, dtype=torch.float64) for tensor in inputs]
    moves[3] *= energy
    h = 1e-4
    with torch.no_grad():
        up, down = (
            question(spectrum.predict(*(a + sign * h * b for a, b in zip(inputs, moves, strict=True))))
            for sign in (1, -1)
        )
    along = sum((g * m).sum() for g, m in zip(gradients, moves, strict=True))
    assert float(along) == pytest.approx(float(up - down) / (2 * h), rel=2e-3, abs=1e-5)


def test_law_without_derivatives_builds_no_graph():
    law = spectrum.predict(*setting("cayley", "softmax", 2))
    assert not law.cdf(1.0).requires_grad
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        law.quantile(SHARES)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mixers": torch.eye(4)}, r"mixers: expected shape \(L, n, n\), got \(4, 4\)"),
        ({"mixers": torch.zeros(0, 4, 4)}, "mixers: expected at least one layer"),
        ({"mixers": []}, "mixers: expected at least one layer, got none"),
        ({"mixers": torch.zeros(2, 4, 3)}, r"mixers: expected shape \(L, n, n\), got \(2, 4, 3\)"),
        ({"mixers": [torch.eye(4), torch.eye(3)]}, "mixers: expected matrices of one size"),
        ({"mixers": torch.full((2, 4, 4), math.nan)}, "mixers: expected finite numbers"),
        ({"energy": -0.1}, "energy: expected numbers >= 0, got -0.1"),
        ({"energy": math.nan}, "energy: expected finite numbers"),
        ({"energy": [0.1, 0.1, 0.1]}, r"energy: expected one number or one for each of 2 layers, got shape \(3,\)"),
        ({"read": None}, r"read: expected weights of shape \(2, 4\) or \(4,\)"),
        ({"write": torch.ones(3)}, r"write: expected shape \(2, 4\) or \(4,\), got \(3,\)"),
        ({"branch": "isotropic"}, "read: isotropic noise has no gates"),
        ({"branch": "cauchy"}, "branch: expected one of gaussian, haar, relu"),
        ({"regularisation": 0.0}, r"regularisation: expected a number in \(0, 0.1\], got 0.0"),
    ],
)
def test_bad_input_is_named(change, message):
    given = {"mixers": torch.eye(4).expand(2, 4, 4), "read": torch.ones(4), "write": torch.ones(4), "energy": 0.1}
    with pytest.raises(ValueError, match=message):
        spectrum.predict(**{**given, **change})


def test_bad_questions_are_named():
    law = spectrum.predict(torch.eye(2).expand(1, 2, 2), torch.ones(2), torch.ones(2), 0.1)
    with pytest.raises(ValueError, match=r"q: expected numbers in \[0, 1\]"):
        law.quantile(1.5)
    with pytest.raises(ValueError, match="w: expected finite complex numbers off the real axis"):
        law.stieltjes(1.0)
    with pytest.raises(ValueError, match="s: expected finite numbers > 0"):
        law.points(-1.0)
    with pytest.raises(ValueError, match="k: expected a finite number"):
        law.moment(math.nan)
    with pytest.raises(TypeError, match="mixers: expected a tensor or numbers"):
        spectrum.predict("identity")
    with pytest.raises(ValueError, match=r"s_transform: expected S\(0\) = 1"):
        spectrum.Branch(lambda f: 2 + f)


@pytest.mark.parametrize("z", [-0.08 - 0.02j, -1e-4 + 1e-5j, 2.0 + 0.3j, 50 + 1j, -0.3])
def test_the_transform_of_an_s_transform_solves_its_equation(z):
    # Next to z = 0, behind the hard edge of a ReLU, Newton's steps on the way there are short ones.
    z = torch.tensor([z], dtype=torch.complex128)
    branch = spectrum.Branch(lambda f: 0.5 / ((0.5 + f) * (1 + f)))
    f = branch.transform(z)
    assert float((z * f * branch.s_transform(f) - 1 - f).abs()) < 1e-13 * float((1 + f.abs()).abs())
    # E[s^2 / (z - s^2)] over the eigenvalues of many draws, one of which is off by some percent.
    left, right = torch.randn(2, 40, 200, 100, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    squares = torch.linalg.svdvals(left @ right.mT / (200 * 100) ** 0.5).square()
    assert abs(complex((squares / (z - squares)).mean() - f[0])) < 0.015 * abs(complex(f[0]))


@pytest.mark.parametrize("name", ["stieltjes", "quantile"])
def test_forward_derivatives_are_the_backward_ones(name):
    M, read, write, energy = setting("free", "random", 2, n=2)

    def question(scale):
        law = spectrum.predict(M, read, write, scale * energy)
        return law.stieltjes(0.9 + 0.1j).imag if name == "stieltjes" else law.quantile(0.7)

    one = torch.ones((), dtype=torch.float64)
    _, forward = torch.func.jvp(question, (one,), (one,))
    assert float(forward) == pytest.approx(float(torch.func.grad(question)(one)), rel=1e-6)
    assert float(forward) != 0


@pytest.mark.parametrize(
    ("kind", "layers", "n", "width"),
    [
        ("cayley", 200, 4, 64),
        pytest.param("haar", 24, 16, 48, marks=pytest.mark.slow),
        pytest.param("cayley", 200, 16, 24, marks=pytest.mark.slow),
    ],
)
def test_deep_and_many_streams(kind, layers, n, width):
    M, read, write, energy = setting(kind, "random", layers, 0.5, n)
    law = spectrum.predict(M, read, write, energy)
    draw = torch.linalg.svdvals(jacobian(M, read, write, energy, width)).sort().values
    points = law.points(draw[5 :: len(draw) // 40])
    assert points.converged.all()
    shares = ((torch.arange(len(draw)) + 0.5) / len(draw))[5 :: len(draw) // 40]
    assert float((points.cdf - shares).abs().max()) < 0.03
    assert float(law.mean_log) == pytest.approx(float(draw.log().mean()), abs=0.05)


def test_a_plot_names_what_a_logarithmic_axis_cannot_show():
    plt = pytest.importorskip("matplotlib.pyplot")
    M = torch.diag(torch.tensor([1.0, 0.0])).expand(2, 2, 2)
    law = spectrum.predict(M, torch.tensor([0.0, 0.0]), torch.tensor([1.0, 1.0]), 0.1)
    (line,) = law.plot(log=True).get_lines()
    assert line.get_label() == "predicted (50 % zero)"
    plt.close("all")


def test_a_law_that_is_not_reached_from_above_is_refused():
    # Fourth moments of 1e160 above values of one: no march gets there, and all quantiles were zero.
    L = 24
    law = spectrum.predict(torch.eye(4).expand(L, 4, 4), [1.0, 0.5, -1.0, 0.3], [1.0, 0.5, -1.0, 0.3], 3e3)
    with pytest.raises(RuntimeError, match=r"the law lies below .* too much energy over so many layers"):
        law.quantile(0.5)
