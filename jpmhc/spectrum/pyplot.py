"""The one way to matplotlib, which is no dependency: it is there, or one line says which extra brings it."""

from __future__ import annotations

import importlib
from typing import Any


def pyplot() -> Any:
    """Return ``matplotlib.pyplot``.

    Raises
    ------
    ImportError
        If matplotlib is not installed; the message names the extra.
    """
    try:
        return importlib.import_module("matplotlib.pyplot")
    except ModuleNotFoundError as error:
        # What matplotlib itself misses, no extra brings.
        if error.name is None or not "matplotlib.pyplot.".startswith(f"{error.name}."):
            raise
        raise ImportError("matplotlib: not installed; pip install jpmhc[plot]", name=error.name) from None
