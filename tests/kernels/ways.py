"""The ways that a body for a CPU has: a few matrices one by one, many in tiles."""

from contextlib import contextmanager

import pytest

from jpmhc import kernels


@contextmanager
def way(name):
    """Let operations run by the body of this name; ``tiles`` are those of Numba, for any number of matrices."""
    if name != "tiles":
        with kernels.backend(name):
            yield name
        return
    tiles = pytest.importorskip("jpmhc.kernels.cpu.tiles")
    with pytest.MonkeyPatch.context() as patch, kernels.backend("numba"):
        patch.setattr(tiles, "WORTH", 0)
        yield "numba"
