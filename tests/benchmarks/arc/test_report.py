"""Laws of the report: one whole page that shows what was measured and needs nothing but itself."""

import importlib
import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from benchmarks import extras
from benchmarks.arc import drawing, report, table
from tests.benchmarks.arc.synthetic import ARMS, TASKS, write_comparison, write_json

VOID = {"meta", "link", "br", "hr", "img", "input"}


class Page(HTMLParser):
    """A page as a list of start tags and text; unbalanced tags are an error."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.words, self._open = [], [], []
        self.feed(text)
        self.close()
        assert not self._open, f"left open: {self._open}"
        self.text = re.sub(r"\s+", " ", " ".join(self.words))

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open, f"</{tag}> closes nothing"
        assert self._open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data):
        if self._open and self._open[-1] != "style":
            self.words.append(data)

    def count(self, tag, **wanted):
        return sum(
            name == tag and all(attributes.get(key.strip("_")) == value for key, value in wanted.items())
            for name, attributes in self.tags
        )


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("comparison")
    write_comparison(folder)
    path = report.write_report(folder)
    return path, path.read_text(encoding="utf-8")


def test_the_report_is_written_where_it_says_and_nothing_is_left_beside_it(written):
    path, _ = written
    assert path.name == "report.html"
    assert sorted(item.name for item in path.parent.iterdir()) == sorted([*ARMS, "comparison.json", "report.html"])


def test_the_page_is_balanced_and_its_ids_are_unique(written):
    _, text = written
    ids = [attributes["id"] for _, attributes in Page(text).tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_the_page_needs_nothing_from_outside(written):
    _, text = written
    assert not re.search(r"https?:|//[a-z]|@import|<script", text)
    for url in re.findall(r"url\(([^)]*)\)", text):
        assert url.startswith("#")
    for _, attributes in Page(text).tags:
        assert "src" not in attributes
        assert attributes.get("href", "#").startswith(("#", "data:"))
        assert not any(name.startswith("on") for name in attributes)


def test_every_reference_inside_the_page_is_kept(written):
    _, text = written
    ids = {attributes["id"] for _, attributes in Page(text).tags if "id" in attributes}
    references = re.findall(r"url\(#([^)]*)\)", text) + re.findall(r'href="#([^"]*)"', text)
    assert set(references) <= ids
    variables = set(re.findall(r"var\((--[a-z0-9-]+)\)", text))
    assert variables <= set(re.findall(r"(--[a-z0-9-]+):", text))


def test_the_file_is_small(written):
    path, _ = written
    assert path.stat().st_size < 500_000


def test_the_page_says_what_was_compared(written):
    page = Page(written[1])
    for part in (
        "preset demo",
        "Trained on the demonstrations of all tasks; held out: every test of every task.",
        "Streams mixed by M in SO(n), a rotation: n(n−1)/2 numbers a matrix, exact to round-off.",
        "The plain residual x + F(x)",
        "small and noisy, and is not a ranking",
        "Copying the input already has 61.0 % token accuracy",
        "75b0b7818350a0712133f0eace9342f1775e59958187fdb0542fe40acee1dde3",
        "abc1234",
        "2.13.0",
        "A processor",
        "train.betas",
    ):
        assert part in page.text


def test_the_title_names_the_collections(tmp_path, written):
    assert "Mixers on ARC-AGI-1" in Page(written[1]).text
    comparison = write_comparison(tmp_path, arms=("plain",))
    comparison["config"]["data"]["sources"] = ["mini-arc"]
    write_json(tmp_path / "comparison.json", comparison)
    assert "Mixers on Mini-ARC" in Page(report.write_report(tmp_path).read_text()).text


def test_every_cell_of_the_table_is_on_the_page(written):
    path, text = written
    rows = table.rows(json.loads((path.parent / "comparison.json").read_text()), path.parent)
    for columns in table.TABLES.values():
        for row in rows:
            cells = "".join(f"<td>{column.cell(row)}</td>" for column in columns)
            assert cells in re.sub(' class="lacking"', "", text)


def test_every_curve_is_drawn_with_the_baseline_in_that_of_token_accuracy(written):
    page = Page(written[1])
    for title in ("Training loss", "Token accuracy, %", "Exact match, %", "Gradient norm"):
        assert page.text.count(title) == 1
    assert page.text.count("copying the input: 63 %") == 1


def test_the_first_six_tests_are_drawn_by_task_id(written):
    page = Page(written[1])
    shown = re.findall(r"\b([0-9a-f]{8}) · test (\d)", page.text)
    assert shown == [*((task, "1") for task in TASKS[:5]), (TASKS[5], "2")]
    assert "67a3c6ac" not in page.text
    undecoded = page.text.count("no rectangle decoded")
    assert undecoded == 4
    assert page.count("svg", class_="grid") == 6 * (len(ARMS) + 2) - undecoded
    assert page.text.count("copied:") == 6
    assert page.text.count("✓ exact") == 4


def test_votes_and_shapes_are_said(written):
    page = Page(written[1])
    assert re.search(r"\b\d+ % of cells \d votes?\b", page.text)
    assert re.search(r"\b5 × 5, not 4 × 5\b", page.text)


@pytest.mark.parametrize(
    ("grid", "said"),
    [
        ([[1, 2], [3, 4]], "✓ exact"),
        ([[1, 2], [3, 5]], "75 % of cells"),
        ([[1, 2, 0], [3, 4, 0]], "2 × 3, not 2 × 2"),
    ],
)
def test_an_answer_is_judged_by_its_cells(tmp_path, grid, said):
    comparison = write_comparison(tmp_path, arms=("plain",))
    path = tmp_path / comparison["runs"][0]["evaluation"]
    evaluation = json.loads(path.read_text())
    test = evaluation["predictions"][0]
    test.update(truth=[[1, 2], [3, 4]], candidates=[{"grid": grid, "votes": 1, "score": 0.5}])
    evaluation["predictions"] = [test]
    write_json(path, evaluation)
    assert f"{said} 1 vote" in Page(report.write_report(tmp_path).read_text()).text


def test_grids_wear_the_colours_of_arc(written):
    assert {colour for colour in drawing.COLOURS if f'fill="{colour}"' in written[1]} == set(drawing.COLOURS)


def test_missing_runs_are_announced_and_leave_their_place_empty(tmp_path):
    comparison = write_comparison(tmp_path, seeds=(0, 1))
    comparison["runs"] = [run for run in comparison["runs"] if run["arm"] != "sinkhorn"]
    comparison["runs"][0].update(complete=False, steps=17, evaluation=None)
    write_json(tmp_path / "comparison.json", comparison)
    page = Page(report.write_report(tmp_path).read_text())
    assert (
        "Missing: plain seed 0 (stopped at step 17), sinkhorn seed 0 (not run), sinkhorn seed 1 (not run)." in page.text
    )
    assert "plain (1 of 2 seeds)" in page.text
    assert page.text.count("run missing") == 6 * 2


def test_a_comparison_that_has_only_begun_has_a_report(tmp_path):
    comparison = write_comparison(tmp_path)
    comparison["runs"] = []
    write_json(tmp_path / "comparison.json", comparison)
    page = Page(report.write_report(tmp_path).read_text())
    assert "cayley seed 0 (not run)" in page.text
    assert "Learning curves" not in page.text
    assert "Held-out predictions" not in page.text


def test_text_from_outside_is_escaped(tmp_path):
    arm = "sinkhorn:a=<b>&'\""
    comparison = write_comparison(tmp_path, arms=("plain",))
    comparison["arms"].append(arm)
    comparison["machine"]["processor"] = "<script>alert(1)</script>"
    write_json(tmp_path / "comparison.json", comparison)
    text = report.write_report(tmp_path).read_text()
    assert "<script" not in text
    assert arm in Page(text).text


def test_arms_evaluated_on_different_tests_are_refused(tmp_path):
    comparison = write_comparison(tmp_path)
    path = tmp_path / comparison["runs"][2]["evaluation"]
    evaluation = json.loads(path.read_text())
    del evaluation["predictions"][0]
    write_json(path, evaluation)
    with pytest.raises(ValueError, match="its held-out tests are not those of") as caught:
        report.write_report(tmp_path)
    assert str(path) in str(caught.value)


def test_a_report_that_fails_leaves_the_old_one(tmp_path, monkeypatch):
    write_comparison(tmp_path)
    old = report.write_report(tmp_path).read_bytes()

    def fail(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        report.write_report(tmp_path)
    assert (tmp_path / "report.html").read_bytes() == old


@pytest.mark.parametrize("package", ["jinja2", "matplotlib"])
def test_a_missing_package_is_named_with_its_extra(tmp_path, monkeypatch, package):
    write_comparison(tmp_path)
    real = importlib.import_module

    def without(name, *rest):
        if name.partition(".")[0] == package:
            raise ModuleNotFoundError(f"No module named {package!r}", name=package)
        return real(name, *rest)

    monkeypatch.setattr(extras.importlib, "import_module", without)
    with pytest.raises(ModuleNotFoundError) as caught:
        report.write_report(tmp_path)
    assert str(caught.value) == f"{package}: not installed; pip install jpmhc[bench]"
    assert not Path(tmp_path / "report.html").exists()
