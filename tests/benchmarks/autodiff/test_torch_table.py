"""The table tells a right derivative from a dropped one."""

import pytest
import torch

from benchmarks.autodiff import torch_table


@pytest.mark.parametrize(
    ("way", "call", "compiler", "expected"),
    [
        ("Function", "backward", "eager", "right"),
        ("Function", "jvp", "eager", "raises NotImplementedError"),
        ("Function with jvp", "jvp of jvp", "eager", "**zero**"),
        ("Function with jvp", "backward", "compile, fullgraph", "raises Unsupported"),
        ("custom_op", "jvp", "eager", "**zero**"),
        ("`autodiff.sinkhorn`", "jvp of jvp", "eager", "right"),
        ("`autodiff.sinkhorn`", "grad", "compile, fullgraph", "right"),
    ],
)
@pytest.mark.skipif(not torch.__version__.startswith("2.13"), reason="verdicts of torch 2.13")
def test_verdicts(way, call, compiler, expected):
    apply, compile_with = torch_table.CALLS[call], torch_table.COMPILERS[compiler]
    assert torch_table.verdict(torch_table.WAYS[way], apply, compile_with) == expected


def test_a_page_keeps_the_sections_of_other_versions(tmp_path, monkeypatch):
    page = tmp_path / "table.md"
    for version in ("2.13.0", "2.11.0", "2.13.0"):
        monkeypatch.setattr(torch_table, "section", lambda version=version: f"## torch {version}\n\nmeasured\n")
        assert torch_table.main([str(page)]) == 0
    text = page.read_text()
    assert text.startswith("# What PyTorch does")
    assert text.count("## torch 2.13.0") == text.count("## torch 2.11.0") == 1
    assert text.index("2.11.0") < text.index("2.13.0")
