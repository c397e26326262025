"""Mixers that hold a point of a manifold."""

import pytest
import torch

from jpmhc import layers, manifolds, optim


@pytest.mark.parametrize("tangent", [False, True])
@pytest.mark.parametrize("name", ["SpecialOrthogonal", "Stiefel", "Birkhoff", "Grassmann"])
def test_manifold_mixers_stay_on_their_manifold(name, tangent):
    torch.manual_seed(0)
    chart = layers.Manifold(4, getattr(manifolds, name)(), tangent=tangent)
    assert isinstance(chart.base, manifolds.Parameter)
    assert chart.n_coefficients == (chart.base.numel() if tangent else 0)
    matrix = chart(0.3 * torch.randn(9, chart.n_coefficients))
    assert matrix.shape == (9, 4, 4)
    assert chart.residual(matrix).max() < 5e-6
    torch.testing.assert_close(chart(chart.start()).sum(-1), torch.ones(4, dtype=torch.float64), rtol=0, atol=1e-6)
    matrix.sin().sum().backward()
    assert chart.base.grad.abs().max() > 1e-3


def test_a_stored_subspace_is_a_point_of_the_grassmannian_that_an_optimiser_moves():
    torch.manual_seed(0)
    for reflector in (False, True):
        chart = layers.Grassmann(4, rank=2, reflector=reflector, stored=True)
        assert isinstance(chart.base, manifolds.Parameter)
        assert chart.n_coefficients == 0
        start = layers.Grassmann(4, rank=2, reflector=reflector)
        torch.testing.assert_close(chart(torch.zeros(3, 0)), start(torch.zeros(3, 8)))
        hc = layers.HyperConnection(8, torch.nn.Linear(8, 8), mixer=chart)
        optimiser = optim.RiemannianAdam(optim.parameter_groups(hc, lr=1e-2))
        for _ in range(20):
            optimiser.zero_grad()
            hc(torch.randn(5, 4, 8)).sin().sum().backward()
            optimiser.step()
        assert chart.residual(chart(torch.zeros(0))) < 1e-5
        assert (chart.base - chart.initial).abs().max() > 1e-2
        hc.reset_parameters()
        assert torch.equal(chart.base, chart.initial)
        with torch.device("meta"):
            twin = layers.Grassmann(4, rank=2, reflector=reflector, stored=True)
        twin.to_empty(device="cpu")
        twin.reset_parameters()
        assert torch.equal(twin(torch.zeros(0)), chart(torch.zeros(0)))
        assert layers.check_mixer(twin, compile=False).ok
    assert "stored" not in layers.Grassmann(4).describe()  # labels of weights that were saved before
    assert "stored=True" in chart.describe()


MAKERS = {
    "rotation": lambda: layers.Manifold(4, base=layers.Cayley(4)(torch.tensor([0.3, -1.0, 2.0, 0.5, -0.7, 0.1]))),
    "subspace": lambda: layers.Grassmann(4, rank=3, stored=True),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_base_points_stay_on_their_manifold_in_a_model_of_lower_precision(make):
    torch.manual_seed(0)
    hc = layers.HyperConnection(8, torch.nn.Linear(8, 8), mixer=make(), dtype=torch.bfloat16)
    expected = hc.mixer.base.detach().clone()
    hc(torch.randn(5, 4, 8)).sum().backward()
    for cast in (hc.bfloat16, hc.half, hc.bfloat16, lambda: hc.to("cpu", torch.bfloat16)):
        cast()
        assert isinstance(hc.mixer.base, manifolds.Parameter)
        assert hc.mixer.base.dtype == hc.mixer.base.grad.dtype == torch.float32
        assert torch.equal(hc.mixer.base, expected)
    x = torch.randn(5, 4, 8, dtype=torch.bfloat16)
    assert hc.mixer.residual(hc.coefficients(x)[2]).max() < 1e-6
    hc(x).sum().backward()
    optim.RiemannianAdam(optim.parameter_groups(hc, lr=1e-2)).step()
    assert hc.mixer.residual(hc.coefficients(x)[2]).max() < 1e-5
    assert hc.double().mixer.base.dtype == torch.float64


@pytest.mark.parametrize("mixer", ["manifold", layers.Manifold, layers.Grassmann])
def test_mixers_are_made_where_the_default_dtype_is_a_low_one(mixer):
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        chart = layers.make_mixer(mixer, 4) if isinstance(mixer, str) else mixer(4)
        stored = layers.Grassmann(4, stored=True)
    finally:
        torch.set_default_dtype(before)
    for made in (chart, stored):
        assert made.residual(made(made.start())).max() < 1e-6
