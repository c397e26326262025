"""Laws of optional dependencies."""

import sys

import pytest

from benchmarks.extras import require


def test_a_module_that_is_there_is_returned_by_its_dotted_name():
    import xml.dom.minidom

    assert require("xml.dom.minidom", "bench") is xml.dom.minidom


@pytest.mark.parametrize("module", ["no_such_package", "no_such_package.inside"])
def test_a_missing_package_gives_one_line_that_names_the_extra(module):
    with pytest.raises(ModuleNotFoundError) as caught:
        require(module, "bench")
    assert str(caught.value) == "no_such_package: not installed; pip install jpmhc[bench]"
    assert caught.value.name == "no_such_package"


def test_a_package_that_misses_something_of_its_own_says_so_itself(tmp_path, monkeypatch):
    (tmp_path / "halfway_installed.py").write_text("import no_such_package\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="No module named 'no_such_package'"):
        require("halfway_installed", "bench")
    assert "halfway_installed" not in sys.modules
