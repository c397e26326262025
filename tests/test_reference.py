"""The reference page shows what a user may call, inherited or not, and nothing of torch's classes."""

import importlib
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
    docs = Path(__file__).parents[1] / "docs"
    shutil.copy(docs / "api.md", folder / "index.md")
    shutil.copy(docs / "autodiff.md", folder)
    command = [sys.executable, "-m", "sphinx", "-q", "-b", "html", str(folder), str(folder / "html")]
    subprocess.run(command, check=True, capture_output=True)
    pages = [(folder / "html" / f"{page}.html").read_text() for page in ("index", "autodiff")]
    return {name for page in pages for name in re.findall(r'id="jpmhc\.([\w.]+)"', page)}


@pytest.mark.parametrize("owner", SHOWN)
def test_public_methods_are_shown_wherever_they_are_defined(owner, names):
    assert {f"{owner}.{method}" for method in SHOWN[owner].split()} <= names


def test_methods_of_others_are_not_shown(names):
    foreign = {"add_module", "zero_grad", "state_dict", "append", "with_traceback", "set_label", "register_constant"}
    assert not {name for name in names if name.rpartition(".")[2] in foreign}


@pytest.mark.parametrize("room", ["autodiff", "kernels", "layers", "manifolds", "optim", "spectrum"])
def test_every_public_name_has_an_entry(room, names):
    public = importlib.import_module(f"jpmhc.{room}").__all__
    assert {f"{room}.{name}" for name in public} <= names
