import sys

import pytest
import torch

from jpmhc import layers, spectrum
from tests.spectrum.models import network


def orthogonal(rows, columns, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(rows, columns, dtype=torch.float64, generator=generator)).Q


def matrix_with(values, outputs, inputs, seed=0):
    size = len(values)
    return orthogonal(outputs, size, seed) @ torch.diag(values) @ orthogonal(inputs, size, seed + 1).T


SHAPES = [(7, 7), (9, 5), (5, 9), (1, 6), (6, 1)]


@pytest.mark.parametrize("method", ["exact", "lanczos"])
@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
def test_linear_maps_have_the_singular_values_they_were_made_with(method, outputs, inputs):
    values = torch.linspace(0.5, 2.0, min(outputs, inputs), dtype=torch.float64)
    matrix = matrix_with(values, outputs, inputs)
    law = spectrum.measure(lambda x: x @ matrix.T, torch.zeros(inputs, dtype=torch.float64), method, probes=16)
    assert law.shape == (outputs, inputs)
    assert law.edges == pytest.approx((float(values[0]), float(values[-1])), rel=1e-10)
    # As many probes as dimensions: the quadrature is the trace itself.
    for k in (1, 2, 4):
        torch.testing.assert_close(law.moment(k), values.pow(k).mean(), rtol=1e-10, atol=0)
    torch.testing.assert_close(law.mean_log, values.log().mean(), rtol=1e-9, atol=1e-12)
    w = torch.tensor([1.1 + 0.3j, 0.2 + 0.1j], dtype=torch.complex128)
    expected = (w[:, None] / (w[:, None] ** 2 - values**2)).mean(-1)
    torch.testing.assert_close(law.stieltjes(w), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("method", ["exact", "lanczos"])
def test_zero_and_rank_deficient_maps(method):
    x = torch.zeros(6, dtype=torch.float64)
    law = spectrum.measure(lambda x: 0 * x, x, method)
    assert law.edges == (0.0, 0.0)
    assert law.quantile(0.5) == 0
    assert law.mean_log == -torch.inf
    values = torch.tensor([2.0, 1.0, 0.0, 0.0], dtype=torch.float64)
    matrix = matrix_with(values, 4, 6)
    law = spectrum.measure(lambda x: x @ matrix.T, x, method)
    assert law.edges == pytest.approx((0.0, 2.0), abs=1e-7)
    assert float(law.mass_below(1e-6)) == pytest.approx(0.5, abs=1e-6)


@pytest.mark.parametrize("mixer", [info.name for info in layers.mixers() if info.supports(3)])
def test_exact_is_the_dense_jacobian(mixer):
    model, x = network(mixer, depth=2), torch.randn(3, 6, dtype=torch.float64)
    dense = torch.autograd.functional.jacobian(model, x).reshape(18, 18)
    law = spectrum.measure(model, x)
    torch.testing.assert_close(law.singular_values[0], torch.linalg.svdvals(dense).sort().values)
    assert not any(p.grad is not None for p in model.parameters())


def test_lanczos_and_exact_agree():
    model, x = network("sinkhorn", depth=2, width=20), torch.randn(3, 20, dtype=torch.float64)
    exact = spectrum.measure(model, x)
    lanczos = spectrum.measure(model, x, "lanczos", probes=12, steps=24, tol=1e-4)
    assert lanczos.converged
    for found, true in zip(lanczos.edges, exact.edges, strict=True):
        assert abs(found - true) <= 1e-4 * true
    for k in (1, 2, 4):
        mean, error = lanczos.expectation(lambda s, k=k: s**k)
        assert abs(mean - exact.moment(k)) <= 4 * error
        assert 0 < error < 0.3 * exact.moment(k)
    points = torch.linspace(0.2, 3, 8, dtype=torch.float64)
    wide = torch.complex(points, torch.full_like(points, 0.3))
    torch.testing.assert_close(lanczos.stieltjes(wide), exact.stieltjes(wide), rtol=0.15, atol=0.02)
    assert (lanczos.density_error(points) >= 0).all()


def test_extremes_of_a_large_map_are_within_their_tolerance():
    # 2,000 x 1,500 with a dense bulk between well-known ends; never formed.
    diagonal = torch.linspace(0.4, 3.0, 1500, dtype=torch.float64)
    law = spectrum.measure(
        lambda x: torch.cat([diagonal * x.flip(0), torch.zeros(500, dtype=x.dtype)]),
        torch.zeros(1500, dtype=torch.float64),
        "lanczos",
        probes=4,
        steps=20,
    )
    assert law.converged
    assert law.edges == pytest.approx((0.4, 3.0), rel=1e-4)
    assert float(law.moment(2)) == pytest.approx(float(diagonal.square().mean()), abs=4 * float(law.moment_error(2)))


def test_extremes_that_did_not_converge_are_warned_of():
    diagonal = torch.logspace(-3, 0, 200, dtype=torch.float64)
    with pytest.warns(spectrum.ExtremesWarning, match="after 16 steps the estimated relative errors"):
        law = spectrum.measure(lambda x: diagonal * x, torch.zeros(200).double(), "lanczos", steps=8, max_steps=16)
    assert not law.converged
    assert law.edges[0] >= 1e-3
    assert law.edges[1] <= 1.0 + 1e-12
    assert "not converged" in str(law)


@pytest.mark.parametrize("method", ["exact", "lanczos"])
def test_samples_are_pooled(method):
    model, x = network("cayley", depth=1), torch.randn(2, 3, 3, 6, dtype=torch.float64)
    law = spectrum.measure(model, x, method, batch_dims=2, probes=18, steps=18)
    alone = [spectrum.measure(model, point) for point in x.flatten(0, 1)]
    for k in (2, 4):
        expected = torch.stack([single.moment(k) for single in alone]).mean()
        torch.testing.assert_close(law.moment(k), expected, rtol=1e-8, atol=0)
    if method == "exact":
        torch.testing.assert_close(law.singular_values, torch.cat([single.singular_values for single in alone]))


def test_samples_that_act_on_one_another_are_refused():
    with pytest.raises(ValueError, match="samples act on one another"):
        spectrum.measure(lambda x: x - x.mean(0), torch.randn(4, 3), batch_dims=1)
    with pytest.raises(ValueError, match="keeps the 1 batch dimensions"):
        spectrum.measure(lambda x: x.T, torch.randn(4, 3), batch_dims=1)


@pytest.mark.parametrize("method", ["exact", "lanczos"])
@pytest.mark.parametrize(
    "fn",
    [
        lambda x: x.cumsum(0),
        lambda x: x.flip(0).cumsum(0).flip(0),
        # The Jacobian of the first sample is zero, so it can tell of nothing.
        lambda x: torch.cat([x[:1] * 0, x[1:] + x[1:].sum(0)]),
        lambda x: x + torch.cat([x[:2], 1e-3 * x[-1:], x[3:]]),
    ],
)
def test_any_two_samples_that_act_on_one_another_are_found(fn, method):
    state = torch.get_rng_state()
    x = torch.linspace(-1, 2, 15).view(5, 3)
    with pytest.raises(ValueError, match="batch_dims: samples act on one another"):
        spectrum.measure(fn, x, method, batch_dims=1)
    assert torch.equal(torch.get_rng_state(), state)


def test_tokens_of_causal_attention_are_no_samples():
    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True).eval()
    mask = torch.nn.Transformer.generate_square_subsequent_mask(5)
    x = torch.randn(3, 5, 8)
    with pytest.raises(ValueError, match="samples act on one another"):
        spectrum.measure(lambda x: layer(x, src_mask=mask, is_causal=True), x, batch_dims=2)
    law = spectrum.measure(lambda x: layer(x, src_mask=mask, is_causal=True), x, batch_dims=1)
    assert law.singular_values.shape == (3, 40)


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_chunks_do_not_change_the_result(chunk):
    model, x = network(), torch.randn(3, 6, dtype=torch.float64)
    whole = spectrum.measure(model, x).singular_values
    torch.testing.assert_close(spectrum.measure(model, x, chunk=chunk).singular_values, whole)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precisions(dtype):
    matrix = matrix_with(torch.linspace(1.0, 2.0, 8, dtype=torch.float64), 8, 8).to(dtype)
    law = spectrum.measure(lambda x: x @ matrix.T, torch.zeros(8, dtype=dtype), "lanczos", tol=1e-2)
    assert law.edges == pytest.approx((1.0, 2.0), rel=1e-5 if dtype == torch.float32 else 2e-2)


