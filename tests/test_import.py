import subprocess
import sys

import pytest

import jpmhc


@pytest.mark.parametrize("rooms", ["", "from jpmhc import autodiff, kernels, layers; "])
def test_importing_the_package_loads_nothing_heavy(rooms):
    code = (
        f"import torch, sys; before = set(sys.modules); import jpmhc; {rooms}"
        "heavy = {'triton', 'numba', 'geoopt', 'matplotlib', 'transformers', 'scipy'} - before; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_rooms_are_listed_and_unknown_ones_named():
    assert {"autodiff", "kernels", "layers"} <= set(dir(jpmhc))
    with pytest.raises(AttributeError, match="no attribute 'attic', expected one of autodiff, kernels, layers"):
        jpmhc.attic  # noqa: B018
