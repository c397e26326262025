import subprocess
import sys

import pytest

PREPARED = """
import sys
sys.modules["matplotlib"] = None
import torch
from jpmhc import layers, spectrum
law = spectrum.predict(torch.eye(2).expand(1, 2, 2), energy=0.1, branch="isotropic")
measured = spectrum.measure(lambda x: 2 * x, torch.ones(3))
figures = {
    "law": law.plot,
    "measured": measured.plot,
    "compare": spectrum.compare(law, measured).plot,
    "inspect": spectrum.inspect(layers.HyperConnection(2, torch.nn.Linear(2, 2), streams=2), torch.ones(3, 2, 2)).plot,
}
figures[sys.argv[1]]()
"""


@pytest.mark.parametrize("figure", ["law", "measured", "compare", "inspect"])
def test_a_missing_matplotlib_is_named_with_its_extra(figure):
    done = subprocess.run([sys.executable, "-c", PREPARED, figure], capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1] == "ImportError: matplotlib: not installed; pip install jpmhc[plot]"