def test_a_jacobian_too_large_names_its_size_and_the_method():
    with pytest.raises(ValueError, match=r"its Jacobian has 20000 x 20000 entries, 2.98 GiB .*use method='lanczos'"):
        spectrum.measure(lambda x: 2 * x, torch.zeros(20_000))
    with pytest.raises(ValueError, match="10 blocks of 100 x 100"):
        spectrum.measure(lambda x: 2 * x, torch.zeros(10, 100), batch_dims=1, memory_gib=1e-4)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"method": "power"}, ValueError, "method: expected one of"),
        (
            {"x": torch.zeros(3, dtype=torch.int64)},
            TypeError,
            "x: expected a real floating-point tensor, got torch.int64",
        ),
        ({"x": torch.zeros(3, dtype=torch.complex64)}, TypeError, "x: expected a real"),
        ({"x": torch.zeros(0)}, ValueError, "at least one sample, input and output"),
        ({"fn": 3}, TypeError, "fn: expected a function or a module, got int"),
        ({"fn": lambda x: (x, x)}, TypeError, "fn: expected it to return one real tensor, got tuple"),
        ({"fn": lambda x: x / 0}, ValueError, "its result at x holds NaN"),
        ({"fn": lambda x: x.abs().sqrt()}, ValueError, "its Jacobian at x holds NaN"),
        ({"batch_dims": 2}, ValueError, "batch_dims: expected 0 to 1"),
        ({"randomness": "ignore"}, ValueError, "randomness: expected one of"),
        ({"probes": 0}, ValueError, "probes: expected an integer of at least 1"),
        ({"tol": -1.0}, ValueError, "tol, memory_gib: expected positive"),
        ({"start": "0"}, ValueError, "start, stop: expected both or none"),
        ({"start": "0", "stop": "0"}, TypeError, "fn: expected a module with start and stop"),
    ],
)
def test_mistakes_are_named(arguments, error, message):
    call = {"fn": lambda x: 2 * x, "x": torch.zeros(3), **arguments}
    with pytest.raises(error, match=message):
        spectrum.measure(**call)


def test_the_bar_is_optional(monkeypatch, capsys):
    fn, x = (lambda x: 2 * x), torch.zeros(3)
    spectrum.measure(fn, x, progress=True)
    monkeypatch.setitem(sys.modules, "rich.progress", None)
    assert spectrum.measure(fn, x, "lanczos", progress=True).edges == pytest.approx((2.0, 2.0))
