"""The contract that every registered mixer keeps."""

import pytest
import torch

from jpmhc import layers

MIXERS = [str(info) for info in layers.mixers()]


@pytest.mark.parametrize("streams", [1, 2, 3, 4, 5, 8])
@pytest.mark.parametrize("mixer", MIXERS)
def test_exact_mixers_keep_their_constraint_to_round_off(mixer, streams):
    torch.manual_seed(0)
    chart = layers.make_mixer(mixer, streams)
    for scale in (0.1, 1.0, 10.0):
        raw = scale * torch.randn(64, chart.n_coefficients)
        matrix = chart(raw)
        assert matrix.shape == (64, streams, streams)
        assert matrix.dtype == torch.float32
        assert chart.residual(matrix).shape == (64,)
        assert chart.residual(matrix).max() < 5e-6
        assert chart.residual(chart(raw.double())).max() < 1e-13


@pytest.mark.parametrize("mixer", [m for m in MIXERS if m != "free"])
def test_residual_sees_a_matrix_that_is_off(mixer):
    chart = layers.make_mixer(mixer, 3)
    off = chart(chart.start()) + 0.25 * torch.ones(3, 3)
    assert chart.residual(off) > 0.1


@pytest.mark.parametrize("streams", [2, 3, 4, 5])
@pytest.mark.parametrize("mixer", MIXERS)
def test_gradient_matches_finite_differences(mixer, streams):
    torch.manual_seed(0)
    chart = layers.make_mixer(mixer, streams)
    raw = torch.randn(3, chart.n_coefficients, dtype=torch.float64, requires_grad=True)
    if chart.n_coefficients:
        assert torch.autograd.gradcheck(chart, (raw,))


@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize("scale", [1e2, 1e4])
def test_extreme_numbers_give_finite_matrices_and_gradients(mixer, scale):
    torch.manual_seed(0)
    chart = layers.make_mixer(mixer, 4)
    raw = (scale * torch.randn(64, chart.n_coefficients)).requires_grad_()
    matrix = chart(raw)
    assert matrix.isfinite().all()
    if matrix.requires_grad:
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


@pytest.mark.parametrize("mixer", MIXERS)
def test_wrong_number_of_coefficients_is_refused(mixer):
    chart = layers.make_mixer(mixer, 3)
    with pytest.raises(ValueError, match=rf"raw: expected shape \(\.\.\., {chart.n_coefficients}\)"):
        chart(torch.zeros(2, chart.n_coefficients + 1))


@pytest.mark.parametrize(("mixer", "count"), [("identity", 0), ("free", 16), ("sinkhorn", 16), ("cayley", 6)])
def test_number_of_coefficients(mixer, count):
    assert layers.make_mixer(mixer, 4).n_coefficients == count


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


def test_a_mixer_from_outside_gets_a_name():
    @layers.register_mixer("tests-swap", set="{P}", coefficients="0", exact=True)
    class Swap(layers.Identity):
        def forward(self, raw):
            return super().forward(raw).flip(-1)

    try:
        assert "tests-swap" in [str(info) for info in layers.mixers()]
        hc = layers.HyperConnection(3, torch.zeros_like, streams=2, mixer="tests-swap")
        x = torch.randn(4, 2, 3)
        assert torch.equal(hc(x), x.flip(-2))
        with pytest.raises(ValueError, match="name: mixer 'tests-swap' is already registered"):
            layers.register_mixer("tests-swap")(layers.Identity)
    finally:
        from jpmhc.layers import mixer

        del mixer._REGISTRY["tests-swap"]


def test_arguments_a_mixer_does_not_take_are_named():
    with pytest.raises(TypeError, match=r"mixer: 'identity' refused \{'step': 2\}"):
        layers.make_mixer("identity", 4, step=2)
