"""Configuration of the documentation."""

import sys
from pathlib import Path

import jpmhc

sys.path.insert(0, str(Path(__file__).parent))

project = "jpmhc"
copyright = "2026, the jpmhc authors"
author = "the jpmhc authors"
release = version = jpmhc.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "jpmhc"
html_static_path: list[str] = []
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
nitpicky = False
# The attributes that a docstring lists are cross-references to Sphinx, and laws and reports share names.
suppress_warnings = ["ref.python"]
autodoc_typehints = "none"
napoleon_use_ivar = True
autodoc_member_order = "bysource"

sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "auto_examples",
    "abort_on_example_error": True,
    "show_memory": False,
    "min_reported_time": 3600,
    "download_all_examples": False,
}


def setup(app):
    """Draw the mixers and the kernels for their pages."""
    import pictures

    def draw(app):
        source = Path(app.srcdir)
        pictures.draw_all(source / "mixers" / "pictures")
        results = source.parent / "benchmarks" / "results" / "kernels-cpu.json"
        pictures.draw_roofline(results, source / "mixers" / "pictures" / "roofline.png")

    app.connect("builder-inited", draw)
