import pytest
import torch

from benchmarks.spectrum import accuracy, figure1, mixers, speed, trained
from jpmhc import layers, spectrum


@pytest.mark.parametrize("family", mixers.FAMILIES)
def test_mixers_are_of_their_family(family):
    M = mixers.draw(family, 5)
    assert M.shape == (5, 4, 4)
    assert M.dtype == torch.float64
    assert torch.equal(M, mixers.draw(family, 5))
    values = torch.linalg.svdvals(M)
    expected = {
        "identity": 1.0,
        "haar": 1.0,
        "cayley": 1.0,
        "reflector": 1.0,
        "projector": torch.tensor([1.0, 1.0, 0.0, 0.0]).double(),
    }
    if family in expected:
        torch.testing.assert_close(values, torch.as_tensor(expected[family]).double().expand(5, 4))
    if family == "bistochastic":
        for dim in (-1, -2):
            torch.testing.assert_close(M.sum(dim), torch.ones(5, 4).double())
    alike = mixers.draw(family, 3, alike=True)
    assert torch.equal(alike[0], alike[2])


def test_a_row_of_the_figure_compares_both_recipes(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(figure1, "DRAWS", {2: 40})
    monkeypatch.setattr(figure1, "FAMILIES", ("cayley", "projector"))
    monkeypatch.setattr(figure1, "PLACES", 60)
    panels = []
    row, gapped = figure1.run(True, panels)["rows"]
    # Half of a projector's values lie near zero, so that every number in the gap is a median.
    assert abs(gapped["median_percent"]) < 5
    assert row["kolmogorov"] < 0.05
    # Rotations are free of the noise, so the published recipe is right for them.
    assert row["published_kolmogorov"] < 0.08
    assert row["predict_s"] > 0
    figure1.figure(panels, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000


def test_rows_of_the_accuracy_have_errors_and_times(monkeypatch):
    monkeypatch.setattr(accuracy, "FAMILIES", ("identity", "bistochastic"))
    monkeypatch.setattr(accuracy, "DEPTHS", (1, 2))
    rows = accuracy.run(True)["rows"]
    assert [(row["layers"], row["alike"]) for row in rows] == [(1, False), (2, True), (2, False)]
    for row in rows:
        assert row["kolmogorov"] < 0.03
        assert row["transform_percent"] < 3
        assert row["predict_s"] > 0
        assert row["draw_s"] > 0


QUICK = [(family, False, 10, 128, 1) for family in ("haar", "bistochastic", "projector")]
FULL = [(family, alike, 50, 256, 4) for family in mixers.FAMILIES for alike in (True, False)]
# Two layers that are alike leave peaks of a width of 1e-3 around one.
FULL += [(family, family != "identity", 2, 256, 4) for family in ("identity", "projector", "reflector")]


@pytest.mark.parametrize(
    ("family", "alike", "depth", "width", "draws"),
    QUICK + [pytest.param(*case, marks=pytest.mark.slow) for case in FULL],
)
def test_predictions_are_as_right_as_promised(family, alike, depth, width, draws):
    # A draw of width C is off by about 1 / C, so the quick variant may be off by more.
    (row,) = accuracy.compare(accuracy.chain(family, depth, alike), {width: draws}, family, depth, alike)
    looser = 1 if width >= 256 else 2.5
    assert row["kolmogorov"] <= 0.02 * looser
    assert row["transform_percent"] <= 0.5 * looser
    for level, bound in (("q10", 3), ("q50", 3), ("q90", 3), ("q1", 5), ("q99", 5)):
        assert abs(row[f"{level}_percent"]) <= bound * looser


def test_a_fresh_law_of_a_hundred_layers_takes_seconds():
    (row,) = speed.run(True)["rows"]
    assert (row["layers"], row["streams"], row["places"]) == (100, 4, 200)
    assert row["lost"] == 0
    # Seconds are measured, not asserted: this machine has other things to do. Eliminations do not depend on it.
    assert row["eliminations_a_place"] < 40


def test_the_section_of_a_trained_model_is_its_last_cycle():
    section = trained.train("cayley", "smoke", 2)
    law, report = trained.predict(section)
    measured = trained.measure(section)
    assert law.model.layers == 8
    assert len(report) == 16
    assert measured.shape == (704, 704)
    # Dense algebra: the product of the Jacobians of its two net calls, the second around the first.
    model = section.model.double()
    (y, z), tokens, puzzle = section.batch
    x = model.embed_input(tokens, puzzle.double())
    rotary = (model.cos, model.sin)
    y, z = model.cycle(y.double(), z.double(), x)
    entry = (z + y + x).detach()

    def run(value):
        inner = model.net(value, rotary)
        out = y + inner
        for index, sublayer in enumerate(model.net.sublayers):
            out = sublayer(out, rotary=rotary) if index % 2 == 0 else sublayer(out)
            if index < 3:
                out = torch.nn.functional.rms_norm(out, out.shape[-1:], eps=1e-5)
        return out

    expected = spectrum.measure(run, entry)
    torch.testing.assert_close(measured.singular_values, expected.singular_values, rtol=1e-2, atol=1e-4)


@pytest.mark.slow
def test_theory_foretells_a_trained_model():
    for arm in ("sinkhorn", "cayley"):
        section = trained.train(arm, "smoke", 40)
        found = spectrum.compare(trained.predict(section)[0], trained.measure(section))
        assert found.kolmogorov < 0.2
        assert abs(found.table()[2]["error"]) < 0.6
    assert any(isinstance(m, layers.HyperConnection) for m in section.model.modules())
