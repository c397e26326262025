"""The reference page shows what a user may call, inherited or not, and nothing of torch's classes."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("sphinx")
pytest.importorskip("myst_parser")

CONF = 'extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]\n'
SHOWN = {
    "layers.HyperConnection": "carry coefficients enter forward from_peer from_recipe read reset_parameters",
    "layers.Cayley": "describe forward residual squash start",
    "layers.CayleyIterated": "forward residual start",
    "layers.StreamHead": "forward",
    "layers.Statistics": "warn",
    "optim.RiemannianAdam": "step stabilize add_param_group",
    "optim.RiemannianTrustRegion": "step",
}


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reference")
    (folder / "conf.py").write_text(CONF)
    shutil.copy(Path(__file__).parents[1] / "docs" / "api.md", folder / "index.md")
    command = [sys.executable, "-m", "sphinx", "-q", "-b", "html", str(folder), str(folder / "html")]
    subprocess.run(command, check=True, capture_output=True)
    return set(re.findall(r'id="jpmhc\.([\w.]+)"', (folder / "html" / "index.html").read_text()))


@pytest.mark.parametrize("owner", SHOWN)
def test_public_methods_are_shown_wherever_they_are_defined(owner, names):
    assert {f"{owner}.{method}" for method in SHOWN[owner].split()} <= names


def test_methods_of_others_are_not_shown(names):
    foreign = {"add_module", "zero_grad", "state_dict", "append", "with_traceback", "set_label", "register_constant"}
    assert not {name for name in names if name.rpartition(".")[2] in foreign}
